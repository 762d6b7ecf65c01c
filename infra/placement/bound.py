"""The fewest GPUs that could hold what was placed: no placement uses fewer, and often none uses so few.

Nodes that demands have in common are bounded together. Of each such group, every resource gives a bound: the cheapest
nodes whose sum has enough of it. MIG slices on GPUs that are cut on demand count by weights of which no cut can exceed
a whole one (`mig.weights`); whole GPUs also by the dual feasible functions of S. Martello and P. Toth, "Lower bounds
and reduction procedures for the bin packing problem", Discrete Applied Mathematics 28 (1990).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil

from infra.placement.mig import WHOLE, Geometry, weights
from infra.placement.model import WHOLE_GPU, Demand, mig_resource
from infra.placement.state import Free, State

Measure = tuple[Callable[[Demand], int], Callable[[Free], int]]
"""What a Pod takes of something, and what an empty node has of it."""

_ROUNDING = 1e-9

_ANYTHING: Measure = (lambda demand: 1), (lambda free: sys.maxsize)
"""At least something is in use where there is a Pod, also one that asks for nothing."""


def lower_bound(state: State, pods: Mapping[str, int], fixed: frozenset[str] = frozenset()) -> int:
    """In GPUs, as `Placement.gpus_used` counts them.

    Args:
        pods: How many of each demand there are.
        fixed: Names of nodes that are in use whatever comes.
    """
    demands = [state.demands[name] for name, count in pods.items() if count]
    # Demands without GPUs can lie on any node, and so join all nodes to one group: less is known of it than of several.
    with_gpus = [demand for demand in demands if demand.resource is not None]
    return max(_of(state, each, pods, fixed) for each in (demands, with_gpus))


def _of(state: State, demands: list[Demand], pods: Mapping[str, int], fixed: frozenset[str]) -> int:
    total, seen = 0, set[str]()
    for nodes, group in _groups(state, demands):
        seen.update(free.node.name for free in nodes)
        total += max(
            _cost(nodes, group, pods, measure, fixed) for measure in (_ANYTHING, *_measures(state, nodes, group))
        )
    return total + sum(state.by_name[name].node.cost for name in fixed - seen)


def _groups(state: State, demands: list[Demand]) -> Iterator[tuple[list[Free], list[Demand]]]:
    """Demands that can lie on the same nodes, directly or by others, and all of these nodes."""
    parent = list(range(len(state.nodes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    # Demands that may go to the same nodes share one list of them.
    joined: set[int] = set()
    for demand in demands:
        nodes = state.eligible(demand)
        if id(nodes) not in joined:
            joined.add(id(nodes))
            for free in nodes[1:]:
                parent[root(free.index)] = root(nodes[0].index)
    groups: dict[int, list[Demand]] = {}
    for demand in demands:
        groups.setdefault(root(state.eligible(demand)[0].index), []).append(demand)
    for index, group in groups.items():
        yield [free for free in state.nodes if root(free.index) == index], group


def _cost(
    nodes: Sequence[Free], demands: Sequence[Demand], pods: Mapping[str, int], measure: Measure, fixed: frozenset[str]
) -> int:
    """Of the cheapest nodes that together have enough by one measure; of the last one, the part that is needed."""
    takes, has = measure
    need = sum(takes(demand) * pods[demand.name] for demand in demands)
    cost = 0.0
    options: list[tuple[float, int, int]] = []
    for free in nodes:
        if free.node.name in fixed:
            cost += free.node.cost
            need -= has(free)
        elif has(free):
            options.append((free.node.cost / has(free), free.node.cost, has(free)))
    for _, full, amount in sorted(options):
        if need <= 0:
            break
        cost += full * min(1.0, need / amount)
        need -= amount
    found = ceil(cost - _ROUNDING)
    prices = {free.node.cost for free in nodes}
    # Nodes are used whole, so that where all are alike the last one is, too.
    return -(-found // min(prices)) * min(prices) if len(prices) == 1 else found


def _measures(state: State, nodes: Sequence[Free], demands: Sequence[Demand]) -> Iterator[Measure]:
    requests = state.requests
    yield (lambda demand: requests[demand.name].milli), (lambda free: round(free.node.cpu * 1000))
    yield (lambda demand: demand.memory), (lambda free: free.node.memory)
    resources = sorted({demand.resource for demand in demands if demand.resource is not None})
    geometries = {free.geometry for free in nodes if free.geometry is not None}
    for resource in resources:
        profiles = {demand.mig for demand in demands if demand.resource == resource}
        if not any(geometry.profile(profile or "") for geometry in geometries for profile in profiles):
            yield _of_resource(resource)
    if len(geometries) == 1:
        (geometry,) = geometries
        for weight in weights(geometry):
            yield _by_weight(geometry, weight)
    whole = {count for free in nodes if (count := free.node.gpus.get(WHOLE_GPU, 0))}
    if len(whole) == 1:
        (size,) = whole
        for threshold in range(1, size // 2 + 1):
            yield _dual_feasible(size, threshold)


def _of_resource(resource: str) -> Measure:
    return (
        lambda demand: demand.gpu if demand.resource == resource else 0,
        lambda free: free.node.gpus.get(resource, 0),
    )


def _by_weight(geometry: Geometry, weight: Mapping[str, int]) -> Measure:
    """By a weight of slices, of which a GPU that is cut on demand has at most `WHOLE`."""
    resources = {mig_resource(profile): profile for profile in weight}

    def has(free: Free) -> int:
        ready = sum(weight[profile] * free.node.gpus.get(name, 0) for name, profile in resources.items())
        return ready + (WHOLE * free.node.cut if free.geometry == geometry else 0)

    return (lambda demand: weight.get(demand.mig or "", 0) * demand.gpu), has


def _dual_feasible(size: int, threshold: int) -> Measure:
    """A request that leaves less than `threshold` of a node's GPUs takes all of them; one of less counts as nothing."""

    def takes(demand: Demand) -> int:
        if demand.resource != WHOLE_GPU or demand.gpu < threshold:
            return 0
        return size if demand.gpu > size - threshold else demand.gpu

    return takes, (lambda free: free.node.gpus.get(WHOLE_GPU, 0))
