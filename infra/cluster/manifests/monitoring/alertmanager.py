"""Alertmanager in the cluster: it sends alerts to the receivers that the settings name.

https://prometheus.io/docs/alerting/latest/configuration/
"""

from __future__ import annotations

from typing import Any

import yaml

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.monitoring.errors import KEY, MonitoringError, image
from infra.cluster.manifests.monitoring.workload import Part, PodSpec, mount
from infra.settings.cluster import ClusterSettings

ALERTMANAGER = "alertmanager"
PORT = 9093

CONFIG = "alertmanager-config"
_NOBODY = "nobody"
_STORAGE = "1Gi"


def alertmanager(settings: ClusterSettings, environment: str) -> list[Manifest]:
    """Raises MonitoringError where a receiver has no name."""
    part = Part.of(settings, environment, ALERTMANAGER)
    config = part.config_map(
        {"alertmanager.yml": yaml.safe_dump(alertmanager_config(settings), sort_keys=False)}, CONFIG
    )
    secrets = settings.monitoring.alert_secrets
    pod = PodSpec(
        image=image(settings, "alertmanager"),
        args=[
            "--config.file=/etc/alertmanager/config/alertmanager.yml",
            "--storage.path=/alertmanager",
            f"--web.listen-address=:{PORT}",
            # It is one, and has no other to speak with.
            "--cluster.listen-address=",
        ],
        port=PORT,
        ready_path="/-/ready",
        live_path="/-/healthy",
        cpu="20m",
        memory="128Mi",
        mounts=[
            mount("config", "/etc/alertmanager/config", read_only=True),
            mount("data", "/alertmanager"),
            *(mount(f"secret-{n}", f"/etc/alertmanager/secrets/{s}", read_only=True) for n, s in enumerate(secrets)),
        ],
        volumes=[
            {"name": "config", "configMap": {"name": CONFIG}},
            *({"name": f"secret-{n}", "secret": {"secretName": secret}} for n, secret in enumerate(secrets)),
        ],
        config=[config],
        waits_for_secrets=bool(secrets),
    )
    return [
        *part.account(),
        config,
        part.stateful_set(pod, _STORAGE, settings.monitoring.storage_class),
        part.service(pod),
        part.disruption_budget(),
        part.network_policy(PORT, ["prometheus", "grafana"]),
    ]


def alertmanager_config(settings: ClusterSettings) -> dict[str, Any]:
    """The configuration file, as a document. Without receivers alerts are seen in Alertmanager, and told to nobody."""
    receivers = [dict(receiver) for receiver in settings.monitoring.alert_receivers] or [{"name": _NOBODY}]
    for number, receiver in enumerate(receivers):
        if not receiver.get("name"):
            raise MonitoringError(
                f"{KEY}.monitoring.alert_receivers[{number}]: given no 'name'; a receiver is as in Alertmanager's "
                "own configuration, such as {name: on-call, webhook_configs: [{url: …}]}"
            )
    return {
        "route": {
            "receiver": receivers[0]["name"],
            "group_by": ["alertname", "team", "model"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "4h",
        },
        # Of an endpoint that answers nobody, its versions need not be told too.
        "inhibit_rules": [
            {
                "source_matchers": ['severity="critical"'],
                "target_matchers": ['severity="warning"', 'team!=""'],
                "equal": ["team", "model"],
            }
        ],
        "receivers": receivers,
    }
