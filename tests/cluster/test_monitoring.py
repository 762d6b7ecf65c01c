"""Monitoring as it runs: Prometheus, with the configuration, rules and rights that the platform gives it, beside a
real Traefik and a real kube-state-metrics.

The programs are this machine's, and not in Pods. So a Pod object stands for Traefik's, whose address is this machine's.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kubernetes import client

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.monitoring.kube_state_metrics import ARGUMENTS
from infra.cluster.names import (
    SERVER,
    version_annotations,
    version_labels,
    version_namespace,
)
from tests.cluster.control_plane import ControlPlane, free_ports
from tests.cluster.daemon import Daemon, missing
from tests.cluster.gateway import CONTROLLER, GatewayClass, put_behind
from tests.cluster.test_monitoring_manifests import data, objects, settings
from tests.deadline import until

TEAM, MODEL = "diagnostics", "tumour"
V1, V2 = "1.0.0", "2.0.0-rc.1"
VERSIONS = (V1, V2)
PORT = 8080
SLOW_SECONDS = 0.15
"""Between two of the bounds that Traefik has by default, 0.1 and 0.3 s."""

_SECONDS = 60


class World:
    """An environment's versions behind a real gateway, and its monitoring."""

    def __init__(self, control_plane: ControlPlane, gateway: GatewayClass, folder: Path) -> None:
        self.address = control_plane.address
        self._control_plane = control_plane
        self._gateway = gateway
        self._folder = folder
        self.environment = f"e{uuid.uuid4().hex[:8]}"
        self.namespace = control_plane.namespace(f"lepton-{self.environment}")
        self._servers = [ThreadingHTTPServer((control_plane.address, 0), _Model) for _ in VERSIONS]
        self._state_metrics, self._prometheus = Daemon("kube-state-metrics", folder), Daemon("prometheus", folder)
        port, self._state_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._cluster_wide: list[Manifest] = []

    def start(self) -> None:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        for version, server in zip(VERSIONS, self._servers, strict=True):
            self._add_version(version, server.server_port)
        self._add_route()
        self._add_pod("traefik", {"app.kubernetes.io/name": "traefik"}, self.namespace, {
            "prometheus.io/port": self._gateway.metrics_address.rpartition(":")[2],
        })  # fmt: skip
        self._start_monitoring()

    def stop(self) -> None:
        for daemon in (self._prometheus, self._state_metrics):
            daemon.stop()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for manifest in self._cluster_wide:
            self._control_plane.delete(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"])
        for namespace in (self.namespace, *map(self.namespace_of, VERSIONS)):
            self._control_plane.delete("v1", "Namespace", namespace)

    def namespace_of(self, version: str) -> str:
        return version_namespace(self.environment, TEAM, MODEL, version)

    # -- as a client, and as a reader of metrics

    def send(self, version: str, method: str = "POST", path: str = "/infer") -> int:
        headers = {"x-model-version": version}
        return httpx.request(method, f"{self._gateway.url}/{self.environment}{path}", headers=headers).status_code

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": promql}).raise_for_status().json()
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]

    def by_version(self, promql: str) -> dict[str, float]:
        """Values by version, of this endpoint's."""
        whole = f"sum by (team, model, version) ({promql})"
        return {
            labels["version"]: value
            for labels, value in self.query(whole)
            if (labels["team"], labels["model"]) == (TEAM, MODEL)
        }

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/api/v1/{path}").raise_for_status().json()["data"]

    # -- private

    def _add_version(self, version: str, port: int) -> None:
        namespace = self._control_plane.namespace(self.namespace_of(version))
        labels = version_labels(self.environment, TEAM, MODEL, version)
        annotations = version_annotations(self.environment, TEAM, MODEL, version)
        metadata = {"name": SERVER, "namespace": namespace, "labels": labels, "annotations": annotations}
        selector = {"app.kubernetes.io/name": SERVER}
        pod = {"schedulerName": "nobody", "containers": [{"name": "server", "image": "none"}]}
        template = {"metadata": {"labels": labels | selector}, "spec": pod}
        self._control_plane.apply_all(
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": PORT}]}},
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": metadata,
                "spec": {"replicas": 2, "selector": {"matchLabels": selector}, "template": template},
            },
            {
                "apiVersion": "gateway.networking.k8s.io/v1beta1",
                "kind": "ReferenceGrant",
                "metadata": {"name": SERVER, "namespace": namespace},
                "spec": {
                    "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": self.namespace}],
                    "to": [{"group": "", "kind": "Service"}],
                },
            },
        )
        put_behind(self._control_plane, namespace, SERVER, port)
        self._add_pod(
            "scraped", labels | selector, namespace, {**annotations, "lepton/metrics-path": f"/{version}/metrics"}
        )

    def _add_route(self) -> None:
        prefix = {"type": "PathPrefix", "value": f"/{self.environment}"}
        rules = [
            {
                "matches": [{"path": prefix, "headers": [{"name": "x-model-version", "value": version}]}],
                "backendRefs": [{"name": SERVER, "namespace": self.namespace_of(version), "port": PORT}],
            }
            for version in VERSIONS
        ]
        self._control_plane.apply_all(
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "metadata": {"name": "lepton", "namespace": self.namespace},
                "spec": {
                    "gatewayClassName": "traefik",
                    "listeners": [{"name": "http", "port": self._gateway.port, "protocol": "HTTP"}],
                },
            },
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": {"name": MODEL, "namespace": self.namespace},
                "spec": {"parentRefs": [{"name": "lepton"}], "rules": rules},
            },
        )
        for version in VERSIONS:
            until(lambda version=version: self.send(version, "HEAD") == 200, _SECONDS, what=f"a route to {version}")

    def _add_pod(self, name: str, labels: dict[str, str], namespace: str, annotations: dict[str, str]) -> None:
        """One that runs, at this machine's address, as far as the API server knows."""
        metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations}
        spec = {"schedulerName": "nobody", "containers": [{"name": "main", "image": "none"}]}
        until(
            lambda: self._control_plane.get("v1", "ServiceAccount", "default", namespace),
            _SECONDS,
            what=f"an account in {namespace}",
        )
        self._control_plane.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        address = self._control_plane.address
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        client.CoreV1Api(self._control_plane.client()).patch_namespaced_pod_status(name, namespace, {"status": status})

    def _start_monitoring(self) -> None:
        made = objects(
            settings(scrape_interval="1s", gateway={"namespace": self.namespace}).model_copy(
                update={"namespace": self.namespace}
            ),
            CONTROLLER,
            self.environment,
        )
        for manifest in made:
            if manifest["kind"] in {"ServiceAccount", "ClusterRole", "ClusterRoleBinding"}:
                self._control_plane.apply(manifest)
                self._cluster_wide += [manifest] if manifest["kind"] != "ServiceAccount" else []
        self._state_metrics.start(
            "kube-state-metrics",
            f"--kubeconfig={self._rights('kube-state-metrics')}",
            "--host=127.0.0.1",
            f"--port={self._state_port}",
            "--telemetry-host=127.0.0.1",
            f"--telemetry-port={free_ports(1)[0]}",
            *ARGUMENTS,
        )
        config = data(made, "prometheus-config", "prometheus.yml")
        for name in ("rules", "alerts"):
            (self._folder / f"{name}.yml").write_text(
                yaml.safe_dump(data(made, "prometheus-rules", f"{name}.yml"), sort_keys=False)
            )
        (self._folder / "prometheus.yaml").write_text(yaml.safe_dump(self._from_outside(config)))
        self._prometheus.start(
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        )
        until(self._is_up, _SECONDS, what="Prometheus and the targets of its gateway and kube-state-metrics")

    def _from_outside(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration, for a Prometheus that is in no Pod: how it reaches the API server, and by which names."""
        config["rule_files"] = [str(self._folder / "rules.yml"), str(self._folder / "alerts.yml")]
        del config["alerting"]
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        # Simulated nodes have no kubelet.
        del jobs["cadvisor"]
        jobs["prometheus"]["static_configs"] = [{"targets": [f"127.0.0.1:{self._port}"]}]
        jobs["kube-state-metrics"]["static_configs"] = [{"targets": [f"127.0.0.1:{self._state_port}"]}]
        rights = str(self._rights("prometheus"))
        for job in jobs.values():
            for discovery in job.get("kubernetes_sd_configs", []):
                discovery["kubeconfig_file"] = rights
        return config | {"scrape_configs": list(jobs.values())}

    def _rights(self, account: str) -> Path:
        """A kubeconfig with what the platform lets that account do, and no more."""
        groups = ["system:serviceaccounts", "system:authenticated"]
        return self._control_plane.credentials(f"system:serviceaccount:{self.namespace}:{account}", groups)

    def _is_up(self) -> bool:
        for daemon in (self._prometheus, self._state_metrics):
            assert daemon.running, f"{daemon.name} ended:\n{daemon.last_words()}"
        try:
            return len(self.query('up{job=~"gateway|kube-state-metrics"} == 1')) == 2
        except httpx.HTTPError:
            return False


class _Model(BaseHTTPRequestHandler):
    """Answers as the path says: `/slow` late, `/fail` with an error."""

    def do_POST(self) -> None:
        if self.path.endswith("/slow"):
            time.sleep(SLOW_SECONDS)
        self.send_response(500 if self.path.endswith("/fail") else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_POST()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def world(
    control_plane: ControlPlane, gateway_class: GatewayClass, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    if gone := missing("prometheus", "kube-state-metrics"):
        pytest.skip(f"no {', '.join(gone)} on PATH: `make tools` builds them")
    found = World(control_plane, gateway_class, tmp_path_factory.mktemp("monitoring"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def requested(world: World) -> World:
    """After 30 requests to one version, and 20 to the other: 5 failed, and 10 slow ones."""
    for _ in range(30):
        assert world.send(V1) == 200
    for path, count in (("/infer", 5), ("/fail", 5), ("/slow", 10)):
        for _ in range(count):
            world.send(V2, path=path)
    for _ in range(7):
        world.send(V1, "HEAD")
    until(
        lambda: world.by_version("version:requests:total") == {V1: 30, V2: 20},
        _SECONDS,
        what="50 requests being counted",
    )
    return world


def test_requests_of_clients_are_counted_for_their_version_and_probes_are_not(requested: World) -> None:
    assert requested.by_version("version:requests:total") == {V1: 30, V2: 20}
    assert {labels["source"] for labels, _ in requested.query("version:requests:total")} == {"client"}


def test_errors_are_those_of_the_version_that_failed(requested: World) -> None:
    assert requested.by_version("version:errors:total") == {V1: 0, V2: 5}
    of_endpoint = requested.query(f'sum(endpoint:errors:total{{team="{TEAM}",model="{MODEL}"}})')
    assert of_endpoint == [({}, 5)]


def test_times_are_in_milliseconds(requested: World) -> None:
    buckets = {
        labels["le"]: value
        for labels, value in requested.query(f'sum by (le) (version:latency_ms:bucket{{version="{V2}"}})')
    }
    assert {float(bound) for bound in buckets} == {100, 300, 1200, 5000, float("inf")}
    assert buckets["+Inf"] == 20
    assert buckets["300"] - buckets["100"] >= 8
    # The time of ten slow ones of twenty is the last half's.
    ((_, p95),) = requested.query(f'version:latency_ms:p95_5m{{version="{V2}"}}') or [({}, 0)]
    assert 100 < p95 <= 300


def test_replicas_are_what_the_deployment_has(requested: World) -> None:
    assert requested.by_version("version:replicas:desired") == {V1: 2, V2: 2}
    assert requested.by_version("version:replicas:ready") == {V1: 0, V2: 0}


def test_a_version_that_serves_without_a_ready_replica_is_about_to_be_told(requested: World) -> None:
    """The servers here are in no Pods, so that none is ever ready."""

    def pending() -> set[str]:
        found = requested.query('ALERTS{alertname="VersionNotReady"}')
        return {labels["version"] for labels, _ in found}

    assert requested.send(V2) == 200
    until(lambda: V2 in pending(), _SECONDS, what="the alert")


def test_every_rule_can_be_evaluated(requested: World) -> None:
    rules = [rule for group in requested.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 40
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_pods_of_versions_are_scraped_where_their_annotations_say(world: World) -> None:
    found = {
        target["labels"]["version"]: (target["labels"]["team"], target["labels"]["model"], target["scrapeUrl"])
        for target in world.get("targets")["activeTargets"]
        if target["labels"]["job"] == "server"
    }
    assert found == {version: (TEAM, MODEL, f"http://{world.address}:8082/{version}/metrics") for version in VERSIONS}
