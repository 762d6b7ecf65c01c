"""What the cluster's Prometheus scrapes, and how it finds it.

https://prometheus.io/docs/prometheus/latest/configuration/configuration/#kubernetes_sd_config
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.cluster.manifests.gpus import DCGM_EXPORTER, DCGM_PORT, gpu_namespace
from infra.cluster.manifests.monitoring.gateways import GatewayKind
from infra.cluster.manifests.monitoring.kube_state_metrics import KUBE_STATE_METRICS
from infra.cluster.manifests.monitoring.kube_state_metrics import PORT as STATE_PORT
from infra.cluster.manifests.version import SELECTOR
from infra.cluster.names import ENVIRONMENT_LABEL, MANAGED_BY, METRICS_PORT, MODEL_LABEL, TEAM_LABEL, VERSION_LABEL
from infra.settings.cluster import ClusterSettings

Job = dict[str, Any]
Relabeling = dict[str, Any]

GATEWAY_JOB = "gateway"
SERVER_JOB = "server"
_CADVISOR = "container_cpu_usage_seconds_total|container_memory_working_set_bytes|container_fs_(usage|limit)_bytes"
_MACHINE = "machine_(cpu_cores|memory_bytes)"

_METRICS_PATH = "__meta_kubernetes_pod_annotation_lepton_metrics_path"
_CREDENTIALS = "/var/run/secrets/kubernetes.io/serviceaccount"


def scrape_jobs(settings: ClusterSettings, environment: str, gateway: GatewayKind) -> list[Job]:
    """Jobs of every environment are the same; what they keep is this one's."""
    return [
        {"job_name": "prometheus", "static_configs": [{"targets": ["localhost:9090"]}]},
        _gateway(settings, gateway),
        _servers(environment),
        {
            "job_name": KUBE_STATE_METRICS,
            # Its own labels say which object a series is of.
            "honor_labels": True,
            "static_configs": [{"targets": [f"{KUBE_STATE_METRICS}.{settings.namespace}.svc:{STATE_PORT}"]}],
        },
        _kubelets(),
        _gpus(settings),
    ]


def server_selector(environment: str) -> dict[str, str]:
    """Labels of the Pods of all versions of an environment."""
    return {**MANAGED_BY, **SELECTOR, ENVIRONMENT_LABEL: environment}


def metrics_path_relabeling() -> Relabeling:
    return _copy(_METRICS_PATH, "__metrics_path__")


def node_relabeling() -> Relabeling:
    """Calls what a Pod serves of its node by the node's name."""
    return _copy("__meta_kubernetes_pod_node_name", "instance")


def dcgm_selector(settings: ClusterSettings) -> dict[str, str]:
    """Labels of the Pods of our own DCGM exporters, or of a GPU Operator's."""
    if settings.gpus.dcgm_exporter:
        return {"app.kubernetes.io/name": DCGM_EXPORTER}
    return {"app": "nvidia-dcgm-exporter"}


def version_relabelings() -> list[Relabeling]:
    """Whose a Pod is, as its annotations say in full."""
    return [
        _copy(f"__meta_kubernetes_pod_annotation_{_sanitized(annotation)}", label)
        for annotation, label in ((TEAM_LABEL, "team"), (MODEL_LABEL, "model"), (VERSION_LABEL, "version"))
    ]


def _gateway(settings: ClusterSettings, gateway: GatewayKind) -> Job:
    discovery = _pods(gateway.pod_labels, settings.gateway.namespace)
    return {
        "job_name": GATEWAY_JOB,
        "metrics_path": gateway.path,
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": [
            *_running(),
            *_address(gateway.port),
            # Where somebody has moved them.
            *_address_of_annotation("prometheus.io/port"),
            _copy("__meta_kubernetes_pod_annotation_prometheus_io_path", "__metrics_path__"),
            _copy("__meta_kubernetes_pod_name", "pod"),
        ],
    }


def _servers(environment: str) -> Job:
    return {
        "job_name": SERVER_JOB,
        "kubernetes_sd_configs": [_pods(server_selector(environment))],
        "relabel_configs": [
            *_running(),
            {"action": "keep", "source_labels": [_METRICS_PATH], "regex": ".+"},
            *_address(METRICS_PORT),
            metrics_path_relabeling(),
            _copy("__meta_kubernetes_pod_name", "pod"),
            *version_relabelings(),
        ],
    }


def _kubelets() -> Job:
    return {
        "job_name": "cadvisor",
        "scheme": "https",
        "metrics_path": "/metrics/cadvisor",
        "authorization": {"credentials_file": f"{_CREDENTIALS}/token"},
        # Most kubelets' certificates are of their own making: https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/
        "tls_config": {"ca_file": f"{_CREDENTIALS}/ca.crt", "insecure_skip_verify": True},
        # They are its own, and would else be shown for minutes after a container has gone.
        "track_timestamps_staleness": True,
        "kubernetes_sd_configs": [{"role": "node"}],
        "relabel_configs": [_copy("__meta_kubernetes_node_name", "instance")],
        "metric_relabel_configs": [
            {"action": "keep", "source_labels": ["__name__"], "regex": f"{_CADVISOR}|{_MACHINE}"},
        ],
    }


def _gpus(settings: ClusterSettings) -> Job:
    namespace = gpu_namespace(settings.namespace) if settings.gpus.dcgm_exporter else None
    return {
        "job_name": "gpu",
        "kubernetes_sd_configs": [_pods(dcgm_selector(settings), namespace)],
        "relabel_configs": [
            *_running(),
            *_address(DCGM_PORT),
            node_relabeling(),
        ],
        "metric_relabel_configs": [{"action": "keep", "source_labels": ["__name__"], "regex": "DCGM_FI_DEV_.+"}],
    }


# -- parts of jobs


def _pods(labels: Mapping[str, str], namespace: str | None = None) -> dict[str, Any]:
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    discovery: dict[str, Any] = {"role": "pod", "selectors": [{"role": "pod", "label": selector}]}
    return discovery | ({"namespaces": {"names": [namespace]}} if namespace else {})


def _running() -> list[Relabeling]:
    return [
        {"action": "keep", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Running"},
        # A container's ports are a target each, and are made the same one below.
        {"action": "drop", "source_labels": ["__meta_kubernetes_pod_container_init"], "regex": "true"},
    ]


def _address(port: int) -> list[Relabeling]:
    ip = ["__meta_kubernetes_pod_ip"]
    return [
        {"source_labels": ip, "regex": r"([0-9.]+)", "target_label": "__address__", "replacement": f"$1:{port}"},
        {"source_labels": ip, "regex": r"(.*:.*)", "target_label": "__address__", "replacement": f"[$1]:{port}"},
    ]


def _address_of_annotation(annotation: str) -> list[Relabeling]:
    sources = ["__meta_kubernetes_pod_ip", f"__meta_kubernetes_pod_annotation_{_sanitized(annotation)}"]
    target = "__address__"
    return [
        {"source_labels": sources, "regex": r"([0-9.]+);(\d+)", "target_label": target, "replacement": "$1:$2"},
        {"source_labels": sources, "regex": r"(.*:.*);(\d+)", "target_label": target, "replacement": "[$1]:$2"},
    ]


def _copy(source: str, target: str) -> Relabeling:
    return {"source_labels": [source], "regex": "(.+)", "target_label": target, "replacement": "$1"}


def _sanitized(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)
