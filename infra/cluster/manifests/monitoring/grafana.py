"""Grafana in the cluster: its data source and dashboards are files, and nothing that is done in it is kept.

https://grafana.com/docs/grafana/latest/administration/provisioning/
"""

from __future__ import annotations

import json

import yaml

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.monitoring.errors import image
from infra.cluster.manifests.monitoring.prometheus import PORT as PROMETHEUS_PORT
from infra.cluster.manifests.monitoring.prometheus import PROMETHEUS
from infra.cluster.manifests.monitoring.workload import Part, PodSpec, mount
from infra.monitoring.dashboards import DATA_SOURCE, dashboards
from infra.settings.cluster import ClusterSettings

GRAFANA = "grafana"
PORT = 3000

PROVISIONING, DASHBOARDS = "grafana-provisioning", "grafana-dashboards"
_USER = 472
"""The user that the image's own files are made for."""
_SETTINGS = {
    "GF_AUTH_ANONYMOUS_ENABLED": "false",
    "GF_USERS_ALLOW_SIGN_UP": "false",
    "GF_ANALYTICS_REPORTING_ENABLED": "false",
    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
    "GF_PLUGINS_PREINSTALL_DISABLED": "true",
    "GF_LOG_MODE": "console",
    "GF_PATHS_DATA": "/var/lib/grafana",
    "GF_PATHS_PROVISIONING": "/etc/grafana/provisioning",
}


def grafana(settings: ClusterSettings, environment: str) -> list[Manifest]:
    """With the administrator's name and password from a secret of the user's, as `monitoring.grafana_secret` says."""
    part = Part.of(settings, environment, GRAFANA)
    secret = settings.monitoring.grafana_secret
    administrator = {"GF_SECURITY_ADMIN_USER": "admin-user", "GF_SECURITY_ADMIN_PASSWORD": "admin-password"}
    provisioning = part.config_map(_provisioning(settings), PROVISIONING)
    shown = part.config_map(_dashboard_files(), DASHBOARDS)
    pod = PodSpec(
        image=image(settings, "grafana"),
        args=[],
        port=PORT,
        ready_path="/api/health",
        live_path="/api/health",
        cpu="50m",
        memory="512Mi",
        user=_USER,
        env=[
            *({"name": name, "value": value} for name, value in _SETTINGS.items()),
            *(
                {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
                for name, key in administrator.items()
            ),
        ],
        mounts=[
            mount("provisioning", "/etc/grafana/provisioning", read_only=True),
            mount("dashboards", "/etc/grafana/dashboards", read_only=True),
            mount("data", "/var/lib/grafana"),
            mount("tmp", "/tmp"),  # noqa: S108 - the container's own
        ],
        volumes=[
            {
                "name": "provisioning",
                "configMap": {
                    "name": PROVISIONING,
                    "items": [
                        {"key": "datasources.yaml", "path": "datasources/prometheus.yaml"},
                        {"key": "dashboards.yaml", "path": "dashboards/lepton.yaml"},
                    ],
                },
            },
            {"name": "dashboards", "configMap": {"name": DASHBOARDS}},
            {"name": "data", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
        ],
        config=[provisioning, shown],
        waits_for_secrets=True,
    )
    return [
        *part.account(),
        provisioning,
        shown,
        part.deployment(pod),
        part.service(pod),
        part.disruption_budget(),
        part.network_policy(PORT),
    ]


def dashboard_config_map(settings: ClusterSettings, environment: str) -> Manifest:
    """The dashboards for a Grafana that is there, whose sidecar looks for ConfigMaps with this label.

    https://github.com/grafana/helm-charts/tree/main/charts/grafana#sidecar-for-dashboards
    """
    found = Part.of(settings, environment, GRAFANA).config_map(_dashboard_files(), DASHBOARDS)
    found["metadata"]["labels"] = {**found["metadata"]["labels"], "grafana_dashboard": "1"}
    return found


def _dashboard_files() -> dict[str, str]:
    return {f"{found['uid']}.json": json.dumps(found, indent=1) for found in dashboards()}


def _provisioning(settings: ClusterSettings) -> dict[str, str]:
    source = {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": DATA_SOURCE,
                "type": "prometheus",
                "access": "proxy",
                "url": f"http://{PROMETHEUS}.{settings.namespace}.svc:{PROMETHEUS_PORT}",
                "isDefault": True,
                "editable": False,
                "jsonData": {"timeInterval": f"{round(settings.monitoring.scrape_interval)}s", "httpMethod": "POST"},
            }
        ],
    }
    provider = {
        "apiVersion": 1,
        "providers": [
            {
                "name": "lepton",
                "folder": "lepton",
                "type": "file",
                "disableDeletion": True,
                "allowUiUpdates": False,
                "options": {"path": "/etc/grafana/dashboards"},
            }
        ],
    }
    return {
        "datasources.yaml": yaml.safe_dump(source, sort_keys=False),
        "dashboards.yaml": yaml.safe_dump(provider, sort_keys=False),
    }
