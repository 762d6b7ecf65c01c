"""Shadow: new versions first get copies of requests, whose answers are dropped, and then a canary's share. Pure."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from infra.settings.rollout import RolloutSettings
from rollout.strategies.canary import percentages
from rollout.strategies.move import Move, Stage
from rollout.strategies.step import StrategyError


def stages(move: Move, settings: RolloutSettings) -> list[Stage]:
    """A stage of copies for each new version in turn, as an endpoint has one shadow; then the canary, without copies.

    Versions have the replicas for the copies, or for their share where that is more, from the first stage on.

    Raises:
        StrategyError: where every version that gains has requests already.
    """
    new = [version for version in move.gaining if not move.current[version]]
    if not new:
        raise StrategyError(
            f"shadow copies requests to versions that have none, and {', '.join(move.gaining)} has; use canary"
        )
    copied = Fraction(str(settings.shadow_percent)) / 100
    need = {version: max(copied if version in new else Fraction(0), share) for version, share in move.target.items()}
    capacity = move.capacity(need)
    start = move.stage(Fraction(0), capacity)
    copies = [replace(start, shadow={version: settings.shadow_percent}) for version in new]
    return [*copies, *(move.stage(done, capacity) for done in percentages(settings))]
