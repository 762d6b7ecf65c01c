"""Adaptive: versions start as a canary, and from then on their weights follow a score, step by step. Pure.

The rule is multiplicative weights: Y. Freund and R. Schapire, "A decision-theoretic generalization of on-line learning
and an application to boosting", J. Comput. Syst. Sci. 55 (1997), as S. Arora, E. Hazan and S. Kale tell it in "The
multiplicative weights update method", Theory of Computing 8 (2012). Two bounds are ours: a least share, so that every
version goes on being measured, and a greatest change, so that one misleading score can't move everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from infra.settings.rollout import RolloutSettings
from rollout.strategies.canary import percentages
from rollout.strategies.move import Move, Stage
from rollout.strategies.step import Step
from rollout.strategies.weights import whole_weights


def stages(move: Move, settings: RolloutSettings) -> list[Stage]:
    """A canary's stages; each version has the replicas to end with all that moves.

    The first is what the versions start from. The others are as a canary's only until there are scores: `adapt` takes
    their place, and that of the last goes to a version that is better beyond chance, if one is.
    """
    capacity = move.capacity(dict.fromkeys(move.moving, move.pool))
    return [move.stage(done, capacity) for done in percentages(settings)]


def adapt(
    step: Step, scores: Mapping[str, float], *, floor: float = 0.05, rate: float = 5.0, most: float = 0.2
) -> Step:
    """The step that follows one, by the scores that its versions had in it; lower is better.

    What the scored versions have together is divided anew: each one's weight times `exp(-rate · d)`, where d is how
    much worse than the best its score is, as a ratio. None falls below `floor` of the whole, or rises for it; none
    changes by more than `most` of it. Equal scores change nothing, and scores that stay bring all but the floors to
    the best.
    A version without weight, or without a finite score, keeps what it has.
    """
    scored = {v: scores[v] for v, weight in step.weights.items() if weight and math.isfinite(scores.get(v, math.nan))}
    scale = min(scored.values(), default=0.0) or sum(scored.values())
    if len(scored) < 2 or scale <= 0:
        return step
    whole = sum(step.weights[version] for version in scored)
    shares = {version: step.weights[version] / whole for version in scored}
    best = min(scored.values())
    wanted = {version: shares[version] * math.exp(-rate * (scored[version] - best) / scale) for version in scored}
    goal = _with_floors(wanted, {version: min(floor, share) for version, share in shares.items()})
    change = max(abs(goal[version] - shares[version]) for version in scored)
    pace = min(1.0, most / change) if change else 0.0
    moved = {version: Fraction(shares[version] + pace * (goal[version] - shares[version])) for version in scored}
    total = sum(moved.values())
    weights = whole_weights({version: share / total for version, share in moved.items()}, whole)
    return step.model_copy(update={"weights": step.weights | weights})


def _with_floors(wanted: Mapping[str, float], floors: Mapping[str, float]) -> dict[str, float]:
    """Shares of 1 in these ratios, none below its floor."""
    low: set[str] = set()
    while True:
        left = 1 - sum(floors[version] for version in low)
        free = sum(share for version, share in wanted.items() if version not in low)
        found = {
            version: floors[version] if version in low else share / free * left for version, share in wanted.items()
        }
        below = {version for version in found if version not in low and found[version] < floors[version]}
        if not below:
            return found
        low |= below
