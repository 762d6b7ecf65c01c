"""What an object still lacks before the real plugin would call it ready, and why its Pods are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.plugins.kubernetes.api import Api, Object


class Hopeless(Exception):
    """The object won't become ready, however long one waits."""


def lacks(api: Api, live: Object) -> list[str]:
    """Nothing where the object is ready, or of a kind that nobody waits for. Raises `Hopeless`, `ApiError`."""
    check = _CHECKS.get((live["apiVersion"], live["kind"]))
    return check(api, live) if check else []


def _deployment(api: Api, live: Object) -> list[str]:
    wanted, status = live["spec"].get("replicas", 1), live.get("status") or {}
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if _is_observed(live) and updated == status.get("replicas", 0) == wanted <= available:
        return []
    return [f"{available} of {wanted} replicas are available, {updated} updated", *_troubles(api, live)]


def _stateful_set(api: Api, live: Object) -> list[str]:
    wanted, status = live["spec"].get("replicas", 1), live.get("status") or {}
    ready, updated = status.get("readyReplicas", 0), status.get("updatedReplicas", 0)
    if _is_observed(live) and updated == wanted <= ready:
        return []
    return [f"{ready} of {wanted} replicas are ready, {updated} updated", *_troubles(api, live)]


def _daemon_set(api: Api, live: Object) -> list[str]:
    status = live.get("status") or {}
    wanted, updated = status.get("desiredNumberScheduled", 0), status.get("updatedNumberScheduled", 0)
    available = status.get("numberAvailable", 0)
    if _is_observed(live) and updated >= wanted <= available:
        return []
    return [f"{available} of {wanted} Pods are available, {updated} updated", *_troubles(api, live)]


def _pod(api: Api, live: Object) -> list[str]:
    phase = (live.get("status") or {}).get("phase")
    return [] if phase == "Succeeded" or _condition(live, "Ready") == "True" else _pod_troubles(live)


def _job(api: Api, live: Object) -> list[str]:
    if _condition(live, "Complete") == "True":
        return []
    if _condition(live, "Failed") == "True":
        raise Hopeless("; ".join(_told_conditions(live, "True", {"Failed"}) + _troubles(api, live)))
    return ["the Job is not complete", *_troubles(api, live)]


def _service(api: Api, live: Object) -> list[str]:
    spec = live["spec"]
    missing: list[str] = []
    if spec.get("type") == "LoadBalancer" and not ((live.get("status") or {}).get("loadBalancer") or {}).get("ingress"):
        missing.append("Service was not allocated an IP address; does your cloud provider support this?")
    if spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        metadata = live["metadata"]
        endpoints = api.get("v1", "Endpoints", metadata["name"], metadata["namespace"])
        if not endpoints or not endpoints.get("subsets"):
            missing.append(
                "Service does not target any Pods. Selected Pods may not be ready, or field '.spec.selector' may not "
                "match labels on any Pods"
            )
    return missing


def _claim(api: Api, live: Object) -> list[str]:
    if live["status"].get("phase") == "Bound":
        return []
    storage_class = api.get("storage.k8s.io/v1", "StorageClass", live["spec"].get("storageClassName") or "-")
    if storage_class and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer":
        return []
    return ["PVC could not be bound to a volume"]


_CHECKS: dict[tuple[str, str], Callable[[Api, Object], list[str]]] = {
    ("apps/v1", "DaemonSet"): _daemon_set,
    ("apps/v1", "Deployment"): _deployment,
    ("apps/v1", "StatefulSet"): _stateful_set,
    ("batch/v1", "Job"): _job,
    ("v1", "PersistentVolumeClaim"): _claim,
    ("v1", "Pod"): _pod,
    ("v1", "Service"): _service,
}


def _is_observed(live: Object) -> bool:
    return (live.get("status") or {}).get("observedGeneration", 0) >= live["metadata"].get("generation", 0)


def _condition(live: Object, kind: str) -> str:
    return next((entry["status"] for entry in _conditions(live) if entry["type"] == kind), "Unknown")


def _conditions(live: Object) -> list[dict[str, Any]]:
    return (live.get("status") or {}).get("conditions") or []


def _told_conditions(live: Object, status: str, kinds: set[str] | None = None) -> list[str]:
    return [
        f"{entry['type']} {entry['status']}: {entry.get('reason', '')}: {entry.get('message', '')}".rstrip(": ")
        for entry in _conditions(live)
        if entry["status"] == status and (kinds is None or entry["type"] in kinds)
    ]


def _troubles(api: Api, live: Object) -> list[str]:
    """Of a workload: its own conditions, and what its Pods that aren't ready say."""
    labels = ",".join(f"{key}={value}" for key, value in (live["spec"]["selector"].get("matchLabels") or {}).items())
    pods = api.list("v1", "Pod", live["metadata"]["namespace"], labels=labels)
    own = _told_conditions(live, "True", {"ReplicaFailure"}) + _told_conditions(live, "False", {"Progressing"})
    return [*own, *(trouble for pod in pods for trouble in _pod(api, pod))]


def _pod_troubles(pod: Object) -> list[str]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    troubles = _told_conditions(pod, "False")
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        for state in ("waiting", "terminated"):
            if told := (container.get("state") or {}).get(state):
                text = ": ".join(filter(None, (state, told.get("reason"), told.get("message"))))
                troubles.append(f"container {container['name']} {text}")
    return [f"Pod {name}: {trouble}" for trouble in troubles or [f"phase {status.get('phase', 'Unknown')}"]]
