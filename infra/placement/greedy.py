"""First-fit-decreasing: large demands first, each onto the fullest nodes that it fits on. Fast, and not exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from infra.placement.model import PRIORITIES, Assignment, Demand
from infra.placement.state import Free, Request, State

Order = Callable[[State, Demand], tuple[float, ...]]
"""What demands of one priority are sorted by, largest first."""


def by_gpus(state: State, demand: Demand) -> tuple[float, ...]:
    # Not by processors next: the first nodes would run out of those, and leave GPUs.
    return (demand.nodes_per_replica, _parts(state, demand)[0])


def by_scarcest(state: State, demand: Demand) -> tuple[float, ...]:
    gpus, cpu, memory = _parts(state, demand)
    return (demand.nodes_per_replica, max(gpus, cpu, memory), gpus, cpu, memory)


def by_sum(state: State, demand: Demand) -> tuple[float, ...]:
    gpus, cpu, memory = _parts(state, demand)
    return (demand.nodes_per_replica, gpus + cpu + memory, gpus, cpu, memory)


ORDERS: tuple[Order, ...] = (by_gpus, by_scarcest, by_sum)


def place_all(state: State, wanted: dict[str, int], order: Order, *, by_priority: bool = True) -> dict[str, int]:
    """Places what fits of the wanted replicas, and returns those that did not, by demand.

    `by_priority`: whether a small demand of a higher priority comes before a large one of a lower. Where all have room
    it doesn't matter who comes first, and large ones first leave the more room.
    """
    rank = {priority: index if by_priority else 0 for index, priority in enumerate(PRIORITIES)}
    demands = [state.demands[name] for name, replicas in wanted.items() if replicas]
    keys = {demand.name: order(state, demand) for demand in demands}
    demands.sort(key=lambda demand: (rank[demand.priority], *(-part for part in keys[demand.name]), demand.name))
    left = {demand.name: place_some(state, demand, wanted[demand.name]) for demand in demands}
    return {name: replicas for name, replicas in left.items() if replicas}


def place_some(state: State, demand: Demand, replicas: int) -> int:
    """Places so many replicas, and returns how many of them found no room."""
    if demand.nodes_per_replica > 1:
        while replicas and _place_spanning(state, demand):
            replicas -= 1
        return replicas
    request = state.requests[demand.name]
    for free in candidates(state.eligible(demand), request):
        if not replicas:
            break
        pods = free.fits(request, replicas)
        if pods:
            state.put(demand, free, pods)
            replicas -= pods
    return replicas


def candidates(nodes: Iterable[Free], request: Request) -> list[Free]:
    """Those that one Pod may fit on: such as are in use first, and of them the fullest."""
    resource, gpu = request.resource, request.gpu
    found = [
        free
        for free in nodes
        if free.milli >= request.milli
        and free.memory >= request.memory
        and (resource is None or free.cut or free.gpus.get(resource, 0) >= gpu)
    ]
    found.sort(key=lambda free: (free.pods == 0, free.left(request), free.milli, free.index))
    return found


def _place_spanning(state: State, demand: Demand) -> bool:
    """One replica of several Pods, each on a node of its own, in the pool where fewest nodes fit."""
    request, span = state.requests[demand.name], demand.nodes_per_replica
    pools: dict[str, list[Free]] = {}
    for free in candidates(state.eligible(demand), request):
        if free.fits(request, 1):
            pools.setdefault(free.pool.name, []).append(free)
    enough = [nodes for nodes in pools.values() if len(nodes) >= span]
    if not enough:
        return False
    for free in min(enough, key=len)[:span]:
        state.put(demand, free, 1)
    return True


def _parts(state: State, demand: Demand) -> tuple[float, float, float]:
    """What part of the largest node that could hold it a Pod takes: of the GPUs, the processors and the memory."""
    largest = state.largest(demand)
    gpus = float(demand.gpu)
    if demand.mig:
        profile = largest.geometry.profile(demand.mig) if largest.geometry else None
        gpus *= profile.weight / largest.geometry.memory if largest.geometry and profile else 1 / 8
    return gpus / largest.gpus, demand.cpu / largest.cpu, demand.memory / largest.memory


def merged(assignments: Iterable[Assignment]) -> tuple[Assignment, ...]:
    """One assignment a demand and node, sorted."""
    found: dict[tuple[str, str], Assignment] = {}
    for each in assignments:
        key = (each.demand, each.node)
        before = found.get(key)
        if before is not None:
            slices = (*before.slices, *each.slices)
            each = Assignment(each.demand, each.node, before.pods + each.pods, slices)  # noqa: PLW2901
        found[key] = each
    return tuple(found[key] for key in sorted(found))
