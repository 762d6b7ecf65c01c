"""What a cluster's nodes have, and who holds what of it: read from nodes, Pods and namespaces. Pure.

A Pod holds what its containers request, whether or not it uses it:
https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, get_args

from infra.cluster.internals import PoolFacts
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.gpus import GPU
from infra.cluster.manifests.priorities import priority_class_name
from infra.cluster.manifests.quantities import number, parse, size
from infra.cluster.manifests.scheduling import PRODUCT_LABEL
from infra.cluster.names import ENVIRONMENT_LABEL, MODEL_LABEL, TEAM_LABEL, VERSION_LABEL
from infra.contracts import Amount, Held, NodeInventory, Room
from infra.names import version_stack
from infra.settings.version import Priority

_GPU_RESOURCES = "nvidia.com/"
_ENDED = ("Succeeded", "Failed")
_MEBIBYTE = 2**20
_LEAST = 0.0005
"""Cores: what is less is an error of floats, as Kubernetes counts thousandths."""

Amounts = dict[str, Fraction]


def inventory(
    nodes: Iterable[Manifest],
    pods: Iterable[Manifest],
    namespaces: Iterable[Manifest],
    pools: Iterable[PoolFacts],
    platform_namespace: str,
) -> list[NodeInventory]:
    """Node by node, in the order of their names.

    `namespaces`: those of versions, which hold by `TEAM/ENV.MODEL-VERSION`; other Pods hold by their namespace's name.
    """
    holders = {namespace["metadata"]["name"]: holder_of(namespace) for namespace in namespaces}
    priorities: dict[str, str] = {priority_class_name(platform_namespace, known): known for known in get_args(Priority)}
    held: dict[str, dict[tuple[str, str], list[Amounts]]] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if not node or pod.get("status", {}).get("phase") in _ENDED:
            continue
        namespace: str = pod["metadata"]["namespace"]
        class_name: str = pod["spec"].get("priorityClassName", "")
        key = holders.get(namespace, namespace), priorities.get(class_name, class_name)
        held.setdefault(node, {}).setdefault(key, []).append(pod_requests(pod))
    kinds = list(pools)
    return [
        _node(node, kinds, held.get(node["metadata"]["name"], {}))
        for node in sorted(nodes, key=lambda node: node["metadata"]["name"])
    ]


def room(nodes: Iterable[NodeInventory], environment_holders: frozenset[str]) -> Room:
    """What the nodes that take replicas have, without what others hold, and what the environment's versions do."""
    total, reserved = _nothing(), _nothing()
    for node in nodes:
        if node["ready"]:
            _add(total, node["cpu"], node["memory"], node["gpus"])
        for held in node["held"]:
            if held["holder"] in environment_holders:
                _add(reserved, held["cpu"], held["memory"], held["gpus"])
            elif node["ready"]:
                _add(total, held["cpu"], held["memory"], held["gpus"], sign=-1)
    return {"total": total, "reserved": reserved}


def holder_of(namespace: Manifest) -> str:
    """`TEAM/ENV.MODEL-VERSION` of a version's namespace."""
    metadata = namespace["metadata"]
    # A label may be too short for a version; the annotation has it whole.
    facts: dict[str, str] = {**metadata.get("labels", {}), **metadata.get("annotations", {})}
    return f"{facts[TEAM_LABEL]}/{version_stack(facts[ENVIRONMENT_LABEL], facts[MODEL_LABEL], facts[VERSION_LABEL])}"


def pod_requests(pod: Manifest) -> Amounts:
    """What a Pod is promised, by resource."""
    spec = pod["spec"]
    whole: Mapping[str, str] = spec.get("resources", {}).get("requests", {})
    sidecars: Amounts = {}
    peaks: list[Amounts] = []
    for container in spec.get("initContainers", []):
        if container.get("restartPolicy") == "Always":
            sidecars = _sum([sidecars, _requests(container)])
            peaks.append(sidecars)
        else:
            peaks.append(_sum([sidecars, _requests(container)]))
    running = _sum([sidecars, *(_requests(container) for container in spec["containers"])])
    overhead = {name: parse(amount) for name, amount in spec.get("overhead", {}).items()}
    own = {name: parse(amount) for name, amount in whole.items()}
    return _sum([_greatest([running, *peaks]) | own, overhead])


