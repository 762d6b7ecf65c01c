"""What is free on every node while demands are placed, in whole numbers; nothing here decides where a demand goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from infra.errors import UserError
from infra.placement.mig import Geometry, Profile, best_start, geometry_of, most, room
from infra.placement.model import Assignment, Demand, Node, Pool, Slice, geometry_error, mig_resource, milli


class PlacementError(UserError):
    """Pools, demands and what runs don't go together."""


@dataclass(frozen=True)
class Request:
    """What one Pod asks for."""

    milli: int
    memory: int
    resource: str | None
    gpu: int
    profile: str | None

    @classmethod
    def of(cls, demand: Demand) -> Request:
        return cls(milli(demand.cpu), demand.memory, demand.resource, demand.gpu, demand.mig if demand.gpu else None)


class Free:
    """What is free on one node."""

    def __init__(self, node: Node, pool: Pool, index: int) -> None:
        self.node, self.pool, self.index = node, pool, index
        self.geometry: Geometry | None = geometry_of(pool.product) if node.cut else None
        self.milli, self.memory, self.gpus = round(node.cpu * 1000), node.memory, dict(node.gpus)
        self.cut = [0] * node.cut
        """What each GPU that is cut on demand holds, as `Geometry` has it."""
        self.pods = 0
        self._cut_room = sum(room(self.geometry, taken) for taken in self.cut) if self.geometry else 0
        for each in node.taken:
            self._occupy(each)

    def fits(self, request: Request, at_most: int) -> int:
        """How many Pods fit beside what is there."""
        count = at_most
        if request.milli:
            count = min(count, self.milli // request.milli)
        if request.memory:
            count = min(count, self.memory // request.memory)
        if request.resource is not None and count > 0:
            count = min(count, self.gpu_room(request, count * request.gpu) // request.gpu)
        return max(count, 0)

    def gpu_room(self, request: Request, enough: int) -> int:
        """How many GPUs, slices or shares of the request's kind are free; counting ends at `enough`."""
        assert request.resource is not None
        free = self.gpus.get(request.resource, 0)
        profile = self._profile(request)
        if profile is None or self.geometry is None:
            return free
        for taken in self.cut:
            if free >= enough:
                break
            free += most(self.geometry, taken, profile)
        return free

    def take(self, request: Request, pods: int) -> list[Slice]:
        """Takes what fits, and returns the slices that were cut for it."""
        self.milli -= pods * request.milli
        self.memory -= pods * request.memory
        self.pods += pods
        if request.resource is None:
            return []
        wanted = pods * request.gpu
        ready = min(wanted, self.gpus.get(request.resource, 0))
        if ready:
            self.gpus[request.resource] -= ready
        return [self._cut(request) for _ in range(wanted - ready)]

    def take_as(self, request: Request, assignment: Assignment) -> None:
        """Takes what already runs. Raises PlacementError where the node hasn't got it."""
        name, pods = self.node.name, assignment.pods
        cut = len(assignment.slices)
        if cut and request.profile is None:
            raise PlacementError(f"{assignment.demand} runs on slices of node {name}, and asks for none")
        if any(each.profile != request.profile for each in assignment.slices):
            raise PlacementError(f"{assignment.demand} runs on slices of node {name} that it doesn't ask for")
        for each in assignment.slices:
            self._occupy(each)
        self.milli -= pods * request.milli
        self.memory -= pods * request.memory
        self.pods += pods
        left = 0
        if request.resource is not None:
            left = self.gpus.get(request.resource, 0) - (pods * request.gpu - cut)
            self.gpus[request.resource] = left
        if min(self.milli, self.memory, left) < 0:
            raise PlacementError(f"more runs on node {name} than it has; the last is {assignment.demand}")

    def leave(self, request: Request, pods: int) -> None:
        """Undoes `take` of Pods that no slice was cut for."""
        self.milli += pods * request.milli
        self.memory += pods * request.memory
        self.pods -= pods
        if request.resource is not None:
            self.gpus[request.resource] += pods * request.gpu

    def left(self, request: Request) -> int:
        """How much is left of what the request's GPUs are of: by it, the fullest node is found."""
        if request.resource is None:
            return sum(self.gpus.values()) + len(self.cut)
        left = self.gpus.get(request.resource, 0)
        if self.cut and self.geometry is not None and request.profile is not None:
            left += self._cut_room
        return left

    def _profile(self, request: Request) -> Profile | None:
        if self.geometry is None or request.profile is None:
            return None
        return self.geometry.profile(request.profile)

    def _cut(self, request: Request) -> Slice:
        """Cuts a slice of the GPU that has the least room for it."""
        profile = self._profile(request)
        assert self.geometry is not None
        assert profile is not None
        found: tuple[int, int, int] | None = None
        for gpu, taken in enumerate(self.cut):
            start = best_start(self.geometry, taken, profile)
            if start is not None:
                option = (room(self.geometry, taken), gpu, start)
                found = option if found is None else min(found, option)
        assert found is not None
        _, gpu, start = found
        self._set(gpu, self.geometry.bits(profile, start))
        return Slice(gpu, profile.name, start)

    def _occupy(self, each: Slice) -> None:
        profile = self.geometry.profile(each.profile) if self.geometry else None
        if self.geometry is None or profile is None or not 0 <= each.gpu < len(self.cut):
            raise PlacementError(
                f"node {self.node.name} can't hold a slice {each.profile} on its GPU {each.gpu}: it cuts "
                f"{len(self.cut)} GPUs of product {self.pool.product!r} on demand"
            )
        if each.start not in self.geometry.starts(self.cut[each.gpu], profile):
            raise PlacementError(
                f"node {self.node.name}: no slice {each.profile} can start at {each.start} of GPU {each.gpu}: NVIDIA "
                f"lets it start at {', '.join(map(str, profile.starts))}, and what is there must not overlap"
            )
        self._set(each.gpu, self.geometry.bits(profile, each.start))

    def _set(self, gpu: int, bits: int) -> None:
        assert self.geometry is not None
        before = self.cut[gpu]
        self.cut[gpu] = before | bits
        self._cut_room += room(self.geometry, before | bits) - room(self.geometry, before)


@dataclass(frozen=True)
class Largest:
    """Each at least 1."""

    gpus: int
    cpu: float
    memory: int
    geometry: Geometry | None


class State:
    """Every node's `Free`, and what lies where."""

    def __init__(self, pools: Sequence[Pool], demands: Sequence[Demand], running: Iterable[Assignment]) -> None:
        """Raises PlacementError where names are given twice, or what runs has no demand, node or room."""
        for error in filter(None, map(geometry_error, pools)):
            raise PlacementError(error)
        self.pools = tuple(pools)
        self.nodes = [Free(node, pool, 0) for pool in pools for node in pool.nodes]
        for index, free in enumerate(self.nodes):
            free.index = index
        self.by_name = {free.node.name: free for free in self.nodes}
        self.demands = {demand.name: demand for demand in demands}
        self.requests = {demand.name: Request.of(demand) for demand in demands}
        if len(self.by_name) < len(self.nodes) or len(self.demands) < len(demands):
            names = [free.node.name for free in self.nodes] + [demand.name for demand in demands]
            twice = next(name for name in names if names.count(name) > 1)
            raise PlacementError(f"{twice!r} is given twice; nodes and demands have names of their own")
        self.assignments: list[Assignment] = []
        for each in running:
            if each.demand not in self.demands or each.node not in self.by_name:
                raise PlacementError(f"{each.demand} runs on node {each.node}, and one of them is not given")
            self.by_name[each.node].take_as(self.requests[each.demand], each)
            self.assignments.append(each)
        self._eligible: dict[tuple[str | None, str | None, str | None], list[Free]] = {}
        self._largest: dict[tuple[str | None, str | None, str | None], Largest] = {}

    def eligible(self, demand: Demand) -> list[Free]:
        """The nodes that could hold a Pod of it were they empty, as far as pool, product and kind of GPU say."""
        key = (demand.pool, demand.product, demand.resource)
        found = self._eligible.get(key)
        if found is None:
            found = self._eligible[key] = [free for free in self.nodes if _is_eligible(free, demand)]
        return found

    def largest(self, demand: Demand) -> Largest:
        """What the largest of those nodes have."""
        key = (demand.pool, demand.product, demand.resource)
        found = self._largest.get(key)
        if found is None:
            nodes = [free.node for free in self.eligible(demand)]
            geometries = (geometry_of(free.pool.product) for free in self.eligible(demand))
            found = self._largest[key] = Largest(
                gpus=max((node.cost for node in nodes), default=1),
                cpu=max((node.cpu for node in nodes), default=0) or 1,
                memory=max((node.memory for node in nodes), default=0) or 1,
                geometry=next(filter(None, geometries), None),
            )
        return found

    def pods(self, demand: str) -> dict[str, int]:
        """Its Pods by node."""
        found: dict[str, int] = {}
        for each in self.assignments:
            if each.demand == demand:
                found[each.node] = found.get(each.node, 0) + each.pods
        return found

    def wanted(self) -> dict[str, int]:
        """Replicas that don't run, by demand. Raises PlacementError where more run than are asked for."""
        there = dict.fromkeys(self.demands, 0)
        for each in self.assignments:
            there[each.demand] += each.pods
        found: dict[str, int] = {}
        for name, demand in self.demands.items():
            replicas, rest = divmod(there[name], demand.nodes_per_replica)
            if rest or replicas > demand.replicas:
                raise PlacementError(
                    f"{name} has {there[name]} Pods running; it asks for {demand.replicas} replicas of "
                    f"{demand.nodes_per_replica}, so that at most {demand.replicas * demand.nodes_per_replica}, and "
                    "whole replicas, may run"
                )
            found[name] = demand.replicas - replicas
        return found

    def put(self, demand: Demand, free: Free, pods: int) -> None:
        slices = free.take(self.requests[demand.name], pods)
        self.assignments.append(Assignment(demand.name, free.node.name, pods, tuple(slices)))

    @property
    def gpus_used(self) -> int:
        return sum(free.node.cost for free in self.nodes if free.pods)

    def by_pool(self) -> Iterator[tuple[Pool, list[Free]]]:
        for pool in self.pools:
            yield pool, [self.by_name[node.name] for node in pool.nodes]


def _is_eligible(free: Free, demand: Demand) -> bool:
    if demand.pool not in (None, free.pool.name) or demand.product not in (None, free.pool.product):
        return False
    if demand.resource is None or free.node.gpus.get(demand.resource):
        return True
    return bool(
        demand.mig
        and free.geometry
        and free.geometry.profile(demand.mig)
        and demand.resource == mig_resource(demand.mig)
    )
