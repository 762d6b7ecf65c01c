"""Monitoring in the cluster: what watches versions, gateway and nodes, by the rules that every mode has.

Either Prometheus, Alertmanager and Grafana as plain objects, or objects for a Prometheus Operator that is there.
"""

from __future__ import annotations

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.monitoring.alertmanager import alertmanager
from infra.cluster.manifests.monitoring.gateways import gateway_kind
from infra.cluster.manifests.monitoring.grafana import grafana
from infra.cluster.manifests.monitoring.kube_state_metrics import kube_state_metrics
from infra.cluster.manifests.monitoring.operator import operator_objects
from infra.cluster.manifests.monitoring.prometheus import PORT, PROMETHEUS, prometheus
from infra.settings.cluster import ClusterSettings


def monitoring_objects(settings: ClusterSettings, environment: str, controller: str) -> list[Manifest]:
    """All objects of an environment's monitoring; none where its Prometheus is elsewhere (`kind: external`).

    `controller` is the GatewayClass's `spec.controllerName`, which tells whose metrics count requests, where the
    settings don't say; it is empty where the cluster is yet to be made.

    Raises:
        MonitoringError: when an image is missing, or nobody knows how to count the gateway's requests.
    """
    if settings.monitoring.kind == "external":
        return []
    gateway = gateway_kind(settings, controller)
    if settings.monitoring.kind == "operator":
        return operator_objects(settings, environment, gateway)
    return [
        *kube_state_metrics(settings, environment),
        *prometheus(settings, environment, gateway),
        *alertmanager(settings, environment),
        *(grafana(settings, environment) if settings.monitoring.grafana_secret else []),
    ]


def metrics_url(settings: ClusterSettings) -> str:
    """Where Prometheus answers: a URL, or `kubernetes://NAMESPACE/SERVICE:PORT`, through the API server."""
    return settings.monitoring.url or f"kubernetes://{settings.namespace}/{PROMETHEUS}:{PORT}"