def shortage(nodes: Iterable[NodeInventory], resource: str, needed: float) -> str:
    """Which of these nodes' pools lack what, for a replica that needs so much on one node: a phrase each.

    `needed`: GPUs, cores of `cpu`, or bytes of `memory`.
    """
    free: dict[str, list[float]] = {}
    for node in nodes:
        if node["ready"] and resource in (has := _amounts(node)):
            taken = sum(_amounts(held).get(resource, 0) for held in node["held"])
            free.setdefault(node["pool"], []).append(max(0, has[resource] - taken))
    if not free:
        return f"no node that is ready has {resource}"
    return "; ".join(
        f"{f'pool {pool}' if pool else 'nodes of no pool'} lack{'s' if pool else ''} {_said(resource, needed)} "
        f"{resource} on one node: {_said(resource, sum(amounts))} {'is' if sum(amounts) == 1 else 'are'} free, at most "
        f"{_said(resource, max(amounts))} together"
        for pool, amounts in sorted(free.items())
        if needed - max(amounts) >= _LEAST
    )


def matches(node: Manifest, selector: Mapping[str, str]) -> bool:
    """Whether a node has these labels."""
    return selector.items() <= node["metadata"].get("labels", {}).items()


def _node(node: Manifest, pools: list[PoolFacts], held: Mapping[tuple[str, str], list[Amounts]]) -> NodeInventory:
    metadata, status = node["metadata"], node.get("status", {})
    labels: dict[str, str] = metadata.get("labels", {})
    allocatable = {name: parse(amount) for name, amount in status.get("allocatable", {}).items()}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    return {
        "name": metadata["name"],
        "pool": next((pool["name"] for pool in pools if matches(node, pool["labels"])), ""),
        "product": labels.get(PRODUCT_LABEL),
        "ready": ready and not node["spec"].get("unschedulable", False),
        "cpu": float(allocatable.get("cpu", 0)),
        "memory": int(allocatable.get("memory", 0)),
        "gpus": _gpus(allocatable),
        "held": [
            _held(holder, priority, requests) for (holder, priority), requests in sorted(held.items()) if requests
        ],
    }


def _held(holder: str, priority: str, requests: list[Amounts]) -> Held:
    total = _sum(requests)
    return {
        "holder": holder,
        "replicas": len(requests),
        "priority": priority,
        "cpu": float(total.get("cpu", 0)),
        "memory": int(total.get("memory", 0)),
        "gpus": _gpus(total),
    }


def _said(resource: str, amount: float) -> str:
    if resource != "memory":
        return number(amount)
    count = int(amount)
    return size(count - count % _MEBIBYTE if count > _MEBIBYTE else count)


def _amounts(of: NodeInventory | Held) -> dict[str, float]:
    return {"cpu": of["cpu"], "memory": of["memory"], **of["gpus"]}


def _gpus(amounts: Mapping[str, Fraction]) -> dict[str, int]:
    return {name: int(amount) for name, amount in amounts.items() if name.startswith(_GPU_RESOURCES) and amount}


def _requests(container: Mapping[str, Any]) -> Amounts:
    resources: Mapping[str, Mapping[str, str]] = container.get("resources", {})
    # What has a limit and no request is promised its limit.
    return {
        name: parse(amount) for name, amount in {**resources.get("limits", {}), **resources.get("requests", {})}.items()
    }


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for amount in amounts:
        for name, value in amount.items():
            total[name] = total.get(name, Fraction(0)) + value
    return total


def _greatest(amounts: Iterable[Amounts]) -> Amounts:
    greatest: Amounts = {}
    for amount in amounts:
        for name, value in amount.items():
            greatest[name] = max(greatest.get(name, Fraction(0)), value)
    return greatest


def _nothing() -> Amount:
    return {"cpu": 0.0, "memory": 0, "gpu": 0}


def _add(amount: Amount, cpu: float, memory: int, gpus: Mapping[str, int], sign: int = 1) -> None:
    amount["cpu"] += sign * cpu
    amount["memory"] += sign * memory
    amount["gpu"] += sign * gpus.get(GPU, 0)
