"""Whether the nodes have room for a rollout all the way, under each strategy, and what would make some. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from infra.contracts import NodeInventory
from infra.names import version_stack
from infra.placement import Assignment, Changes, Demand, Unplaced, from_inventory, make_room, without_place
from infra.settings import VersionSettings
from infra.settings.rollout import RolloutSettings
from rollout.planning.alternatives import alternatives
from rollout.planning.peak import moments
from rollout.strategies import StrategyError, plan_steps

NEW = " (new)"
"""Ends the name of the demand for replicas that a version hasn't yet."""


@dataclass(frozen=True)
class StrategyFit:
    """Whether a rollout by one strategy finds room all the way."""

    strategy: str
    """Its name, with the options in which it differs from the endpoint's."""
    refused: str | None
    """Why the strategy can't do it, whatever the room."""
    peak: Mapping[str, int]
    """Replicas by version, when it holds the most; of a rollout without room, when it first has none."""
    gpus: int
    """GPUs, slices or shares that they hold together."""
    lacking: tuple[Unplaced, ...]
    changes: Changes | None
    """What would make room then; None where it fits, or nobody asked."""

    @property
    def fits(self) -> bool:
        return self.refused is None and not self.lacking


@dataclass(frozen=True)
class Rollout:
    """A rollout that nobody has started."""

    team: str
    current: Mapping[str, int]
    """Weights by version; the target's too."""
    target: Mapping[str, int]
    versions: Mapping[str, VersionSettings]
    """Of both."""
    settings: RolloutSettings


def demand_of(team: str, settings: VersionSettings, replicas: int | None = None) -> Demand:
    """What a version's config asks for. Default replicas: the config's."""
    resources = settings.resources
    return Demand(
        name=f"{team}/{version_stack(settings.environment, settings.model, settings.version)}",
        replicas=settings.replicas if replicas is None else replicas,
        cpu=resources.cpu or 0.0,
        memory=resources.memory or 0,
        gpu=resources.gpu,
        mig=resources.mig,
        shared=resources.gpu_shared,
        product=resources.gpu_product,
        pool=settings.pool,
        priority=settings.priority,
        nodes_per_replica=settings.nodes_per_replica,
        least=None if settings.autoscaling is None else settings.autoscaling.min,
    )


def strategy_fits(
    rollout: Rollout,
    nodes: Sequence[NodeInventory],
    known: Mapping[str, Demand],
    *,
    seconds: float = 5.0,
    advise: bool = True,
) -> Iterator[StrategyFit]:
    """The endpoint's own strategy, then all others, with the same options.

    Args:
        nodes: What there is, and who holds it now.
        known: What configs say of holders, by address.
        seconds: For a search, at most.
        advise: Whether to say what would make room.
    """
    options = [(rollout.settings.strategy, rollout.settings), *alternatives(rollout.settings)]
    room = _Room(rollout, nodes, known, seconds)
    for name, settings in options:
        yield room.of(name, settings, advise=advise)


class _Room:
    def __init__(
        self, rollout: Rollout, nodes: Sequence[NodeInventory], known: Mapping[str, Demand], seconds: float
    ) -> None:
        self._rollout, self._seconds = rollout, seconds
        self._demands = {version: demand_of(rollout.team, its) for version, its in rollout.versions.items()}
        self._inventory = from_inventory(nodes, known)
        self._kinds = {version: list(self._kinds_of(demand.name)) for version, demand in self._demands.items()}
        """The demands of what runs of each version."""

    def of(self, strategy: str, settings: RolloutSettings, *, advise: bool) -> StrategyFit:
        rollout = self._rollout
        replicas = {version: its.replicas for version, its in rollout.versions.items()}
        try:
            steps = plan_steps(rollout.current, rollout.target, settings, replicas)
        except StrategyError as error:
            return StrategyFit(strategy, str(error), {}, 0, (), None)
        running = {version: self._running(version) for version in self._kinds}
        peak: dict[str, int] = {}
        for moment in _greatest(moments(steps, running)):
            demands, assignments = self._at(moment)
            asked = self._inventory.pools, demands, assignments
            if lacking := without_place(*asked, seconds=self._seconds):
                changes = make_room(*asked, seconds=self._seconds) if advise else None
                return StrategyFit(strategy, None, moment, self._gpus(moment), lacking, changes)
            peak = max(peak, moment, key=lambda each: (self._gpus(each), sum(each.values())))
        return StrategyFit(strategy, None, peak, self._gpus(peak), (), None)

    def _running(self, version: str) -> int:
        return sum(kind.replicas for kind in self._kinds[version])

    def _kinds_of(self, name: str) -> Iterator[Demand]:
        for demand in self._inventory.demands:
            if demand.name == name or demand.name.startswith(f"{name} ("):
                yield demand

    def _at(self, moment: Mapping[str, int]) -> tuple[list[Demand], list[Assignment]]:
        """What is asked for then, and what of it runs: less of a version that is on its way down."""
        demands = {demand.name: demand for demand in self._inventory.demands}
        assignments = list(self._inventory.running)
        for version, replicas in moment.items():
            more = replicas - self._running(version)
            for kind in self._kinds[version]:
                fewer = min(max(-more, 0), kind.replicas)
                more += fewer
                demands[kind.name] = replace(kind, replicas=kind.replicas - fewer)
                assignments = _without(assignments, kind.name, fewer * kind.nodes_per_replica)
            if more > 0:
                new = replace(self._demands[version], name=f"{self._demands[version].name}{NEW}", replicas=more)
                demands[new.name] = new
        return list(demands.values()), assignments

    def _gpus(self, moment: Mapping[str, int]) -> int:
        return sum(
            replicas * self._demands[version].gpu * self._demands[version].nodes_per_replica
            for version, replicas in moment.items()
        )


def _greatest(found: Iterable[dict[str, int]]) -> list[dict[str, int]]:
    """Those of which no other holds as much of every version: where they fit, so do all."""
    kept: list[dict[str, int]] = []
    for moment in found:
        if any(_covers(other, moment) for other in kept):
            continue
        kept = [other for other in kept if not _covers(moment, other)] + [moment]
    return kept


def _covers(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return all(one.get(version, 0) >= replicas for version, replicas in other.items())


def _without(assignments: Sequence[Assignment], demand: str, pods: int) -> list[Assignment]:
    """Without so many Pods of a demand: of the nodes with most of them, as a ReplicaSet ends them.

    https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#scaling-a-replicaset
    """
    left = list(assignments)
    for _ in range(pods):
        index = max(
            (index for index, each in enumerate(left) if each.demand == demand),
            key=lambda index: (left[index].pods, left[index].node),
        )
        if left[index].pods == 1:
            del left[index]
        else:
            left[index] = replace(left[index], pods=left[index].pods - 1)
    return left
