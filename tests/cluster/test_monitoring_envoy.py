"""What an Envoy with statistics by endpoint really counts: the names, labels and meanings that the rules for Envoy
Gateway build on. Its clusters are named as Envoy Gateway names those of an HTTPRoute.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.monitoring.data_planes.envoy_gateway import envoy_gateway
from infra.single_node.machine.envoy import find_envoy
from tests.cluster.control_plane import free_ports
from tests.cluster.daemon import Daemon
from tests.deadline import until

RULE = "httproute/diagnostics-prod-0/tumour/rule/1"
WELL, BADLY, NOBODY, COPIES = f"{RULE}/backend/0", f"{RULE}/backend/1", f"{RULE}/backend/2", f"{RULE}-mirror-0"

_SECONDS = 30


class _Server(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Failing(_Server):
    status = 503


class Envoy:
    """Requests with `to: NAME` go to that cluster, and each is copied."""

    def __init__(self, folder: Path) -> None:
        self._servers = {
            cluster: ThreadingHTTPServer(("127.0.0.1", 0), handler)
            for cluster, handler in ((WELL, _Server), (BADLY, _Failing), (COPIES, _Server))
        }
        self._admin, self._port, nobody = free_ports(3)
        self.ports = {cluster: server.server_port for cluster, server in self._servers.items()} | {NOBODY: nobody}
        self._daemon = Daemon("envoy", folder)
        self._file = folder / "envoy.json"

    def start(self) -> None:
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self._file.write_text(json.dumps(self._config()))
        self._daemon.start(find_envoy(), "-c", str(self._file), "--log-level", "error", "--use-dynamic-base-id")
        until(self._is_ready, _SECONDS, what="Envoy")

    def stop(self) -> None:
        self._daemon.stop()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def send(self, cluster: str) -> int:
        return httpx.get(f"http://127.0.0.1:{self._port}/", headers={"to": cluster}).status_code

    def value(self, metric: str, cluster: str) -> float | None:
        """Of the cluster's one endpoint."""
        address = f"127.0.0.1:{self.ports[cluster]}"
        series = f'{metric}{{envoy_cluster_name="{cluster}",envoy_endpoint_address="{address}"}} '
        # As Prometheus reads it: its Python client calls counters otherwise.
        lines = httpx.get(f"http://127.0.0.1:{self._admin}/stats/prometheus").text.splitlines()
        return next((float(line.removeprefix(series)) for line in lines if line.startswith(series)), None)

    def _is_ready(self) -> bool:
        assert self._daemon.running, self._daemon.last_words()
        try:
            return httpx.get(f"http://127.0.0.1:{self._admin}/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _config(self) -> dict[str, Any]:
        def address(port: int) -> dict[str, Any]:
            return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}

        def typed(name: str, kind: str, **config: Any) -> dict[str, Any]:
            return {"name": name, "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **config}}

        route = {"cluster_header": "to", "request_mirror_policies": [{"cluster": COPIES}]}
        hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]
        connections = typed(
            "envoy.filters.network.http_connection_manager",
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="http",
            http_filters=[typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
            route_config={"virtual_hosts": hosts},
        )
        clusters = [
            {
                "name": cluster,
                "type": "STATIC",
                "connect_timeout": "1s",
                "track_cluster_stats": {"per_endpoint_stats": True},
                "load_assignment": {
                    "cluster_name": cluster,
                    "endpoints": [{"lb_endpoints": [{"endpoint": address(port)}]}],
                },
            }
            for cluster, port in self.ports.items()
        ]
        listener = {"name": "http", **address(self._port), "filter_chains": [{"filters": [connections]}]}
        return {"admin": address(self._admin), "static_resources": {"listeners": [listener], "clusters": clusters}}


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    found = Envoy(tmp_path_factory.mktemp("envoy"))
    try:
        found.start()
        for cluster, count in ((WELL, 5), (BADLY, 3), (NOBODY, 2)):
            for _ in range(count):
                found.send(cluster)
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize(("cluster", "good", "bad"), [(WELL, 5, 0), (BADLY, 0, 3), (NOBODY, 0, 2)])
def test_every_request_is_one_success_or_one_error_of_an_endpoint(
    envoy: Envoy, cluster: str, good: int, bad: int
) -> None:
    def counted() -> tuple[float | None, float | None]:
        return envoy.value("envoy_cluster_endpoint_rq_success", cluster), envoy.value(
            "envoy_cluster_endpoint_rq_error", cluster
        )

    until(lambda: counted() == (good, bad), _SECONDS, what=f"{good} good and {bad} bad requests")


def test_the_total_leaves_out_requests_that_no_connection_was_had_for(envoy: Envoy) -> None:
    assert envoy.value("envoy_cluster_endpoint_rq_total", NOBODY) == 0


def test_copies_are_counted_by_the_cluster_that_gets_them(envoy: Envoy) -> None:
    until(lambda: envoy.value("envoy_cluster_endpoint_rq_success", COPIES) == 10, _SECONDS, what="ten copies")


@pytest.mark.parametrize("metric", ["healthy", "rq_active"])
def test_endpoints_have_the_gauges_that_the_rules_ask_for(envoy: Envoy, metric: str) -> None:
    assert envoy.value(f"envoy_cluster_endpoint_{metric}", WELL) is not None
    asked = envoy_gateway("prod")
    assert f"envoy_cluster_endpoint_{metric}" in asked.in_flight + asked.buckets
