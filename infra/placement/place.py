"""Places demands: by first-fit-decreasing in several orders, and exactly where that leaves something to better."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from infra.placement import exact
from infra.placement.bound import lower_bound
from infra.placement.greedy import ORDERS, merged, place_all
from infra.placement.model import PRIORITIES, Assignment, Demand, Placement, Pool, Unplaced
from infra.placement.report import fragmentation, reason
from infra.placement.state import State

Rank = tuple[int, ...]
"""Replicas that found no room by priority, then GPUs in use: less is better."""


def place(
    pools: Sequence[Pool], demands: Sequence[Demand], running: Iterable[Assignment] = (), *, seconds: float = 10.0
) -> Placement:
    """Places what the demands ask for beyond what runs, which stays where it is.

    The most replicas of the highest priority come first, then those of the others, then few GPUs: those of all nodes in
    use. By first-fit-decreasing; and where that isn't provably the best, in up to `seconds` by CP-SAT, where OR-tools
    is installed and the numbers let it. The same input gives the same output, unless the time limit cuts the search.

    Raises:
        PlacementError: where the input doesn't go together: a name given twice, something that runs without room.
    """
    running = tuple(running)
    return _searched(pools, demands, running, _first_fit(pools, demands, running), seconds)


def without_place(
    pools: Sequence[Pool], demands: Sequence[Demand], running: Iterable[Assignment] = (), *, seconds: float = 10.0
) -> tuple[Unplaced, ...]:
    """What finds no room, as `place` says it; where all does, this is known without a search for the best places."""
    running = tuple(running)
    first = _first_fit(pools, demands, running)
    _, left = first
    return _searched(pools, demands, running, first, seconds).unplaced if left else ()


def _searched(
    pools: Sequence[Pool],
    demands: Sequence[Demand],
    running: tuple[Assignment, ...],
    first: tuple[State, dict[str, int]],
    seconds: float,
) -> Placement:
    """What first-fit found, or the better that CP-SAT does."""
    (best, left), method = first, "first-fit-decreasing"
    rank = rank_of(best, left)
    bound = _bound(best, running)
    proven = not left and (rank[-1] == bound or best.assignments == list(running))
    if not proven and exact.is_available():
        start = State(pools, demands, running)
        problem = exact.Problem(start, start.wanted(), start.nodes)
        hint = {(each.demand, each.node): each.pods for each in merged(best.assignments)}
        if problem.size <= exact.MOST_VARIABLES and (found := exact.solve(problem, hint, seconds)):
            better = State(pools, demands, found.assignments)
            remaining = {name: replicas for name, replicas in better.wanted().items() if replicas}
            if rank_of(better, remaining) < rank:
                best, left, method = better, remaining, "cp-sat"
                bound = _bound(best, running)
            proven = found.proven
            if proven:
                bound = best.gpus_used
    return placement(best, left, bound, exact=proven, method=method)


def placement(state: State, left: Mapping[str, int], bound: int, *, exact: bool, method: str) -> Placement:
    """What a state amounts to."""
    return Placement(
        assignments=merged(state.assignments),
        unplaced=tuple(
            Unplaced(name, replicas, reason(state, state.demands[name])) for name, replicas in sorted(left.items())
        ),
        fragmentation=tuple(fragmentation(state)),
        gpus_used=state.gpus_used,
        lower_bound=bound,
        exact=exact,
        method=method,
    )


def rank_of(state: State, left: Mapping[str, int]) -> Rank:
    unplaced = dict.fromkeys(PRIORITIES, 0)
    for name, replicas in left.items():
        unplaced[state.demands[name].priority] += replicas
    return (*unplaced.values(), state.gpus_used)


def _first_fit(
    pools: Sequence[Pool], demands: Sequence[Demand], running: Sequence[Assignment]
) -> tuple[State, dict[str, int]]:
    """The best of several orders; the others are not tried once none can be much better."""
    found: tuple[Rank, State, dict[str, int]] | None = None
    for by_priority, order in itertools.product((False, True), ORDERS):
        if by_priority and found and not found[2]:
            # Where all have room it doesn't matter who comes first.
            break
        state = State(pools, demands, running)
        left = place_all(state, state.wanted(), order, by_priority=by_priority)
        rank = rank_of(state, left)
        if found is None or rank < found[0]:
            found = (rank, state, left)
        if not left and rank[-1] <= _bound(state, running) * _ENOUGH:
            break
    assert found is not None
    return found[1], found[2]


_ENOUGH = 1.005
"""Another order seldom wins the last half percent, and takes as long again."""


def _bound(state: State, running: Sequence[Assignment]) -> int:
    pods: dict[str, int] = {}
    for each in state.assignments:
        pods[each.demand] = pods.get(each.demand, 0) + each.pods
    return lower_bound(state, pods, frozenset(each.node for each in running if each.pods))
