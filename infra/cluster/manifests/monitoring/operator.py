"""Objects for a Prometheus Operator that is there: what its Prometheus is to scrape, and the rules.

Nodes are scraped by the Operator's own objects already, as a rule. kube-state-metrics is too, but shows none of the
annotations that the rules join by: so one of ours is brought up where the settings have an image for it.

https://prometheus-operator.dev/docs/api-reference/api/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.gpus import gpu_namespace
from infra.cluster.manifests.monitoring.gateways import GatewayKind
from infra.cluster.manifests.monitoring.grafana import dashboard_config_map
from infra.cluster.manifests.monitoring.kube_state_metrics import KUBE_STATE_METRICS, kube_state_metrics
from infra.cluster.manifests.monitoring.prometheus import duration
from infra.cluster.manifests.monitoring.scraping import (
    GATEWAY_JOB,
    SERVER_JOB,
    Relabeling,
    dcgm_selector,
    metrics_path_relabeling,
    node_relabeling,
    server_selector,
    version_relabelings,
)
from infra.cluster.manifests.monitoring.workload import Part
from infra.monitoring.alerts import alert_rules
from infra.monitoring.rules import recording_rules
from infra.settings.cluster import ClusterSettings

_API = "monitoring.coreos.com/v1"


def operator_objects(settings: ClusterSettings, environment: str, gateway: GatewayKind) -> list[Manifest]:
    own = _Objects(settings, environment)
    objects = [
        own.pod_monitor(
            GATEWAY_JOB, gateway.pod_labels, settings.gateway.namespace, port=gateway.port_name, path=gateway.path
        ),
        own.pod_monitor(
            SERVER_JOB,
            server_selector(environment),
            None,
            port="metrics",
            relabelings=[metrics_path_relabeling(), *version_relabelings()],
        ),
        own.rule("lepton-recording", recording_rules(gateway.data_plane(environment))),
        own.rule("lepton-alerts", alert_rules()),
        dashboard_config_map(settings, environment),
    ]
    if settings.gpus.dcgm_exporter:
        namespace = gpu_namespace(settings.namespace)
        objects.append(
            own.pod_monitor("gpu", dcgm_selector(settings), namespace, port="metrics", relabelings=[node_relabeling()])
        )
    if settings.images.kube_state_metrics is not None:
        objects += [*kube_state_metrics(settings, environment), own.state_monitor()]
    return objects


@dataclass(frozen=True)
class _Objects:
    """Objects of the Operator's kinds, labelled so that its Prometheus selects them."""

    settings: ClusterSettings
    environment: str

    def pod_monitor(
        self,
        job: str,
        labels: Mapping[str, str],
        namespace: str | None,
        *,
        port: str,
        path: str = "/metrics",
        relabelings: Sequence[Relabeling] = (),
    ) -> Manifest:
        """`namespace` None: in any."""
        where = {"matchNames": [namespace]} if namespace else {"any": True}
        endpoint = self._endpoint(job, port, path, relabelings)
        spec = {
            "selector": {"matchLabels": dict(labels)},
            "namespaceSelector": where,
            "podMetricsEndpoints": [endpoint],
        }
        return self._object("PodMonitor", f"lepton-{job}", spec)

    def state_monitor(self) -> Manifest:
        """Of our own kube-state-metrics."""
        # Its own labels say which object a series is of.
        endpoint = self._endpoint(KUBE_STATE_METRICS, "http", "/metrics", ()) | {"honorLabels": True}
        selector = Part.of(self.settings, self.environment, KUBE_STATE_METRICS).selector
        return self._object(
            "ServiceMonitor",
            f"lepton-{KUBE_STATE_METRICS}",
            {"selector": {"matchLabels": selector}, "endpoints": [endpoint]},
        )

    def rule(self, name: str, document: dict[str, Any]) -> Manifest:
        """`document`: a rule file's."""
        return self._object("PrometheusRule", name, {"groups": document["groups"]})

    def _endpoint(self, job: str, port: str, path: str, relabelings: Sequence[Relabeling]) -> dict[str, Any]:
        named = {"target_label": "job", "replacement": job}
        return {
            "port": port,
            "path": path,
            "interval": duration(self.settings.monitoring.scrape_interval),
            "relabelings": [_in_camel_case(relabeling) for relabeling in (named, *relabelings)],
        }

    def _object(self, kind: str, name: str, spec: dict[str, Any]) -> Manifest:
        found = Part.of(self.settings, self.environment, name).object(_API, kind, spec=spec)
        found["metadata"]["labels"] = {**found["metadata"]["labels"], **self.settings.monitoring.labels}
        return found


def _in_camel_case(relabeling: Relabeling) -> dict[str, Any]:
    """As the Operator's API writes it."""
    names = {"source_labels": "sourceLabels", "target_label": "targetLabel"}
    return {names.get(key, key): value for key, value in relabeling.items()}
