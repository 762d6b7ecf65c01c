"""What an environment says it has and holds (`infra.contracts.NodeInventory`), as pools, demands and assignments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from infra.contracts import Held, NodeInventory
from infra.placement.mig import best_start, geometry_of
from infra.placement.model import PRIORITIES, SHARED_GPU, WHOLE_GPU, Assignment, Demand, Node, Pool, Priority, milli

_MIG = "nvidia.com/mig-"
_PRIORITIES: dict[str, Priority] = {each: each for each in PRIORITIES}


@dataclass(frozen=True)
class Inventory:
    pools: tuple[Pool, ...]
    demands: tuple[Demand, ...]
    """What runs, as it runs. A holder whose Pods differ has a demand a kind of Pod: `NAME`, `NAME (2)`, …"""
    running: tuple[Assignment, ...]


def from_inventory(nodes: Sequence[NodeInventory], known: Mapping[str, Demand] | None = None) -> Inventory:
    """What placement needs of the nodes that new replicas may come to; others, and what is on them, are left out.

    A node that has less than runs on it, as one that is promised twice over or has lost a GPU, is full.

    Args:
        known: What is known of holders beyond what they hold: priority, span, what may be moved and shrunk. Of an
            unknown one nothing is moved; only `batch` is ever pre-empted.
    """
    usable = [node for node in nodes if node["ready"]]
    pools: dict[tuple[str, str | None], list[Node]] = {}
    kinds: dict[str, list[Demand]] = {}
    running: list[Assignment] = []
    for node in usable:
        cpu, memory, gpus = node["cpu"], node["memory"], dict(node["gpus"])
        runs = _Runs()
        for held in node["held"]:
            demand = _demand(held, (known or {}).get(held["holder"]))
            if demand is None:
                # Nothing that a demand can say: it is as if the node had less.
                cpu, memory = max(0.0, cpu - held["cpu"]), max(0, memory - held["memory"])
                gpus |= {name: gpus.get(name, 0) - count for name, count in held["gpus"].items() if name in gpus}
                continue
            of_holder = kinds.setdefault(held["holder"], [])
            place = next((i for i, each in enumerate(of_holder) if _same_pod(each, demand)), None)
            if place is None:
                place = len(of_holder)
                name = demand.name if not place else f"{demand.name} ({place + 1})"
                of_holder.append(replace(demand, name=name, replicas=0))
            # Pods for now: whole replicas are known once all nodes are seen.
            of_holder[place] = replace(of_holder[place], replicas=of_holder[place].replicas + held["replicas"])
            running.append(Assignment(of_holder[place].name, node["name"], held["replicas"]))
            runs.add(demand, held)
        devices = _devices(runs.at_least(node["gpus"]), node["product"])
        cpu, memory = max(cpu, runs.milli / 1000), max(memory, runs.memory)
        found = Node(node["name"], cpu, memory, runs.at_least(gpus), devices=devices)
        pools.setdefault((node["pool"], node["product"]), []).append(found)
    demands = [_whole(demand) for of_holder in kinds.values() for demand in of_holder]
    return Inventory(
        tuple(Pool(name, product, tuple(members)) for (name, product), members in sorted(pools.items(), key=_by_name)),
        tuple(demands),
        tuple(running),
    )


@dataclass
class _Runs:
    """What the Pods on a node are counted with: each Pod's part, rounded up."""

    milli: int = 0
    memory: int = 0
    gpus: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, pod: Demand, held: Held) -> None:
        self.milli += held["replicas"] * milli(pod.cpu)
        self.memory += held["replicas"] * pod.memory
        for name, count in held["gpus"].items():
            self.gpus[name] = self.gpus.get(name, 0) + count

    def at_least(self, gpus: Mapping[str, int]) -> dict[str, int]:
        return {name: max(gpus.get(name, 0), self.gpus.get(name, 0)) for name in [*gpus, *self.gpus]}


def _by_name(item: tuple[tuple[str, str | None], list[Node]]) -> tuple[str, str]:
    (name, product), _ = item
    return name, product or ""


def _demand(held: Held, known: Demand | None) -> Demand | None:
    """One Pod of the holder; None where it holds nothing, or several kinds of GPU, or of another make."""
    count = held["replicas"]
    gpus = {name: amount for name, amount in held["gpus"].items() if amount}
    if count < 1 or len(gpus) > 1 or any(amount % count for amount in gpus.values()):
        return None
    resource, amount = next(iter(gpus.items()), (None, 0))
    if resource not in (None, WHOLE_GPU, SHARED_GPU) and not resource.startswith(_MIG):
        return None
    # Who is of none of ours is not for us to touch.
    priority = _PRIORITIES.get(held["priority"], PRIORITIES[0])
    mig = resource.removeprefix(_MIG).replace(".me", "+me") if resource and resource.startswith(_MIG) else None
    demand = known or Demand(held["holder"], 0, priority=priority, movable=False)
    return replace(
        demand,
        replicas=count,
        cpu=held["cpu"] / count,
        memory=ceil(held["memory"] / count),
        gpu=amount // count,
        mig=mig,
        shared=resource == SHARED_GPU,
    )


def _same_pod(one: Demand, other: Demand) -> bool:
    return replace(one, name="", replicas=0) == replace(other, name="", replicas=0)


def _whole(demand: Demand) -> Demand:
    """With its replicas instead of its Pods. One that lacks Pods of a replica is as it is, and stays."""
    replicas, rest = divmod(demand.replicas, demand.nodes_per_replica)
    if rest:
        return replace(demand, nodes_per_replica=1, movable=False, priority="serving-critical")
    return replace(demand, replicas=replicas)


def _devices(gpus: Mapping[str, int], product: str | None) -> int | None:
    """How many whole GPUs these are, as far as that is known: slices are packed onto as few as they can be cut from."""
    geometry = geometry_of(product)
    slices = {name.removeprefix(_MIG).replace(".me", "+me"): n for name, n in gpus.items() if name.startswith(_MIG)}
    if not slices:
        return None
    if geometry is None:
        return None
    cut: list[int] = []
    for profile in geometry.profiles:
        for _ in range(slices.get(profile.name, 0)):
            starts = [best_start(geometry, taken, profile) for taken in cut]
            gpu = next((i for i, start in enumerate(starts) if start is not None), len(cut))
            if gpu == len(cut):
                cut.append(0)
            start = best_start(geometry, cut[gpu], profile)
            assert start is not None
            cut[gpu] |= geometry.bits(profile, start)
    return len(cut) + sum(count for name, count in gpus.items() if not name.startswith(_MIG))
