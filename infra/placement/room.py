"""What to change so that what has no room gets some: moves rather than pre-empted batch, that rather than shrinking.

`serving-critical` versions lose nothing, ever; and nothing is moved that isn't movable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from infra.placement import exact
from infra.placement.bound import lower_bound
from infra.placement.clearing import make_room_step_by_step
from infra.placement.greedy import merged
from infra.placement.model import Assignment, Demand, Placement, Pool
from infra.placement.place import place, placement
from infra.placement.state import Free, State


@dataclass(frozen=True)
class Move:
    """Pods that go from one node to another."""

    demand: str
    origin: str
    target: str
    pods: int
    ends_first: bool
    """Whether they have to end before they can start again, as there is no room for both at the time."""


@dataclass(frozen=True)
class Loss:
    """Pods that end and don't start again."""

    demand: str
    node: str
    pods: int


@dataclass(frozen=True)
class Changes:
    """What to change, in this order: pre-empt, shrink, move; then everything in `placement` has room."""

    preempted: tuple[Loss, ...]
    """Of `batch`."""
    shrunk: tuple[Loss, ...]
    """Of others, down to their `least`."""
    moves: tuple[Move, ...]
    placement: Placement
    """After the changes; `unplaced` are those that can't be made to fit."""
    exact: bool
    """Whether it is known that nothing else places more, shrinks and pre-empts fewer replicas, and moves fewer."""

    @property
    def fits(self) -> bool:
        return not self.placement.unplaced


def make_room(
    pools: Sequence[Pool], demands: Sequence[Demand], running: Iterable[Assignment], *, seconds: float = 10.0
) -> Changes:
    """The least to change so that the most of what the demands ask for beyond what runs gets room.

    By CP-SAT in up to `seconds` where OR-tools is installed, on all nodes or, of many, on the most promising; and
    otherwise node by node, which may change more than it needs. Slices of GPUs that are cut on demand stay.

    Raises:
        PlacementError: as `place`.
    """
    running = tuple(running)
    there = place(pools, demands, running, seconds=seconds)
    if not there.unplaced:
        return Changes((), (), (), there, exact=True)
    after, proven, method = _greedy(pools, demands, running), False, "first-fit-decreasing"
    if exact.is_available():
        start = State(pools, demands, running)
        problem = _problem(start)
        hint = {(each.demand, each.node): each.pods for each in after}
        found = exact.solve(problem, hint, seconds)
        if found is not None:
            inside = {free.node.name for free in problem.nodes}
            other = merged([*found.assignments, *(each for each in start.assignments if each.node not in inside)])
            whole = found.proven and len(problem.nodes) == len(start.nodes)
            if whole or _badness(demands, running, other) < _badness(demands, running, after):
                after, proven, method = other, whole, "cp-sat"
    return _changes(pools, demands, running, after, proven=proven, method=method)


def _greedy(pools: Sequence[Pool], demands: Sequence[Demand], running: Sequence[Assignment]) -> tuple[Assignment, ...]:
    state = State(pools, demands, running)
    make_room_step_by_step(state)
    return merged(state.assignments)


