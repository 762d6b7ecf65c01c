"""Rolling: replica by replica, old ones going as new ones come, and weights following the replicas. Pure.

`max_surge` and `max_unavailable` are as a Kubernetes Deployment has them, over all versions that move together: at no
time more replicas than those of the start or of the end, whichever are more, and `max_surge`; and never fewer than the
fewer of the two less `max_unavailable`, nor none at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from infra.settings.rollout import RolloutSettings
from rollout.strategies.move import Move, Stage
from rollout.strategies.step import StrategyError

Replicas = Mapping[str, int]


def stages(move: Move, settings: RolloutSettings) -> list[Stage]:
    """A stage each time that as many replicas as may came, and then as many as may went.

    A version without weight starts from no replicas, whatever its config asks for; those that it asks for are its end.
    Without a surge the first stage only takes replicas away, and the last may only add some: weights stay then.

    Raises:
        StrategyError: where no replica can move, or none has to, or a version has weight and no replica.
    """
    empty = [version for version in move.moving if move.current[version] and not move.replicas[version]]
    if empty:
        raise StrategyError(
            f"rolling moves weights with replicas, and the config of {', '.join(empty)} asks for none while it has "
            "weight; give it some, or use canary"
        )
    start = {version: move.replicas[version] if move.current[version] else 0 for version in move.moving}
    end = {version: _replicas_at_the_end(move, version) for version in move.moving}
    most = max(sum(start.values()), sum(end.values())) + settings.max_surge
    least = max(1, min(sum(start.values()), sum(end.values())) - settings.max_unavailable)
    if start == end:
        raise StrategyError("rolling moves weights with replicas, and no version's would change; use canary")
    found: list[Stage] = []
    now, done = dict(start), Fraction(0)
    while now != end:
        before = dict(now)
        while sum(now.values()) < most and (version := _next(now, start, end, rising=True)):
            now[version] += 1
        while sum(now.values()) > least and (version := _next(now, start, end, rising=False)):
            now[version] -= 1
        if now == before:
            raise StrategyError(
                f"rolling can't begin: {', '.join(move.losing)} has {sum(start.values())} replica, which must stay "
                f"while there is no other, and max_surge {settings.max_surge} lets none come; raise max_surge to 1"
            )
        shares = _shares(move, {version: _progress(version, now, start, end) for version in move.moving})
        # Where several gain, one that is ahead for a moment is no step back of the whole.
        done = max(done, _done(move, shares))
        found.append(Stage(shares, dict(now), done))
    return found


def _replicas_at_the_end(move: Move, version: str) -> int:
    now, then, replicas = move.current[version], move.target[version], move.replicas[version]
    if then < now:
        return math.ceil(replicas * then / now)
    return max(replicas, move.as_the_losing_have(then)) if now else move.replicas_for(version, then)


def _next(now: Replicas, start: Replicas, end: Replicas, *, rising: bool) -> str | None:
    """The version that is the farthest behind, of those that rise or of those that fall."""
    left = [version for version in now if (now[version] < end[version] if rising else now[version] > end[version])]
    return min(left, key=lambda version: _progress(version, now, start, end), default=None)


def _progress(version: str, now: Replicas, start: Replicas, end: Replicas) -> Fraction:
    """How much of its replicas' way a version has gone; one whose stay goes with all the others together."""
    if start[version] != end[version]:
        return Fraction(now[version] - start[version], end[version] - start[version])
    way = sum(abs(end[other] - start[other]) for other in now)
    return Fraction(sum(abs(now[other] - start[other]) for other in now), way)


def _shares(move: Move, progress: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """What moves, divided by what each version's replicas were for at the start, or are for at the end."""
    due = {
        version: move.current[version] + done * (move.target[version] - move.current[version])
        for version, done in progress.items()
    }
    scale = move.pool / sum(due.values())
    return {version: due[version] * scale if version in due else share for version, share in move.target.items()}


def _done(move: Move, shares: Mapping[str, Fraction]) -> Fraction:
    """1 less what is still away from the target, of what was away at the start."""

    def away(now: Mapping[str, Fraction]) -> Fraction:
        return sum((abs(move.target[version] - now[version]) for version in move.moving), Fraction())

    return 1 - away(shares) / away(move.current)
