"""What makes GPUs schedulable and seen: NVIDIA's device plugin and DCGM exporter; and how many GPUs there are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.cluster.internals import PoolFacts
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.teams import pod_security
from infra.cluster.names import ENVIRONMENT_LABEL, MANAGED_BY
from infra.settings.cluster import SHARED_GPU, Image

GPU = "nvidia.com/gpu"
DCGM_PORT = 9400
DCGM_EXPORTER = "dcgm-exporter"
_DEVICE_PLUGIN = "nvidia-device-plugin"
_MIG = "nvidia.com/mig-"
_PRODUCT_LABEL = "nvidia.com/gpu.product"
_COUNT_LABEL = "nvidia.com/gpu.count"
"""What NVIDIA's GPU Feature Discovery labels nodes with."""
_UNNAMED = "gpu"
_CONFIG = "config.yaml"
_CHECKSUM = "lepton/config-checksum"


@dataclass(frozen=True)
class GpuPool:
    """Nodes with GPUs of one kind."""

    facts: PoolFacts
    shares: int
    """Time slices of each GPU; 1: none."""


def gpu_namespace(namespace: str) -> str:
    """Its Pods see the node's devices and the kubelet's sockets, so that they have a namespace of their own."""
    return f"{namespace}-gpus"


def gpu_objects(
    environment: str,
    namespace: str,
    pools: Sequence[GpuPool],
    *,
    device_plugin: Image | None,
    dcgm_exporter: Image | None,
    pull_secrets: Sequence[str],
) -> list[Manifest]:
    """The namespace and what runs in it; nothing where there is no image to run."""
    if not pools or (device_plugin is None and dcgm_exporter is None):
        return []
    place = _Place(environment, gpu_namespace(namespace), tuple(pull_secrets))
    objects: list[Manifest] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": place.namespace, "labels": place.labels | pod_security("privileged")},
        }
    ]
    if device_plugin is not None:
        for pool in pools:
            objects += _device_plugin(place, pool, device_plugin)
    if dcgm_exporter is not None:
        objects += _dcgm_exporter(place, pools, dcgm_exporter)
    return objects


def gpu_inventory(nodes: Iterable[Manifest], pools: Sequence[GpuPool]) -> dict[str, int]:
    """Whole GPUs by product, of the nodes that are ready; a GPU that is cut or shared counts as one."""
    inventory: dict[str, int] = {}
    for node in nodes:
        labels: dict[str, str] = node["metadata"].get("labels", {})
        conditions = node.get("status", {}).get("conditions", [])
        ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
        pool = next((pool for pool in pools if pool.facts["labels"].items() <= labels.items()), None)
        count = _count(labels, node.get("status", {}).get("allocatable", {}), pool)
        if ready and count:
            product = labels.get(_PRODUCT_LABEL) or (pool and pool.facts["product"]) or _UNNAMED
            inventory[product] = inventory.get(product, 0) + count
    return inventory


def _count(labels: dict[str, str], allocatable: dict[str, str], pool: GpuPool | None) -> int:
    if _COUNT_LABEL in labels:
        return int(labels[_COUNT_LABEL])
    whole, shared = int(allocatable.get(GPU, 0)), int(allocatable.get(SHARED_GPU, 0))
    return whole + shared // (pool.shares if pool else 1)


@dataclass(frozen=True)
class _Place:
    environment: str
    namespace: str
    pull_secrets: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        return {**MANAGED_BY, ENVIRONMENT_LABEL: self.environment}


def _device_plugin(place: _Place, pool: GpuPool, image: Image) -> list[Manifest]:
    """One a pool, as each pool's GPUs are cut or shared in their own way.

    https://github.com/NVIDIA/k8s-device-plugin#configuring-the-nvidia-device-plugin-binary
    """
    name = f"{_DEVICE_PLUGIN}-{pool.facts['name']}"
    mig = (pool.facts["gpu_resource"] or "").startswith(_MIG)
    # JSON, which is YAML.
    config = json.dumps(_device_plugin_config(pool, mig=mig), indent=2)
    # Cut GPUs are told of by the driver to whom may administer it.
    security: dict[str, Any] = (
        {"capabilities": {"add": ["SYS_ADMIN"]}}
        if mig
        else {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    )
    environment = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    if mig:
        environment["NVIDIA_MIG_MONITOR_DEVICES"] = "all"
    container: Manifest = {
        "name": _DEVICE_PLUGIN,
        "image": image,
        "command": [_DEVICE_PLUGIN, f"--config-file=/config/{_CONFIG}"],
        "env": _variables(environment),
        "securityContext": security,
        "resources": _resources("50m", "64Mi"),
        "volumeMounts": [
            {"name": "config", "mountPath": "/config", "readOnly": True},
            {"name": "device-plugins", "mountPath": "/var/lib/kubelet/device-plugins"},
        ],
    }
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": name}},
        {"name": "device-plugins", "hostPath": {"path": "/var/lib/kubelet/device-plugins", "type": "Directory"}},
    ]
    config_map: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": place.namespace, "labels": place.labels},
        "data": {_CONFIG: config},
    }
    # The plugin reads its config when it starts.
    annotations = {_CHECKSUM: hashlib.sha256(config.encode()).hexdigest()[:16]}
    return [config_map, _daemon_set(place, name, [pool], container, volumes, annotations)]


