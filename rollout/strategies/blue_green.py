"""Blue-green: the whole new side stands, and has answered its samples, before it gets anything; then the switch. Pure.

While it has no weight only gates that need no requests can fail it; the switch is judged as any step.
The old side keeps its replicas for the settings' `keep` after the last step, so that the way back is as short.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from infra.settings.rollout import RolloutSettings
from rollout.strategies.canary import percentages
from rollout.strategies.move import Move, Stage


def stages(move: Move, settings: RolloutSettings) -> list[Stage]:
    """The new side without weight, then with all of its."""
    beside, switched = (move.stage(done, move.capacity(move.target)) for done in (Fraction(0), Fraction(1)))
    return [replace(beside, rests=True), switched]


def stages_after_canary(move: Move, settings: RolloutSettings) -> list[Stage]:
    """Blue-green, with the canary's steps below 50 % before the switch: the first step, where none is."""
    first, *rest = percentages(settings)
    canary = [first, *(done for done in rest if done < Fraction(1, 2))]
    whole = move.capacity(move.target)
    return [move.stage(done, whole) for done in dict.fromkeys([Fraction(0), *canary, Fraction(1)])]
