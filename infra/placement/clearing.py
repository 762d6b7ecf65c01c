"""Makes room node by node, without a solver: for each replica the node that takes the least to clear."""

from __future__ import annotations

from dataclasses import dataclass

from infra.placement.exact import may_lose
from infra.placement.greedy import by_gpus, candidates, place_all
from infra.placement.model import Assignment, Demand, Priority
from infra.placement.state import Free, Request, State


@dataclass(frozen=True)
class _Step:
    demand: str
    origin: Free
    target: Free | None
    """None: it ends."""


def make_room_step_by_step(state: State) -> None:
    """Places what is wanted, and where it has no room moves, pre-empts and shrinks what runs.

    Demands whose replicas span nodes get room by themselves only; those that grow are not taken from.
    """
    wanted = state.wanted()
    running = {each.demand for each in state.assignments if not wanted[each.demand]}
    for name, replicas in place_all(state, wanted, by_gpus).items():
        demand = state.demands[name]
        if demand.nodes_per_replica == 1 and demand.resource is not None:
            _Clearing(state, demand, running).place(replicas)


class _Clearing:
    def __init__(self, state: State, demand: Demand, running: set[str]) -> None:
        self._state, self._demand = state, demand
        self._request = state.requests[demand.name]
        self._running = running
        """Demands that may be touched."""

    def place(self, replicas: int) -> None:
        for _ in range(replicas):
            options: list[tuple[tuple[int, int, int], int]] = []
            for free in self._state.eligible(self._demand):
                steps = self._clear(free)
                if steps is not None:
                    options.append((self._cost(steps), free.index))
                    self._undo(steps)
            if not options:
                return
            free = self._state.nodes[min(options)[1]]
            self._clear(free)
            self._state.put(self._demand, free, 1)

    def _cost(self, steps: list[_Step]) -> tuple[int, int, int]:
        ended = [self._state.demands[step.demand].priority for step in steps if step.target is None]
        return sum(each != "batch" for each in ended), sum(each == "batch" for each in ended), len(steps) - len(ended)

    def _clear(self, free: Free) -> list[_Step] | None:
        """Steps after which one Pod fits on the node, done; None, and nothing done, where there are none."""
        done: list[_Step] = []
        while not free.fits(self._request, 1):
            step = self._move(free) or self._end(free, "batch") or self._end(free, "serving")
            if step is None:
                self._undo(done)
                return None
            self._do(step)
            done.append(step)
        return done

    def _here(self, free: Free) -> list[Demand]:
        """Demands with Pods on the node that would help, those with the fewest GPUs first."""
        names = {
            each.demand
            for each in self._state.assignments
            if each.node == free.node.name and each.demand in self._running and not each.slices
        }
        demands = [self._state.demands[name] for name in names]
        helpful = [demand for demand in demands if demand.nodes_per_replica == 1 and self._helps(free, demand)]
        return sorted(helpful, key=lambda demand: (demand.gpu, demand.cpu, demand.name))

    def _helps(self, free: Free, demand: Demand) -> bool:
        """Whether it holds some of what the node lacks."""
        has, lacks = self._state.requests[demand.name], self._request
        if lacks.resource == has.resource and free.gpu_room(lacks, lacks.gpu) < lacks.gpu:
            return True
        return bool((free.milli < lacks.milli and has.milli) or (free.memory < lacks.memory and has.memory))

    def _move(self, free: Free) -> _Step | None:
        for demand in self._here(free):
            if not demand.movable:
                continue
            request: Request = self._state.requests[demand.name]
            targets = [each for each in self._state.eligible(demand) if each is not free]
            target = next((each for each in candidates(targets, request) if _holds(each, request)), None)
            if target is not None:
                return _Step(demand.name, free, target)
        return None

    def _end(self, free: Free, priority: Priority) -> _Step | None:
        for demand in self._here(free):
            least = may_lose(demand, self._demand.priority)
            if demand.priority != priority or least is None:
                continue
            if sum(self._state.pods(demand.name).values()) > least:
                return _Step(demand.name, free, None)
        return None

    def _do(self, step: _Step) -> None:
        request = self._state.requests[step.demand]
        step.origin.leave(request, 1)
        self._count(step.demand, step.origin, -1)
        if step.target is not None:
            step.target.take(request, 1)
            self._count(step.demand, step.target, 1)

    def _undo(self, steps: list[_Step]) -> None:
        for step in reversed(steps):
            request = self._state.requests[step.demand]
            if step.target is not None:
                step.target.leave(request, 1)
                self._count(step.demand, step.target, -1)
            step.origin.take(request, 1)
            self._count(step.demand, step.origin, 1)

    def _count(self, demand: str, free: Free, more: int) -> None:
        """Adds Pods to what is noted of a demand on a node, or takes some away."""
        noted = self._state.assignments
        for index, each in enumerate(noted):
            if each.demand == demand and each.node == free.node.name and not each.slices:
                if each.pods + more:
                    noted[index] = Assignment(demand, free.node.name, each.pods + more)
                else:
                    del noted[index]
                return
        noted.append(Assignment(demand, free.node.name, more))


def _holds(free: Free, request: Request) -> bool:
    """Whether it fits, and on no GPU that would have to be cut for it: that could not be undone."""
    ready = request.resource is None or free.gpus.get(request.resource, 0) >= request.gpu
    return ready and bool(free.fits(request, 1))
