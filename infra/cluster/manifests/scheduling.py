"""Where a version's Pods may run, what they ask of a node, and what all of them together may have."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from infra.cluster.internals import PoolFacts
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.gpus import GPU
from infra.cluster.manifests.priorities import priority_class_name
from infra.cluster.manifests.quantities import number, size, times
from infra.cluster.manifests.teams import limit_range
from infra.cluster.manifests.version import SELECTOR, Version
from infra.settings.cluster import SHARED_GPU
from infra.settings.version import Resources

PRODUCT_LABEL = "nvidia.com/gpu.product"
"""What NVIDIA's GPU feature discovery labels nodes with."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

PROMISED_ANNOTATION = "lepton/promised"
"""On a version's ResourceQuota: JSON, what its replicas ask for when there are most of them."""

CLAIM = "gpus"
_HASH_CHARACTERS = 10

_HOSTNAME = "kubernetes.io/hostname"
_ZONE = "topology.kubernetes.io/zone"
_GPU_TAINT = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}


def gpu_resource(resources: Resources, pool: PoolFacts | None) -> str | None:
    """What the replica's GPUs are asked for by; None where it has none, or claims them by DRA.

    https://docs.nvidia.com/datacenter/cloud-native/kubernetes/latest/index.html: `+me` is written `.me` there.
    """
    if not resources.gpu or resources.device_class:
        return None
    if resources.mig:
        return f"nvidia.com/mig-{resources.mig.replace('+', '.')}"
    if resources.gpu_shared:
        return SHARED_GPU
    return (pool and pool["gpu_resource"]) or GPU


def container_resources(version: Version) -> dict[str, Any]:
    """What the server gets: as much as it asks for, so that no neighbour's use is its own lack.

    Extended resources, as GPUs are, have to be so: https://kubernetes.io/docs/tasks/manage-gpus/scheduling-gpus/
    """
    asked = _requests(version)
    claims = {"claims": [{"name": CLAIM}]} if version.settings.resources.device_class else {}
    return ({"requests": asked, "limits": dict(asked)} if asked else {}) | claims


def puller_resources(version: Version) -> dict[str, Any]:
    """What the init container gets: the server's share, which it has before it."""
    asked = {name: amount for name, amount in _requests(version).items() if name in ("cpu", "memory")}
    return {"requests": asked, "limits": dict(asked)} if asked else {}


def scheduling(version: Version) -> dict[str, Any]:
    """The part of a Pod's spec that says where it may run."""
    settings, pool = version.settings, version.pool
    selector = dict(pool["labels"]) if pool else {}
    if settings.resources.gpu_product:
        selector[PRODUCT_LABEL] = settings.resources.gpu_product
    tolerations = _tolerations(version)
    spec: dict[str, Any] = {
        "priorityClassName": priority_class_name(version.internals["namespace"], settings.priority),
        "nodeSelector": selector,
        "tolerations": tolerations,
        "topologySpreadConstraints": [] if version.spans_nodes else [_spread(_HOSTNAME), _spread(_ZONE)],
        "resourceClaims": (
            [
                {"name": CLAIM, "resourceClaimTemplateName": template["metadata"]["name"]}
                for template in resource_claims(version)
            ]
        ),
    }
    return {key: value for key, value in spec.items() if value}


def queue_labels(version: Version) -> dict[str, str]:
    """Of what Kueue has to admit. https://kueue.sigs.k8s.io/docs/tasks/run/deployment/"""
    return {QUEUE_LABEL: version.team} if version.facts["queue"] else {}


def local_queue(version: Version) -> list[Manifest]:
    """The namespace's way to the team's ClusterQueue, where it has one."""
    queue = version.facts["queue"]
    if not queue:
        return []
    return [version.object("kueue.x-k8s.io/v1beta1", "LocalQueue", version.team, spec={"clusterQueue": queue})]


def resource_claims(version: Version) -> list[Manifest]:
    """GPUs by Dynamic Resource Allocation: a claim a Pod, made from this template.

    https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/ (Kubernetes 1.34)
    """
    resources = version.settings.resources
    if not resources.device_class:
        return []
    exactly = {
        "deviceClassName": resources.device_class,
        "allocationMode": "ExactCount",
        "count": resources.gpu,
    }
    spec = {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}}
    # A template never changes, so another one has another name.
    name = f"{CLAIM}-{hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:_HASH_CHARACTERS]}"
    return [version.object("resource.k8s.io/v1", "ResourceClaimTemplate", name, spec=spec)]


def promised(version: Version) -> dict[str, str]:
    """What its replicas ask for when there are most of them, as quotas name it."""
    return times(_asked(version), version.most * version.settings.nodes_per_replica)


def resource_quota(version: Version) -> Manifest:
    """What the namespace may have: its replicas and an update's surge, and as many replicas that drain yet.

    So a second update while the first one's replicas drain is not held up.

    https://kubernetes.io/docs/concepts/policy/resource-quotas/
    """
    resources = version.settings.resources
    pods = (2 * version.most + version.surge) * version.settings.nodes_per_replica
    hard = {"pods": number(pods)} | times(_asked(version), pods)
    if resources.device_class:
        hard[f"{resources.device_class}.deviceclass.resource.k8s.io/devices"] = number(pods * resources.gpu)
    quota = version.object("v1", "ResourceQuota", spec={"hard": hard})
    quota["metadata"]["annotations"][PROMISED_ANNOTATION] = json.dumps(promised(version), sort_keys=True)
    return quota


def defaults(version: Version) -> list[Manifest]:
    """What containers get that say none, where the team's share has such."""
    limits = version.facts["limits"]
    return [limit_range(version.namespace, limits, version.labels)] if limits else []


def _asked(version: Version) -> dict[str, str]:
    """By one Pod, as quotas name it."""
    return {f"requests.{name}": amount for name, amount in _requests(version).items()}


def _requests(version: Version) -> dict[str, str]:
    """Of one Pod's server: what its config says, or else what the team's containers get by default."""
    resources = version.settings.resources
    asked = {name: amount for name, amount in version.facts["limits"].items() if name in ("cpu", "memory")}
    if resources.cpu is not None:
        asked["cpu"] = number(resources.cpu)
    if resources.memory is not None:
        asked["memory"] = size(resources.memory)
    gpu = gpu_resource(resources, version.pool)
    return asked | ({gpu: str(resources.gpu)} if gpu else {})


def _tolerations(version: Version) -> list[dict[str, str]]:
    if version.pool:
        pools = [version.pool]
    else:
        wanted, product = gpu_resource(version.settings.resources, None), version.settings.resources.gpu_product
        pools = [
            pool
            for pool in version.internals["pools"]
            if wanted and pool["gpu_resource"] == wanted and product in (None, pool["product"])
        ]
    tolerations = [dict(toleration) for pool in pools for toleration in pool["tolerations"]]
    if version.settings.resources.gpu:
        # What most clusters keep others off GPU nodes with.
        tolerations.append(dict(_GPU_TAINT))
    return [toleration for n, toleration in enumerate(tolerations) if toleration not in tolerations[:n]]


def _spread(topology: str) -> dict[str, Any]:
    """Rather a full node than a version that isn't served."""
    return {
        "maxSkew": 1,
        "topologyKey": topology,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(SELECTOR)},
        # While one ReplicaSet follows another, each is spread for itself.
        "matchLabelKeys": ["pod-template-hash"],
    }
