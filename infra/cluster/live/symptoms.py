"""What keeps a version's Pods from being ready, read from what Kubernetes says of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from infra.cluster.live.nodes import pod_requests, shortage
from infra.cluster.manifests import Manifest
from infra.contracts import NodeInventory

_STARTING = ("ContainerCreating", "PodInitializing")
"""Reasons to wait for that pass by themselves."""


def unready_because(
    workloads: Iterable[Manifest],
    pods: Iterable[Manifest],
    nodes: Iterable[NodeInventory],
    events: Iterable[Manifest],
    claims: Iterable[Manifest] = (),
) -> list[str]:
    """A line for each thing that is known to.

    `workloads`: the version's Deployments and ReplicaSets; `nodes`: those that its Pods may be on; `events`: warnings
    that no Pod could be made; `claims`: the ResourceClaimTemplates that its Pods may name.
    """
    usable = list(nodes)
    devices = {claim["metadata"]["name"]: claim for claim in claims}
    lines = [line for workload in workloads for line in _of_workload(workload)]
    lines += [f"no Pod can be made: {event['message']}" for event in events if event.get("message")]
    for pod in pods:
        if not pod["metadata"].get("deletionTimestamp"):
            lines += _of_pod(pod, usable, devices)
    # A Deployment repeats what its ReplicaSet says.
    return list(dict.fromkeys(lines))


def _of_workload(workload: Manifest) -> Iterator[str]:
    for condition in workload.get("status", {}).get("conditions", []):
        kind, status, message = condition["type"], condition["status"], condition.get("message", "")
        if kind == "ReplicaFailure" and status == "True":
            # Quotas and admission policies and webhooks refuse Pods.
            yield f"no Pod can be made: {message}"


def _of_pod(pod: Manifest, nodes: list[NodeInventory], claims: Mapping[str, Manifest]) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"Pod {name} has no node: {condition.get('message', condition.get('reason', ''))}"
            yield from _lacking(pod, nodes)
            yield from _claimed(pod, claims)
    if status.get("phase") == "Failed":
        yield f"Pod {name} failed: {_said(status)}"
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        yield from _of_container(name, container)


def _lacking(pod: Manifest, nodes: list[NodeInventory]) -> Iterator[str]:
    selector: dict[str, str] = pod["spec"].get("nodeSelector", {})
    if selector and not any(node["ready"] for node in nodes):
        yield f"no node that is ready has the labels {', '.join(f'{k}={v}' for k, v in sorted(selector.items()))}"
        return
    requests = pod_requests(pod)
    gpus = [resource for resource, amount in requests.items() if "/" in resource and amount]
    # What the others lack besides GPUs it would not help to know.
    usable = [node for node in nodes if node["gpus"].keys() >= set(gpus)]
    wanted = [(nodes, resource) for resource in gpus]
    if any(node["ready"] for node in usable):
        wanted += [(usable, resource) for resource in ("cpu", "memory") if requests.get(resource)]
    for among, resource in wanted:
        lacking = shortage(among, resource, float(requests[resource]))
        if lacking:
            yield lacking


def _claimed(pod: Manifest, claims: Mapping[str, Manifest]) -> Iterator[str]:
    """What it asks for by Dynamic Resource Allocation: what of it is free stands in no node's status."""
    for named in pod["spec"].get("resourceClaims", []):
        template = claims.get(named.get("resourceClaimTemplateName", ""), {})
        for request in template.get("spec", {}).get("spec", {}).get("devices", {}).get("requests", []):
            exactly = request.get("exactly", {})
            if exactly:
                yield (
                    f"it claims {exactly.get('count', 1)} of DeviceClass {exactly['deviceClassName']} on one node; "
                    "`kubectl get resourceslices` says which nodes have any"
                )


def _of_container(pod: str, status: dict[str, Any]) -> Iterator[str]:
    what = f"Pod {pod}, container {status['name']}"
    waiting, last = status.get("state", {}).get("waiting"), status.get("lastState", {}).get("terminated")
    ended = status.get("state", {}).get("terminated")
    if waiting and waiting.get("reason") not in _STARTING:
        yield f"{what} waits: {_said(waiting)}"
    if ended and ended.get("exitCode"):
        yield f"{what} ended with exit code {ended['exitCode']}: {_said(ended)}"
    if last and not status.get("ready"):
        yield f"{what} ended before with exit code {last.get('exitCode')}: {_said(last)}"
    if "running" in status.get("state", {}) and not status.get("ready") and status.get("started", False):
        yield f"{what} runs, and does not answer its readiness probe"


def _said(state: dict[str, Any]) -> str:
    return (
        ": ".join(part.strip() for part in (state.get("reason", ""), state.get("message", "")) if part) or "no reason"
    )
