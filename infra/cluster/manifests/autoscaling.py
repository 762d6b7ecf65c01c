"""What moves a version's number of replicas: a HorizontalPodAutoscaler, or KEDA's ScaledObject.

KEDA asks Prometheus itself. A HorizontalPodAutoscaler asks the cluster's metrics APIs: processor time is there wherever
metrics-server is. All else needs an adapter, such as prometheus-adapter, that serves what Prometheus has under these
names: `version:in_flight:sum` with its labels, and the metric that `query` names, as external metrics, and
`DCGM_FI_DEV_GPU_UTIL` as a metric of Pods.
"""

from __future__ import annotations

import json
import math
from typing import Any

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.quantities import number
from infra.cluster.manifests.version import Version
from infra.cluster.manifests.workload import DEPLOYMENT, LEADER_WORKER_SET
from infra.cluster.names import SERVER
from infra.monitoring.catalogue import VERSION_LABELS
from infra.settings.version import Autoscaling

_IN_FLIGHT = "version:in_flight:sum"
_GPU_PERCENT = "DCGM_FI_DEV_GPU_UTIL"
"""Percent of time, of NVIDIA's DCGM exporter."""
_POLL_SECONDS = 15


def autoscaler(version: Version) -> list[Manifest]:
    """One, or none where the number of replicas is fixed."""
    scaling = version.settings.autoscaling
    if scaling is None or not version.scales:
        return []
    return [_scaled_object(version, scaling) if scaling.scaler == "keda" else _horizontal(version, scaling)]


def _horizontal(version: Version, scaling: Autoscaling) -> Manifest:
    """https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/horizontal-pod-autoscaler-v2/"""
    spec = {
        "scaleTargetRef": _target(version),
        "minReplicas": scaling.min,
        "maxReplicas": scaling.max,
        "metrics": [_metric(version, scaling)],
        "behavior": _behavior(scaling),
    }
    return version.object("autoscaling/v2", "HorizontalPodAutoscaler", spec=spec)


def _metric(version: Version, scaling: Autoscaling) -> dict[str, Any]:
    each = {"type": "AverageValue", "averageValue": number(scaling.target)}
    match scaling.by:
        case "cpu":
            share = {"type": "Utilization", "averageUtilization": round(scaling.target * 100)}
            return {"type": "Resource", "resource": {"name": "cpu", "target": share}}
        case "gpu":
            percent = {"type": "AverageValue", "averageValue": number(scaling.target * 100)}
            return {"type": "Pods", "pods": {"metric": {"name": _GPU_PERCENT}, "target": percent}}
        case "in-flight":
            metric = {"name": _IN_FLIGHT, "selector": {"matchLabels": _labels(version)}}
            return {"type": "External", "external": {"metric": metric, "target": each}}
        case "queue":
            return {"type": "External", "external": {"metric": {"name": scaling.query}, "target": each}}


def _scaled_object(version: Version, scaling: Autoscaling) -> Manifest:
    """https://keda.sh/docs/latest/reference/scaledobject-spec/"""
    spec = {
        "scaleTargetRef": _target(version),
        "minReplicaCount": scaling.min,
        "maxReplicaCount": scaling.max,
        "pollingInterval": _POLL_SECONDS,
        "cooldownPeriod": math.ceil(scaling.scale_down_after),
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scaling)}},
        "triggers": [_trigger(version, scaling)],
    }
    return version.object("keda.sh/v1alpha1", "ScaledObject", spec=spec)


def _trigger(version: Version, scaling: Autoscaling) -> dict[str, Any]:
    if scaling.by == "cpu":
        share = {"value": str(round(scaling.target * 100))}
        return {"type": "cpu", "metricType": "Utilization", "metadata": share}
    metadata = {
        "serverAddress": version.prometheus,
        "query": _query(version, scaling),
        "threshold": f"{scaling.target:g}",
    }
    # What is divided by the threshold is of all replicas together.
    return {"type": "prometheus", "metricType": "AverageValue", "metadata": metadata}


def _query(version: Version, scaling: Autoscaling) -> str:
    if scaling.query is not None:
        return scaling.query
    if scaling.by == "gpu":
        # Prometheus renames an exporter's own `namespace` where it has one to give itself.
        busy = " or ".join(
            f'{_GPU_PERCENT}{{{label}="{version.namespace}"}}' for label in ("namespace", "exported_namespace")
        )
        return f"sum({busy}) / {100 * version.settings.resources.gpu * version.settings.nodes_per_replica}"
    # JSON's strings are PromQL's.
    labels = ", ".join(f"{name}={json.dumps(value)}" for name, value in _labels(version).items())
    return f"sum({_IN_FLIGHT}{{{labels}}})"


def _labels(version: Version) -> dict[str, str]:
    values = (version.team, version.settings.model, version.settings.version)
    return dict(zip(VERSION_LABELS, values, strict=True))


def _target(version: Version) -> dict[str, str]:
    api_version, kind = LEADER_WORKER_SET if version.spans_nodes else DEPLOYMENT
    return {"apiVersion": api_version, "kind": kind, "name": SERVER}


def _behavior(scaling: Autoscaling) -> dict[str, Any]:
    return {"scaleDown": {"stabilizationWindowSeconds": math.ceil(scaling.scale_down_after)}}
