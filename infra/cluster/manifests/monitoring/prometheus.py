"""Prometheus in the cluster: it finds what it scrapes through the API server, and keeps it on a volume.

https://prometheus.io/docs/prometheus/latest/command-line/prometheus/
"""

from __future__ import annotations

from typing import Any

import yaml

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.monitoring.alertmanager import ALERTMANAGER
from infra.cluster.manifests.monitoring.alertmanager import PORT as ALERTMANAGER_PORT
from infra.cluster.manifests.monitoring.errors import image
from infra.cluster.manifests.monitoring.gateways import GatewayKind
from infra.cluster.manifests.monitoring.scraping import scrape_jobs
from infra.cluster.manifests.monitoring.workload import Part, PodSpec, mount
from infra.cluster.manifests.quantities import size
from infra.monitoring.alerts import alerts_text
from infra.monitoring.rules import rules_text
from infra.settings.cluster import ClusterSettings

PROMETHEUS = "prometheus"
PORT = 9090

CONFIG, RULES = "prometheus-config", "prometheus-rules"

# What is written before old blocks are deleted has to have room too.
_USED_OF_STORAGE = 0.85
_READ = ["get", "list", "watch"]
_RULES = (
    {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": _READ},
    # The kubelets' own metrics, and nothing else of theirs.
    {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
)


def prometheus(settings: ClusterSettings, environment: str, gateway: GatewayKind) -> list[Manifest]:
    part = Part.of(settings, environment, PROMETHEUS)
    monitoring = settings.monitoring
    config = part.config_map(
        {"prometheus.yml": yaml.safe_dump(prometheus_config(settings, environment, gateway), sort_keys=False)}, CONFIG
    )
    rules = part.config_map(
        {"rules.yml": rules_text(gateway.data_plane(environment)), "alerts.yml": alerts_text()}, RULES
    )
    pod = PodSpec(
        image=image(settings, "prometheus"),
        args=[
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            f"--storage.tsdb.retention.time={duration(monitoring.retention)}",
            f"--storage.tsdb.retention.size={int(monitoring.storage * _USED_OF_STORAGE)}B",
            f"--web.listen-address=:{PORT}",
        ],
        port=PORT,
        ready_path="/-/ready",
        live_path="/-/healthy",
        cpu="250m",
        memory="4Gi",
        mounts=[
            mount("config", "/etc/prometheus", read_only=True),
            mount("rules", "/etc/prometheus-rules", read_only=True),
            mount("data", "/prometheus"),
        ],
        volumes=[
            {"name": "config", "configMap": {"name": CONFIG}},
            {"name": "rules", "configMap": {"name": RULES}},
        ],
        config=[config, rules],
        # It writes down what it has in memory.
        grace_seconds=300,
    )
    return [
        *part.account(_RULES),
        config,
        rules,
        part.stateful_set(pod, size(monitoring.storage), monitoring.storage_class),
        part.service(pod),
        part.disruption_budget(),
        part.network_policy(PORT),
    ]


def prometheus_config(settings: ClusterSettings, environment: str, gateway: GatewayKind) -> dict[str, Any]:
    """The configuration file, as a document. https://prometheus.io/docs/prometheus/latest/configuration/configuration/"""
    interval = duration(settings.monitoring.scrape_interval)
    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": duration(min(10.0, settings.monitoring.scrape_interval)),
            "evaluation_interval": interval,
            "external_labels": {"environment": environment},
        },
        "rule_files": ["/etc/prometheus-rules/*.yml"],
        "alerting": {
            "alertmanagers": [
                {"static_configs": [{"targets": [f"{ALERTMANAGER}.{settings.namespace}.svc:{ALERTMANAGER_PORT}"]}]}
            ]
        },
        "scrape_configs": scrape_jobs(settings, environment, gateway),
    }


def duration(seconds: float) -> str:
    """As Prometheus writes one."""
    return f"{round(seconds * 1000)}ms" if seconds % 1 else f"{int(seconds)}s"
