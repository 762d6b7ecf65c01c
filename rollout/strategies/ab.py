"""A/B: fixed shares, the target's, until one version is significantly better; `winner_step` follows. Pure."""

from __future__ import annotations

from fractions import Fraction

from infra.settings.rollout import RolloutSettings
from rollout.strategies.move import Move, Stage
from rollout.strategies.step import StrategyError


def stages(move: Move, settings: RolloutSettings) -> list[Stage]:
    """The one stage; each version has the replicas to win with.

    Raises:
        StrategyError: where fewer than two of the versions that move have a share of the target.
    """
    compared = [version for version in move.moving if move.target[version]]
    if len(compared) < 2:
        raise StrategyError(
            f"ab compares versions, and of those that move only {', '.join(compared) or 'none'} is to have a share; "
            "give each its own, such as --to 1.0.0=50 --to 1.1.0=50"
        )
    return [move.stage(Fraction(1), move.capacity(dict.fromkeys(move.moving, move.pool)))]
