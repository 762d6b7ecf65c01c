"""The priorities of versions: who is scheduled first, and who makes room for whom."""

from __future__ import annotations

from infra.cluster.manifests import Manifest
from infra.cluster.names import MANAGED_BY
from infra.settings.version import Priority

_VALUES: dict[Priority, tuple[int, str]] = {
    "serving-critical": (1_000_000, "Versions that pre-empt all others."),
    "serving": (100_000, "Versions in service."),
    # No more than Pods that have no class. Below -10, cluster autoscalers would add no node for them.
    "batch": (0, "Versions that wait for room, and make room for the others."),
}


def priority_class_name(namespace: str, priority: Priority) -> str:
    """Priority classes have no namespaces: an environment's are named after its platform's own."""
    return f"{namespace}-{priority}"


def priority_classes(namespace: str) -> list[Manifest]:
    """One for each priority. https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/"""
    return [
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": priority_class_name(namespace, priority), "labels": dict(MANAGED_BY)},
            "value": value,
            "preemptionPolicy": "Never" if priority == "batch" else "PreemptLowerPriority",
            "description": description,
        }
        for priority, (value, description) in _VALUES.items()
    ]
