"""What the steps of a rollout take at their peak, against what the environment has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from infra.contracts import Amount, Room
from infra.settings.version import Resources
from rollout.strategies import Step


@dataclass(frozen=True)
class Peak:
    """The most that an environment is asked for at once, each resource at its own moment."""

    needed: Amount
    """With all that is reserved now."""
    reserved: Amount
    """Now, before the first step."""
    total: Amount

    @property
    def lacking(self) -> dict[str, float]:
        """How much too little there is, by resource: cores, bytes, GPUs; only of what the rollout asks more of."""
        return {
            name: self.needed[name] - self.total[name]
            for name in ("cpu", "memory", "gpu")
            if self.needed[name] > max(self.total[name], self.reserved[name])
        }


def peak(steps: Iterable[Step], running: Mapping[str, int], resources: Mapping[str, Resources], room: Room) -> Peak:
    """The peak over all steps and the ways between them, where new replicas come up before old ones go.

    Args:
        running: Replicas by version, before the first step; a version that isn't named has none.
        resources: What one replica gets, by version. A limit that isn't set counts as nothing.
        room: What the environment has, and has reserved for what is running.
    """
    reserved = room["reserved"]
    needed = reserved
    for moment in moments(steps, running):
        added = {version: replicas - running.get(version, 0) for version, replicas in moment.items()}
        needed = Amount(
            cpu=max(needed["cpu"], reserved["cpu"] + sum(n * (resources[v].cpu or 0) for v, n in added.items())),
            memory=max(
                needed["memory"], reserved["memory"] + sum(n * (resources[v].memory or 0) for v, n in added.items())
            ),
            gpu=max(needed["gpu"], reserved["gpu"] + sum(n * resources[v].gpu for v, n in added.items())),
        )
    return Peak(needed=needed, reserved=reserved, total=room["total"])


def moments(steps: Iterable[Step], running: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Replicas by version on the way to each step, when those that rise have come up and none has gone."""
    before = dict(running)
    for step in steps:
        most = {version: max(before.get(version, 0), replicas) for version, replicas in step.capacity.items()}
        yield before | most
        before |= step.capacity
