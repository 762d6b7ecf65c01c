"""A real Prometheus beside a control plane, with kube-state-metrics: what `monitoring: external` asks.

It scrapes each second, and records the metrics of the catalogue by the project's own rules.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import yaml

from infra.cluster.manifests.monitoring.kube_state_metrics import ARGUMENTS
from infra.monitoring.data_planes.traefik import traefik
from infra.monitoring.rules import rules_text
from tests.cluster.control_plane import ControlPlane, free_ports
from tests.cluster.daemon import Daemon, missing
from tests.cluster.gateway import GatewayClass
from tests.cluster.real_node import RealNode
from tests.deadline import until

_READY_SECONDS = 30
_OF_ANY_ENVIRONMENT = 'annotation_lepton_environment!=""'


class Prometheus:
    """The Prometheus of one control plane: `start` makes it, and any process that has the control plane can use it."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._folder = control_plane.folder
        self._control_plane = control_plane
        self._prometheus = Daemon("prometheus", self._folder)
        self._state_metrics = Daemon("kube-state-metrics", self._folder)
        self._facts = self._folder / "prometheus.json"

    @property
    def url(self) -> str:
        return json.loads(self._facts.read_text())["url"]

    def start(self, gateway: GatewayClass, node: RealNode | None) -> None:
        if gone := missing("prometheus", "kube-state-metrics"):
            pytest.skip(f"no {', '.join(gone)} on PATH: `make tools` builds them")
        port, state_port, telemetry_port = free_ports(3)
        self._facts.write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
        self._state_metrics.start(
            "kube-state-metrics",
            f"--kubeconfig={self._control_plane.kubeconfig}",
            "--host=127.0.0.1",
            f"--port={state_port}",
            "--telemetry-host=127.0.0.1",
            f"--telemetry-port={telemetry_port}",
            *ARGUMENTS,
        )
        jobs: list[dict[str, Any]] = [
            {"job_name": "gateway", "static_configs": [{"targets": [gateway.metrics_address]}]},
            {
                "job_name": "kube-state-metrics",
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{state_port}"]}],
            },
        ]
        if node:
            jobs.append(self._of_kubelet(node))
        # Many environments share this one, each with teams of its own.
        rules = rules_text(traefik("one")).replace('annotation_lepton_environment="one"', _OF_ANY_ENVIRONMENT)
        assert _OF_ANY_ENVIRONMENT in rules
        (self._folder / "rules.yaml").write_text(rules)
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": jobs,
        }
        (self._folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        self._prometheus.start(
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        )
        until(self._is_ready, _READY_SECONDS, what="Prometheus")

    def _of_kubelet(self, node: RealNode) -> dict[str, Any]:
        folder = self._control_plane.folder
        return {
            "job_name": "cadvisor",
            "scheme": "https",
            "metrics_path": "/metrics/cadvisor",
            "tls_config": {
                "cert_file": str(folder / "apiserver-kubelet-client.crt"),
                "key_file": str(folder / "apiserver-kubelet-client.key"),
                "insecure_skip_verify": True,
            },
            "track_timestamps_staleness": True,
            "static_configs": [{"targets": [f"{node.address}:10250"], "labels": {"instance": node.name}}],
        }

    def _is_ready(self) -> bool:
        for daemon in (self._prometheus, self._state_metrics):
            assert daemon.running, f"{daemon.name} ended:\n{daemon.last_words()}"
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False
