"""Canary: the new versions' share grows by given, linear or exponential percentages. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from infra.settings.rollout import RolloutSettings
from rollout.strategies.move import Move, Stage
from rollout.strategies.step import StrategyError

_MOST_STEPS = 100


def stages(move: Move, settings: RolloutSettings) -> list[Stage]:
    """A stage a percentage. Replicas of versions whose config asks for none grow with their share."""
    return [move.stage(done) for done in percentages(settings)]


def percentages(settings: RolloutSettings) -> list[Fraction]:
    """How much has moved after each step, 0 to 1, rising to 1.

    Raises:
        StrategyError: when linear or exponential steps are more than 100.
    """
    given = settings.steps if isinstance(settings.steps, tuple) else tuple(_generated(settings))
    # As written: 33.3 is 333/1000, and not the binary number next to it.
    found = [Fraction(str(percent)) / 100 for percent in given]
    return found if found[-1] == 1 else [*found, Fraction(1)]


def _generated(settings: RolloutSettings) -> Iterator[float]:
    last = 0.0
    for count in range(_MOST_STEPS):
        linear = settings.first + count * settings.increment
        exponential = settings.first * settings.factor**count
        # Nobody asks for more digits, and weights could not say them.
        percent = float(f"{linear if settings.steps == 'linear' else exponential:.4g}")
        if percent >= 100:
            return
        if percent > last:
            yield percent
        last = percent
    grows = f"increment {settings.increment:g}" if settings.steps == "linear" else f"factor {settings.factor:g}"
    raise StrategyError(
        f"{settings.steps} steps from {settings.first:g} % with {grows} are more than {_MOST_STEPS}; "
        "let them grow faster"
    )
