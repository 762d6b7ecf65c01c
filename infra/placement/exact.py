"""The exact way, by OR-tools' CP-SAT: places what can be placed with the fewest changes and on the fewest GPUs.

One number of Pods a demand and node; nodes have capacities; GPUs that are cut on demand choose among the ways to cut
them (`mig.cuts`). What matters is in levels: the best by the first is kept while the next is bettered.

https://developers.google.com/optimization/cp/cp_solver
"""

# OR-tools says only in part of which types its own are.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from infra.placement.mig import Slices, cuts
from infra.placement.model import PRIORITIES, Assignment, Demand, Priority, Slice, mig_resource
from infra.placement.state import Free, State

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel, IntVar, LinearExprT

MOST_VARIABLES = 20_000
"""Beyond so many the model itself takes longer than anybody waits."""


def is_available() -> bool:
    """Whether OR-tools is installed (extra `placement`)."""
    return importlib.util.find_spec("ortools") is not None


@dataclass(frozen=True)
class Problem:
    """What is to be decided."""

    state: State
    """With what runs."""
    wanted: Mapping[str, int]
    """Replicas that don't run, by demand."""
    nodes: Sequence[Free]
    """Those that may change; what is on others stays."""
    changes: bool = False
    """Whether what runs may be moved, shrunk and pre-empted; else it stays."""

    @property
    def size(self) -> int:
        """Variables, about."""
        index = {free.index for free in self.nodes}
        names = [name for name, replicas in self.wanted.items() if replicas] if not self.changes else self.wanted
        return sum(sum(free.index in index for free in self.state.eligible(self.state.demands[name])) for name in names)


@dataclass(frozen=True)
class Solution:
    assignments: tuple[Assignment, ...]
    """On the problem's nodes, with what stays there."""
    proven: bool
    """Whether none is better."""


def solve(problem: Problem, hint: Mapping[tuple[str, str], int], seconds: float) -> Solution | None:
    """The best that is found in so many seconds; None where nothing is.

    Args:
        hint: Pods by demand and node, where somebody has placed them already.
    """
    return _Model(problem, hint).solve(seconds)


def may_lose(demand: Demand, wanted: Priority) -> int | None:
    """To how many replicas a running demand may be taken down for others of that priority; None: to no fewer."""
    if demand.priority == "serving-critical":
        return None
    if demand.priority == "batch":
        return 0 if wanted != "batch" else None
    return demand.least if wanted != "batch" else None


def _highest(priorities: Iterable[Priority]) -> Priority:
    asking = set(priorities)
    for each in PRIORITIES:
        if each in asking:
            return each
    return PRIORITIES[-1]


