"""What there is, what is asked for and what runs, as placement takes it: pools of nodes, demands, assignments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from infra.placement.mig import geometry_of

Priority = Literal["serving-critical", "serving", "batch"]
PRIORITIES: tuple[Priority, ...] = ("serving-critical", "serving", "batch")
"""First come first."""

WHOLE_GPU = "nvidia.com/gpu"
SHARED_GPU = "nvidia.com/gpu.shared"


def mig_resource(profile: str) -> str:
    """What NVIDIA's device plugin calls slices of a profile: `nvidia.com/mig-1g.10gb`."""
    return f"nvidia.com/mig-{profile.replace('+', '.')}"


@dataclass(frozen=True)
class Slice:
    """A MIG slice at its place."""

    gpu: int
    """Which of the node's GPUs that are cut on demand, from 0."""
    profile: str
    start: int
    """Its first slice of memory."""


@dataclass(frozen=True)
class Node:
    name: str
    cpu: float
    """Cores that Pods may have."""
    memory: int
    """Bytes."""
    gpus: Mapping[str, int] = field(default_factory=dict[str, int])
    """By resource: `nvidia.com/gpu`, `nvidia.com/mig-PROFILE` where slices are cut beforehand, `nvidia.com/gpu.shared`
    where GPUs are time-sliced."""
    cut: int = 0
    """GPUs more that are cut into MIG slices as they are asked for, by their product's geometry."""
    taken: tuple[Slice, ...] = ()
    """Slices that are on those already, and stay."""
    devices: int | None = None
    """GPUs that it has, whole; None: as many as `gpus` can stand for at most, a share as one."""

    @property
    def cost(self) -> int:
        """GPUs that are in use once the node is; at least 1, as a node without any is none the less one."""
        return max(1, self.cut + sum(self.gpus.values()) if self.devices is None else self.devices)


@dataclass(frozen=True)
class Pool:
    """Nodes whose GPUs are of one product."""

    name: str
    product: str | None
    nodes: tuple[Node, ...]

    @classmethod
    def of(cls, name: str, product: str | None, count: int, shape: Node) -> Pool:
        """So many nodes alike, named `POOL-0`, `POOL-1`, …"""
        return cls(
            name,
            product,
            tuple(
                Node(f"{name}-{i}", shape.cpu, shape.memory, shape.gpus, shape.cut, shape.taken, shape.devices)
                for i in range(count)
            ),
        )


@dataclass(frozen=True)
class Demand:
    """What the replicas of a version ask for."""

    name: str
    replicas: int
    cpu: float = 0.0
    """Cores a Pod."""
    memory: int = 0
    """Bytes a Pod."""
    gpu: int = 0
    """GPUs a Pod, all on its node: whole ones, or slices, or shares."""
    mig: str | None = None
    """The profile of the slices."""
    shared: bool = False
    """Whether they are shares of time-sliced GPUs."""
    product: str | None = None
    pool: str | None = None
    priority: Priority = "serving"
    nodes_per_replica: int = 1
    """Pods a replica, each on a node of its own, all in one pool."""
    movable: bool = True
    """Whether a replica may be started elsewhere and ended here."""
    least: int | None = None
    """The fewest replicas that it may be shrunk to; None: it isn't."""

    @property
    def resource(self) -> str | None:
        if not self.gpu:
            return None
        return mig_resource(self.mig) if self.mig else SHARED_GPU if self.shared else WHOLE_GPU

    @property
    def what(self) -> str:
        """What its GPUs are called: `GPUs`, `1g.10gb slices`, `shared GPUs`."""
        one = self.gpu == 1
        kind = f"{self.mig} slice" if self.mig else "shared GPU" if self.shared else "GPU"
        return kind if one else f"{kind}s"


@dataclass(frozen=True)
class Assignment:
    """Pods of a demand on a node."""

    demand: str
    node: str
    pods: int
    slices: tuple[Slice, ...] = ()
    """Theirs, of GPUs that are cut on demand."""


@dataclass(frozen=True)
class Unplaced:
    demand: str
    replicas: int
    reason: str
    """Which pool lacks what."""


@dataclass(frozen=True)
class Fragmentation:
    """What is free of one resource in a pool, and how much of it nobody with a larger request can use."""

    pool: str
    resource: str
    total: int
    free: int
    together: int
    """The most that is free on one node."""
    stranded: Mapping[int, int]
    """By size of request: what is free in pieces too small for it."""


@dataclass(frozen=True)
class Placement:
    """Where everything lies."""

    assignments: tuple[Assignment, ...]
    """What ran before among them."""
    unplaced: tuple[Unplaced, ...]
    fragmentation: tuple[Fragmentation, ...]
    gpus_used: int
    """GPUs of the nodes that hold something; a node without GPUs counts as one."""
    lower_bound: int
    """No placement of the same replicas uses fewer."""
    exact: bool
    """Whether it is known that none is better: none with more replicas placed, by priority, nor with fewer GPUs."""
    method: str
    """What found it: `cp-sat` or `first-fit-decreasing`."""

    def pods(self) -> dict[str, dict[str, int]]:
        """Pods by demand and node."""
        found: dict[str, dict[str, int]] = {}
        for each in self.assignments:
            nodes = found.setdefault(each.demand, {})
            nodes[each.node] = nodes.get(each.node, 0) + each.pods
        return found


def milli(cores: float) -> int:
    """Thousandths of a core, rounded up as Kubernetes does: it knows no smaller part."""
    return ceil(round(cores * 1000, 6))


def geometry_error(pool: Pool) -> str | None:
    """Why a pool's GPUs can't be cut on demand."""
    if geometry_of(pool.product) is None and any(node.cut for node in pool.nodes):
        return f"pool {pool.name}: how GPUs of product {pool.product!r} are cut is not known; give their slices as gpus"
    return None