def _problem(state: State) -> exact.Problem:
    """All nodes; or of many the most promising, where most is free or batch's, as far as the model stays small."""
    wanted = state.wanted()
    whole = exact.Problem(state, wanted, state.nodes, changes=True)
    if whole.size <= exact.MOST_VARIABLES:
        return whole
    batch: Counter[str] = Counter()
    for each in state.assignments:
        if state.demands[each.demand].priority == "batch":
            batch[each.node] += each.pods * state.demands[each.demand].gpu
    asked = [state.demands[name] for name, replicas in wanted.items() if replicas]
    score: dict[int, tuple[int, int]] = {}
    for demand in asked:
        for free in state.eligible(demand):
            left = free.left(state.requests[demand.name]) + batch[free.node.name]
            score[free.index] = max(score.get(free.index, (0, 0)), (left, free.milli))
    ranked = sorted((state.nodes[index] for index in score), key=lambda free: (score[free.index], -free.index))[::-1]
    count = max(1, len(ranked))
    while count > _FEWEST and _reduced(state, wanted, ranked[:count]).size > exact.MOST_VARIABLES:
        count = max(_FEWEST, count * 3 // 4)
    return _reduced(state, wanted, ranked[:count])


_FEWEST = 8


def _reduced(state: State, wanted: Mapping[str, int], nodes: Sequence[Free]) -> exact.Problem:
    """The problem on some of the nodes: demands that are neither wanted nor on them are not its business."""
    names = {free.node.name for free in nodes}
    here = {each.demand for each in state.assignments if each.node in names}
    kept = {name: replicas for name, replicas in wanted.items() if replicas or name in here}
    return exact.Problem(state, kept, nodes, changes=True)


def _pods(assignments: Iterable[Assignment]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for each in assignments:
        found.setdefault(each.demand, Counter())[each.node] += each.pods
    return found


def _lost(
    demands: Sequence[Demand], before: Mapping[str, Counter[str]], after: Mapping[str, Counter[str]]
) -> dict[str, int]:
    """Replicas fewer than ran, by demand."""
    nothing: Counter[str] = Counter()
    return {
        demand.name: max(0, before.get(demand.name, nothing).total() - after.get(demand.name, nothing).total())
        // demand.nodes_per_replica
        for demand in demands
    }


def _badness(demands: Sequence[Demand], running: Sequence[Assignment], result: Sequence[Assignment]) -> tuple[int, ...]:
    """What `exact` has as its levels."""
    before, after = _pods(running), _pods(result)
    lost = _lost(demands, before, after)
    nothing: Counter[str] = Counter()
    unplaced: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    moved = 0
    for demand in demands:
        now, then = before.get(demand.name, nothing), after.get(demand.name, nothing)
        unplaced[demand.priority] += demand.replicas - lost[demand.name] - then.total() // demand.nodes_per_replica
        losses[demand.priority] += lost[demand.name]
        moved += (now - then).total() - lost[demand.name] * demand.nodes_per_replica
    return (
        unplaced["serving-critical"],
        unplaced["serving"],
        losses["serving"],
        losses["batch"],
        unplaced["batch"],
        moved,
    )


def _changes(
    pools: Sequence[Pool],
    demands: Sequence[Demand],
    running: Sequence[Assignment],
    result: Sequence[Assignment],
    *,
    proven: bool,
    method: str,
) -> Changes:
    before, after = _pods(running), _pods(result)
    lost = _lost(demands, before, after)
    preempted: list[Loss] = []
    shrunk: list[Loss] = []
    moving: list[tuple[str, str, str]] = []
    for demand in demands:
        now, then = before.get(demand.name, Counter[str]()), after.get(demand.name, Counter[str]())
        leaving = sorted((now - then).elements())
        arriving = sorted((then - now).elements())
        count = len(leaving) - lost[demand.name] * demand.nodes_per_replica
        moving += [(demand.name, *pair) for pair in zip(leaving[:count], arriving[:count], strict=True)]
        for node, pods in Counter(leaving[count:]).items():
            (preempted if demand.priority == "batch" else shrunk).append(Loss(demand.name, node, pods))
    fewer = [replace(demand, replicas=demand.replicas - lost[demand.name]) for demand in demands]
    state = State(pools, fewer, result)
    left = {name: replicas for name, replicas in state.wanted().items() if replicas}
    pods = {name: nodes.total() for name, nodes in after.items()}
    final = placement(state, left, lower_bound(state, pods), exact=proven, method=method)
    start = State(pools, demands, running)
    for each in (*preempted, *shrunk):
        start.by_name[each.node].leave(start.requests[each.demand], each.pods)
    return Changes(tuple(preempted), tuple(shrunk), tuple(_in_order(start, moving)), final, exact=proven)


def _in_order(state: State, moving: list[tuple[str, str, str]]) -> list[Move]:
    """Moves such that each finds room once those before it are done, as far as there is such an order."""
    found: list[Move] = []
    left = list(moving)
    while left:
        ready = next((each for each in left if state.by_name[each[2]].fits(state.requests[each[0]], 1)), None)
        demand, origin, target = each = ready or left[0]
        left.remove(each)
        state.by_name[origin].leave(state.requests[demand], 1)
        state.by_name[target].take(state.requests[demand], 1)
        last = found[-1] if found else None
        if last and ready and not last.ends_first and (last.demand, last.origin, last.target) == each:
            found[-1] = replace(last, pods=last.pods + 1)
        else:
            found.append(Move(demand, origin, target, 1, ends_first=ready is None))
    return found