class _Model:
    def __init__(self, problem: Problem, hint: Mapping[tuple[str, str], int]) -> None:
        from ortools.sat.python import cp_model  # noqa: PLC0415

        self._cp: Any = cp_model
        self._problem, self._state = problem, problem.state
        self._model: CpModel = cp_model.CpModel()
        self._nodes = {free.node.name: free for free in problem.nodes}
        self._now: dict[str, dict[str, int]] = {}
        """Pods that run, by demand and node."""
        self._elsewhere: Counter[str] = Counter()
        """Pods that run on other nodes, by demand."""
        self._stuck: dict[str, dict[str, list[Slice]]] = {node: {} for node in self._nodes}
        """Slices that stay, by node and demand."""
        for each in self._state.assignments:
            if each.node not in self._nodes:
                self._elsewhere[each.demand] += each.pods
                continue
            nodes = self._now.setdefault(each.demand, {})
            nodes[each.node] = nodes.get(each.node, 0) + each.pods
            if each.slices:
                self._stuck[each.node].setdefault(each.demand, []).extend(each.slices)
        self._wanted = {name: replicas for name, replicas in problem.wanted.items() if replicas}
        self._first: Priority = _highest(self._state.demands[name].priority for name in self._wanted)
        names = dict.fromkeys([*self._wanted, *self._now])
        self._demands = [self._state.demands[name] for name in names if problem.changes or name in self._wanted]
        self._x: dict[str, dict[str, IntVar]] = {}
        """Pods by demand and node."""
        self._lost: dict[str, IntVar] = {}
        self._moved: list[IntVar] = []
        self._unplaced: dict[str, IntVar] = {}
        self._ways: dict[str, list[tuple[int, list[int], Slices, IntVar]]] = {}
        for demand in self._demands:
            self._add_demand(demand)
        self._on: dict[str, list[tuple[Demand, IntVar]]] = {node: [] for node in self._nodes}
        for name, nodes in self._x.items():
            for node, variable in nodes.items():
                self._on[node].append((self._state.demands[name], variable))
        self._still: dict[str, list[tuple[str, int]]] = {node: [] for node in self._nodes}
        """Pods that nothing is decided about, by node."""
        for name, nodes in self._now.items():
            if name not in self._x:
                for node, pods in nodes.items():
                    self._still[node].append((name, pods))
        self._used = {name: self._add_node(free) for name, free in self._nodes.items()}
        self._hint(hint)

    # -- the model

    def _add_demand(self, demand: Demand) -> None:
        model, name, span = self._model, demand.name, demand.nodes_per_replica
        wanted = self._wanted.get(name, 0)
        now = self._now.get(name, {})
        there = sum(now.values())
        x = self._x[name] = {}
        nodes = [free for free in self._state.eligible(demand) if free.node.name in self._nodes]
        for free in nodes:
            most = min(there + wanted * span, self._most(demand, free))
            node = free.node.name
            kept = now.get(node, 0)
            stays = not self._problem.changes or name in self._stuck[node]
            x[node] = model.new_int_var(kept if stays else 0, max(most, kept), f"{name} on {node}")
        # What runs where it is not eligible (any more) stays there, and only counts.
        for node, pods in now.items():
            if node not in x:
                x[node] = model.new_int_var(pods, pods, f"{name} on {node}")
        least = may_lose(demand, self._first) if self._problem.changes and there else None
        replicas = there // span
        # Of a demand with replicas on other nodes, too, those count toward its least.
        elsewhere = self._elsewhere[name] // span
        most_lost = 0 if least is None else max(0, min(replicas, replicas + elsewhere - least))
        lost = self._lost[name] = model.new_int_var(0, most_lost, f"lost {name}")
        unplaced = self._unplaced[name] = model.new_int_var(0, wanted, f"unplaced {name}")
        placed = replicas + wanted - lost - unplaced
        model.add(sum(x.values()) == span * placed)
        if wanted and most_lost:
            # Nobody takes replicas of a demand away to place others of it.
            either = model.new_bool_var(f"grows {name}")
            model.add(lost == 0).only_enforce_if(either)
            model.add(unplaced == wanted).only_enforce_if(~either)
        if span > 1:
            self._add_spans(demand, x, placed)
        if self._problem.changes and there:
            self._add_changes(demand, x, now, lost)

    def _add_spans(self, demand: Demand, x: Mapping[str, IntVar], placed: LinearExprT) -> None:
        """Replicas of several Pods are each within one pool, no two Pods of one on one node.

        So many Pods can be dealt out to that many replicas exactly if no node has more of them than there are replicas.
        """
        pools: dict[str, list[IntVar]] = {}
        for node, variable in x.items():
            pools.setdefault(self._nodes[node].pool.name, []).append(variable)
        parts: list[IntVar] = []
        for pool, variables in pools.items():
            part = self._model.new_int_var(0, demand.replicas, f"replicas {demand.name} {pool}")
            self._model.add(sum(variables) == demand.nodes_per_replica * part)
            for variable in variables:
                self._model.add(variable <= part)
            parts.append(part)
        self._model.add(sum(parts) == placed)

    def _add_changes(self, demand: Demand, x: Mapping[str, IntVar], now: Mapping[str, int], lost: IntVar) -> None:
        model = self._model
        gone: list[IntVar] = []
        for node, pods in now.items():
            away = model.new_int_var(0, pods, f"away {demand.name} {node}")
            model.add(away >= pods - x[node])
            gone.append(away)
        moved = model.new_int_var(0, sum(now.values()), f"moved {demand.name}")
        model.add(moved + lost * demand.nodes_per_replica >= sum(gone))
        self._moved.append(moved)
        if not demand.movable or demand.nodes_per_replica > 1:
            # A replica of several Pods ends whole; which Pods are one replica's nobody has told.
            model.add(moved == 0)

    def _most(self, demand: Demand, free: Free) -> int:
        """How many Pods of a demand an empty node holds."""
        empty = Free(free.node, free.pool, free.index)
        return empty.fits(self._state.requests[demand.name], demand.replicas * demand.nodes_per_replica)

    def _add_node(self, free: Free) -> IntVar | int:
        model, name = self._model, free.node.name
        empty = Free(free.node, free.pool, free.index)
        still = [(self._state.requests[demand], pods) for demand, pods in self._still[name]]
        requests = [(self._state.requests[demand.name], x) for demand, x in self._on[name]]
        self._fit(
            [(request.milli, x) for request, x in requests],
            empty.milli - sum(request.milli * pods for request, pods in still),
        )
        self._fit(
            [(request.memory, x) for request, x in requests],
            empty.memory - sum(request.memory * pods for request, pods in still),
        )
        ways = self._ways[name] = self._add_ways(free)
        for resource in {request.resource for request, _ in requests if request.resource is not None}:
            takes = [(request.gpu, x) for request, x in requests if request.resource == resource]
            has = empty.gpus.get(resource, 0)
            has -= sum(request.gpu * pods for request, pods in still if request.resource == resource)
            # Slices that run on GPUs which are cut on demand are not of those that were cut beforehand.
            stuck = [each for slices in self._stuck[name].values() for each in slices]
            has += sum(mig_resource(each.profile) == resource for each in stuck)
            made = [
                (Counter(mig_resource(profile) for profile, _ in cut)[resource], count) for _, _, cut, count in ways
            ]
            self._model.add(
                sum(amount * x for amount, x in takes) <= has + sum(amount * count for amount, count in made if amount)
            )
        if still:
            return 1
        used = model.new_bool_var(f"used {name}")
        for _, x in self._on[name]:
            model.add(x == 0).only_enforce_if(~used)
        return used

    def _fit(self, takes: Sequence[tuple[int, IntVar]], has: int) -> None:
        """What Pods take together is at most what there is, in the largest unit that says it exactly."""
        unit = gcd(*(amount for amount, _ in takes)) or 1
        if any(amount for amount, _ in takes):
            self._model.add(sum(amount // unit * x for amount, x in takes if amount) <= has // unit)

    def _add_ways(self, free: Free) -> list[tuple[int, list[int], Slices, IntVar]]:
        """How many of the node's GPUs are cut in which way: of those that hold the same, so many each way."""
        if free.geometry is None:
            return []
        alike: dict[int, list[int]] = {}
        for gpu, taken in enumerate(free.cut):
            alike.setdefault(taken, []).append(gpu)
        found: list[tuple[int, list[int], Slices, IntVar]] = []
        for taken, gpus in alike.items():
            variables: list[IntVar] = []
            for number, cut in enumerate(cuts(free.geometry, taken)):
                count = self._model.new_int_var(0, len(gpus), f"cut {free.node.name} {taken} {number}")
                variables.append(count)
                found.append((taken, gpus, cut, count))
            self._model.add(sum(variables) == len(gpus))
        return found

    def _hint(self, hint: Mapping[tuple[str, str], int]) -> None:
        for name, nodes in self._x.items():
            for node, variable in nodes.items():
                self._model.add_hint(variable, hint.get((name, node), 0))

    # -- the search

    def _levels(self) -> list[LinearExprT]:
        """What is to be least, the most important first."""

        def unplaced(priority: Priority) -> LinearExprT:
            return sum(self._unplaced[d.name] for d in self._demands if d.priority == priority)

        def lost(priority: Priority) -> LinearExprT:
            return sum(self._lost[d.name] for d in self._demands if d.priority == priority)

        used = sum(self._nodes[name].node.cost * used for name, used in self._used.items())
        if not self._problem.changes:
            return [*(unplaced(priority) for priority in PRIORITIES), used]
        return [
            unplaced("serving-critical"),
            unplaced("serving"),
            lost("serving"),
            lost("batch"),
            unplaced("batch"),
            sum(self._moved),
            used,
        ]

    def solve(self, seconds: float) -> Solution | None:
        deadline = time.monotonic() + seconds
        found: Any = None
        proven = True
        for level in self._levels():
            if isinstance(level, int):
                continue
            solver = self._cp.CpSolver()
            solver.parameters.max_time_in_seconds = max(0.05, deadline - time.monotonic())
            # One worker gives the same answer every time.
            solver.parameters.num_workers = 1
            solver.parameters.random_seed = 0
            self._model.minimize(level)
            status = solver.solve(self._model)
            if status not in (self._cp.OPTIMAL, self._cp.FEASIBLE):
                proven = False
                break
            proven = proven and status == self._cp.OPTIMAL
            best = round(solver.objective_value)
            self._model.add(level <= best)
            found = {variable.index: solver.value(variable) for variable in self._variables()}
            self._model.clear_hints()
            for variable in self._variables():
                self._model.add_hint(variable, found[variable.index])
        return None if found is None else self._solution(found, proven)

    def _variables(self) -> list[IntVar]:
        ways = [count for found in self._ways.values() for *_, count in found]
        pods = [variable for nodes in self._x.values() for variable in nodes.values()]
        return [*pods, *ways, *(used for used in self._used.values() if not isinstance(used, int))]

    def _solution(self, value: Mapping[int, int], proven: bool) -> Solution:
        assignments: list[Assignment] = []
        for name, free in self._nodes.items():
            ready = Free(free.node, free.pool, free.index).gpus
            made = self._made(name, value)
            decided = [(demand.name, value[variable.index]) for demand, variable in self._on[name]]
            for demand, count in (*decided, *self._still[name]):
                if not count:
                    continue
                request = self._state.requests[demand]
                slices = list(self._stuck[name].get(demand, ()))
                need = count * request.gpu - len(slices)
                if request.resource is not None:
                    of_ready = min(need, ready.get(request.resource, 0))
                    ready[request.resource] = ready.get(request.resource, 0) - of_ready
                    slices += [made[request.profile or ""].pop() for _ in range(need - of_ready)]
                assignments.append(Assignment(demand, name, count, tuple(slices)))
        return Solution(tuple(assignments), proven)

    def _made(self, node: str, value: Mapping[int, int]) -> dict[str, list[Slice]]:
        """The slices that a node's GPUs are cut into, by profile."""
        found: dict[str, list[Slice]] = {}
        left: dict[int, list[int]] = {}
        for taken, gpus, cut, count in self._ways[node]:
            free = left.setdefault(taken, list(gpus))
            for _ in range(value[count.index]):
                gpu = free.pop()
                for profile, start in cut:
                    found.setdefault(profile, []).append(Slice(gpu, profile, start))
        return found
