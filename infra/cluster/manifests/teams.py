"""What a team has in the cluster: the namespace of its endpoints, and its share of the capacity."""

from __future__ import annotations

from collections.abc import Mapping

from infra.cluster.internals import TeamFacts
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.quantities import number, size
from infra.cluster.names import ENVIRONMENT_LABEL, MANAGED_BY, TEAM_LABEL, team_namespace
from infra.settings.cluster import ResourceLimits, TeamSettings

_NO_PODS = "no-pods"
_DEFAULTS = "defaults"


def team_facts(environment: str, team: str, settings: TeamSettings) -> TeamFacts:
    """What the team's version stacks have to know. Why quotas are told, and not just set: docs/decisions."""
    return {
        "namespace": team_namespace(environment, team),
        "quota": {f"requests.{resource}": amount for resource, amount in _amounts(settings.quota).items()},
        "limits": _amounts(settings.default_limits),
        "queue": settings.queue,
    }


def team_objects(environment: str, team: str) -> list[Manifest]:
    """The namespace of a team's routes, in which nothing runs."""
    labels = {**MANAGED_BY, ENVIRONMENT_LABEL: environment, TEAM_LABEL: team}
    namespace = team_namespace(environment, team)
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": labels | pod_security("restricted")},
        },
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": _NO_PODS, "namespace": namespace, "labels": labels},
            "spec": {"hard": {"pods": "0"}},
        },
    ]


def limit_range(namespace: str, limits: Mapping[str, str], labels: Mapping[str, str]) -> Manifest:
    """What containers of a namespace get that say none (`TeamFacts.limits`).

    https://kubernetes.io/docs/concepts/policy/limit-range/
    """
    container = {"type": "Container", "default": dict(limits), "defaultRequest": dict(limits)}
    return {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": _DEFAULTS, "namespace": namespace, "labels": dict(labels)},
        "spec": {"limits": [container]},
    }


def pod_security(level: str) -> dict[str, str]:
    """Labels of a namespace whose Pods have to be so; what isn't `restricted` is warned of.

    https://kubernetes.io/docs/concepts/security/pod-security-admission/
    """
    return {
        "pod-security.kubernetes.io/enforce": level,
        "pod-security.kubernetes.io/warn": "restricted",
        "pod-security.kubernetes.io/audit": "restricted",
    }


def _amounts(limits: ResourceLimits | None) -> dict[str, str]:
    if limits is None:
        return {}
    amounts: dict[str, str] = {}
    if limits.cpu is not None:
        amounts["cpu"] = number(limits.cpu)
    if limits.memory is not None:
        amounts["memory"] = size(limits.memory)
    return amounts | {resource: number(count) for resource, count in limits.gpus.items()}