def _device_plugin_config(pool: GpuPool, *, mig: bool) -> Manifest:
    config: Manifest = {
        "version": "v1",
        # Its nodes have GPUs, or something is wrong with them that must be seen.
        "flags": {"migStrategy": "mixed" if mig else "none", "failOnInitError": True},
    }
    if pool.shares > 1:
        config["sharing"] = {
            "timeSlicing": {
                "renameByDefault": True,
                "failRequestsGreaterThanOne": True,
                "resources": [{"name": GPU, "replicas": pool.shares}],
            }
        }
    return config


def _dcgm_exporter(place: _Place, pools: Sequence[GpuPool], image: Image) -> list[Manifest]:
    """https://docs.nvidia.com/datacenter/dcgm/latest/gpu-telemetry/dcgm-exporter.html"""
    container: Manifest = {
        "name": DCGM_EXPORTER,
        "image": image,
        "env": [
            *_variables({"DCGM_EXPORTER_LISTEN": f":{DCGM_PORT}", "DCGM_EXPORTER_KUBERNETES": "true"}),
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "ports": [{"name": "metrics", "containerPort": DCGM_PORT, "protocol": "TCP"}],
        "securityContext": {"runAsNonRoot": False, "runAsUser": 0, "capabilities": {"add": ["SYS_ADMIN"]}},
        "resources": _resources("100m", "512Mi"),
        "volumeMounts": [{"name": "pod-resources", "mountPath": "/var/lib/kubelet/pod-resources", "readOnly": True}],
    }
    # Tells which Pod a GPU is given to.
    volumes = [{"name": "pod-resources", "hostPath": {"path": "/var/lib/kubelet/pod-resources", "type": "Directory"}}]
    name = DCGM_EXPORTER
    service: Manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": place.namespace, "labels": place.labels | _selector(name)},
        "spec": {
            "clusterIP": "None",
            "selector": _selector(name),
            "ports": [{"name": "metrics", "port": DCGM_PORT, "targetPort": "metrics", "protocol": "TCP"}],
        },
    }
    return [_daemon_set(place, name, pools, container, volumes, {}), service]


def _daemon_set(
    place: _Place,
    name: str,
    pools: Sequence[GpuPool],
    container: Manifest,
    volumes: list[Manifest],
    annotations: dict[str, str],
) -> Manifest:
    tolerations = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    for toleration in (toleration for pool in pools for toleration in pool.facts["tolerations"]):
        if toleration not in tolerations:
            tolerations.append(dict(toleration))
    pod: Manifest = {
        # Without them no version is scheduled to the node.
        "priorityClassName": "system-node-critical",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": _nodes(pools)}},
        "tolerations": tolerations,
        "containers": [container],
        "volumes": volumes,
    }
    if place.pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in place.pull_secrets]
    metadata: Manifest = {"labels": place.labels | _selector(name)}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": place.namespace, "labels": place.labels | _selector(name)},
        "spec": {
            "selector": {"matchLabels": _selector(name)},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
            "template": {"metadata": metadata, "spec": pod},
        },
    }


def _nodes(pools: Sequence[GpuPool]) -> Manifest:
    """Nodes of any of the pools."""
    terms = [
        [{"key": key, "operator": "In", "values": [value]} for key, value in sorted(pool.facts["labels"].items())]
        for pool in pools
    ]
    return {"nodeSelectorTerms": [{"matchExpressions": expressions} for expressions in terms]}


def _selector(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}


def _variables(values: dict[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _resources(cpu: str, memory: str) -> Manifest:
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}
