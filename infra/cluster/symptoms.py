"""What keeps a version's Pods from being ready, read from what Kubernetes says of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from infra.cluster.manifests import Manifest
from infra.cluster.nodes import pod_requests, shortage
from infra.contracts import NodeInventory

_STARTING = ("ContainerCreating", "PodInitializing")
"""Reasons to wait for that pass by themselves."""


def unready_because(
    workloads: Iterable[Manifest], pods: Iterable[Manifest], nodes: Iterable[NodeInventory], events: Iterable[Manifest]
) -> list[str]:
    """A line for each thing that is known to.

    `workloads`: the version's Deployments and ReplicaSets; `nodes`: those that its Pods may be on; `events`: warnings
    that no Pod could be made.
    """
    usable = list(nodes)
    lines = [line for workload in workloads for line in _of_workload(workload)]
    lines += [f"no Pod can be made: {event['message']}" for event in events if event.get("message")]
    for pod in pods:
        if not pod["metadata"].get("deletionTimestamp"):
            lines += _of_pod(pod, usable)
    # A Deployment repeats what its ReplicaSet says.
    return list(dict.fromkeys(lines))


def _of_workload(workload: Manifest) -> Iterator[str]:
    for condition in workload.get("status", {}).get("conditions", []):
        kind, status, message = condition["type"], condition["status"], condition.get("message", "")
        if kind == "ReplicaFailure" and status == "True":
            # Quotas and admission policies and webhooks refuse Pods.
            yield f"no Pod can be made: {message}"


def _of_pod(pod: Manifest, nodes: list[NodeInventory]) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"Pod {name} has no node: {condition.get('message', condition.get('reason', ''))}"
            for resource, amount in pod_requests(pod).items():
                if "/" in resource and amount:
                    lacking = shortage(nodes, resource, int(amount))
                    if lacking:
                        yield lacking
    if status.get("phase") == "Failed":
        yield f"Pod {name} failed: {_said(status)}"
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        yield from _of_container(name, container)


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
