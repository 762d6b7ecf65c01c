"""What a real Envoy counts, with the statistics, cluster names and access log that the router gets."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.single_node.machine.envoy import find_envoy
from infra.single_node.machine.stats import (
    BUCKETS_MS,
    ERRORS,
    FAILOVER,
    LATENCY,
    SHADOW,
    VARIANT,
    access_log,
    cluster_metadata,
    cluster_name,
    stats_config,
)

DEADLINE_SECONDS = 30

BASELINE, CANDIDATE, DEAD, EMPTY, UNASKED = "1.0.0", "2.0.0-rc.1", "3.0.0-x-y.1.2", "4.0.0", "5.0.0"

Json = dict[str, Any]

# Not by the Prometheus client's parser, which has all counters end with _total.
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


class Backend(BaseHTTPRequestHandler):
    """Answers with the status that the path ends with; cuts the answer short, or gives none, where the path says so."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        what = self.path.rsplit("/", 1)[-1]
        if what == "hang":
            self.server.released.wait(DEADLINE_SECONDS)  # type: ignore[attr-defined]
            what = "200"
        if what == "nothing":
            self.close_connection = True
            return
        cut = what == "cut"
        self.send_response(200 if cut else int(what))
        self.send_header("content-length", "200" if cut else "2")
        self.end_headers()
        # Nobody may be waiting any longer.
        with contextlib.suppress(OSError):
            self.wfile.write(b"ok")
            self.wfile.flush()
        self.close_connection = cut

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Router:
    """A running Envoy, asked for answers and for its statistics."""

    def __init__(self, folder: Path, backend_port: int) -> None:
        self.port, self.admin_port, dead_port = _free_ports(3)
        config = folder / "envoy.json"
        config.write_text(json.dumps(_bootstrap(self.port, self.admin_port, backend_port, dead_port)))
        command = [find_envoy(), "-c", str(config), "--disable-hot-restart", "--concurrency", "1", "-l", "error"]
        self.process = subprocess.Popen(command)

    def get(self, path: str, **headers: str) -> int:
        """The answer's status; 0 when the connection ends before the answer does."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, http.client.IncompleteRead):
            return 0

    def is_live(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/ready") as answer,
        ):
            return answer.status == 200
        return False

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/stats/prometheus") as answer:
            text = answer.read().decode()
        return {
            (name, frozenset(LABEL.findall(labels or ""))): float(value) for name, labels, value in SAMPLE.findall(text)
        }

    def names(self) -> set[str]:
        return {name for name, _ in self.samples()}

    def value(self, name: str, **labels: str) -> float:
        return self.samples().get((name, frozenset(labels.items())), 0.0)

    def requests(self, version: str, answered_by: str) -> float:
        return self.value(f"{LATENCY}_count", **_series(version, answered_by))

    def errors(self, version: str, answered_by: str) -> float:
        return self.value(ERRORS, **_series(version, answered_by))


def _series(version: str, answered_by: str) -> dict[str, str]:
    return {"team": "diagnostics", "model": "tumour", "version": version, "answered_by": answered_by}


def _name(role: str, version: str, protocol: str = "http") -> str:
    return cluster_name(role, "diagnostics", "tumour", version, protocol)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _bootstrap(port: int, admin_port: int, backend_port: int, dead_port: int) -> Json:
    routes = [
        _route("/baseline/", _name(VARIANT, BASELINE)),
        _route("/candidate/", _name(VARIANT, CANDIDATE)),
        _route("/grpc/", _name(VARIANT, CANDIDATE, "grpc")),
        _route("/dead/", _name(VARIANT, DEAD)),
        _route("/empty/", _name(VARIANT, EMPTY)),
        _route("/unasked/", _name(VARIANT, UNASKED)),
        _route("/failover/", _name(FAILOVER, CANDIDATE)),
        _route("/rescued/", _name(FAILOVER, DEAD)),
        _route("/mirrored/", _name(VARIANT, BASELINE), request_mirror_policies=[{"cluster": _name(SHADOW, CANDIDATE)}]),
        {"match": {"prefix": "/"}, "direct_response": {"status": 404}},
    ]
    clusters = [
        _cluster(VARIANT, BASELINE, [backend_port]),
        _cluster(VARIANT, CANDIDATE, [backend_port]),
        _cluster(VARIANT, CANDIDATE, [backend_port], "grpc"),
        _cluster(VARIANT, DEAD, [dead_port]),
        _cluster(VARIANT, EMPTY, []),
        _cluster(VARIANT, UNASKED, [backend_port]),
        _aggregate(FAILOVER, CANDIDATE, [CANDIDATE, BASELINE]),
        _aggregate(FAILOVER, DEAD, [DEAD, BASELINE]),
        _aggregate(SHADOW, CANDIDATE, [CANDIDATE]),
        {"name": "other", "type": "STATIC", "load_assignment": {"cluster_name": "other"}},
    ]
    ingress = {
        "@type": "type.googleapis.com/"
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "access_log": access_log(),
        "route_config": {"name": "routes", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": ingress}]
    return {
        "admin": {"address": _address(admin_port)},
        "stats_config": stats_config(),
        "stats_flush_interval": "0.1s",
        "static_resources": {
            "listeners": [{"name": "ingress", "address": _address(port), "filter_chains": [{"filters": filters}]}],
            "clusters": clusters,
        },
    }


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _route(prefix: str, cluster: str, **action: Any) -> Json:
    retry_policy = {
        "retry_on": "connect-failure",
        "num_retries": 1,
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
    }
    return {
        "match": {"prefix": prefix},
        "route": {"cluster": cluster, "timeout": "0.5s", "retry_policy": retry_policy, **action},
    }


def _cluster(role: str, version: str, ports: list[int], protocol: str = "http") -> Json:
    endpoints = [
        {"endpoint": {"address": _address(port)}, "metadata": {"filter_metadata": {"lepton": {"version": version}}}}
        for port in ports
    ]
    name = _name(role, version, protocol)
    return {
        "name": name,
        "type": "STATIC",
        "metadata": cluster_metadata("diagnostics", "tumour", version),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def _aggregate(role: str, version: str, members: list[str]) -> Json:
    return {
        "name": _name(role, version),
        "lb_policy": "CLUSTER_PROVIDED",
        "metadata": cluster_metadata("diagnostics", "tumour", version),
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig",
                "clusters": [_name(VARIANT, member) for member in members],
            },
        },
    }


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (result := found()):
        assert time.monotonic() < deadline, f"still {result!r} after {DEADLINE_SECONDS} s"
    return result


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    backend = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    backend.released = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    router = Router(tmp_path_factory.mktemp("router"), backend.server_address[1])
    try:
        until(router.is_live)
        yield router
    finally:
        router.process.terminate()
        router.process.wait(timeout=DEADLINE_SECONDS)
        backend.released.set()  # type: ignore[attr-defined]
        backend.shutdown()
        backend.server_close()


@pytest.fixture
def counted(router: Router) -> Callable[..., None]:
    """Sends a request, and asserts that it is counted once, in this series, and as an error or not."""

    def check(path: str, status: int, version: str, answered_by: str, *, error: bool, **headers: str) -> None:
        requests = sum(v for (name, _), v in router.samples().items() if name == f"{LATENCY}_count")
        own, errors = router.requests(version, answered_by), router.errors(version, answered_by)
        assert router.get(path, **headers) == status
        until(lambda: router.requests(version, answered_by) == own + 1)
        assert router.errors(version, answered_by) == errors + error
        assert sum(v for (name, _), v in router.samples().items() if name == f"{LATENCY}_count") == requests + 1

    return check


Counted = Callable[..., None]


def test_an_answer_is_counted_for_the_version_that_gave_it(counted: Counted):
    counted("/baseline/200", 200, BASELINE, BASELINE, error=False)


def test_a_pre_release_with_dots_and_hyphens_is_a_version_like_any_other(counted: Counted):
    counted("/candidate/200", 200, CANDIDATE, CANDIDATE, error=False)


def test_an_answer_4xx_is_no_error(counted: Counted):
    counted("/baseline/404", 404, BASELINE, BASELINE, error=False)


@pytest.mark.parametrize("status", [500, 503])
def test_an_answer_5xx_is_an_error(counted: Counted, status: int):
    counted(f"/baseline/{status}", status, BASELINE, BASELINE, error=True)


def test_a_connection_that_is_closed_without_an_answer_is_an_error(counted: Counted):
    counted("/candidate/nothing", 503, CANDIDATE, CANDIDATE, error=True)


def test_an_answer_that_does_not_come_in_time_is_an_error(counted: Counted):
    counted("/candidate/hang", 504, CANDIDATE, CANDIDATE, error=True)


def test_an_answer_that_breaks_off_is_an_error_though_its_status_is_200(counted: Counted):
    counted("/baseline/cut", 0, BASELINE, BASELINE, error=True)


def test_a_server_that_refuses_the_connection_is_an_error_once_for_all_attempts(counted: Counted):
    counted("/dead/200", 503, DEAD, DEAD, error=True)


def test_a_version_without_a_server_has_an_error_that_nobody_answered(counted: Counted):
    # Prometheus has no label with an empty value; Envoy writes it all the same.
    counted("/empty/200", 503, EMPTY, "", error=True)


def test_a_failure_in_grpc_is_an_error_though_its_status_is_200(counted: Counted):
    counted("/dead/200", 200, DEAD, DEAD, error=True, **{"content-type": "application/grpc"})


def test_requests_over_grpc_count_for_the_same_version(counted: Counted):
    counted("/grpc/200", 200, CANDIDATE, CANDIDATE, error=False)


def test_behind_a_failover_an_answer_counts_for_the_version_that_gave_it(counted: Counted):
    counted("/failover/200", 200, CANDIDATE, CANDIDATE, error=False)


def test_an_error_behind_a_failover_counts_for_the_version_that_made_it(counted: Counted):
    counted("/failover/500", 500, CANDIDATE, CANDIDATE, error=True)


def test_a_rescued_request_names_whose_it_was_and_who_answered(counted: Counted):
    counted("/rescued/200", 200, DEAD, BASELINE, error=False)


def test_a_copy_of_a_request_is_counted_by_the_shadows_cluster_only(counted: Counted, router: Router):
    labels = {"team": "diagnostics", "model": "tumour", "protocol": "http"}
    counter = "envoy_cluster_upstream_rq_completed"
    before = router.value(counter, role=SHADOW, version=CANDIDATE, **labels)
    counted("/mirrored/200", 200, BASELINE, BASELINE, error=False)
    until(lambda: router.value(counter, role=SHADOW, version=CANDIDATE, **labels) == before + 1)


def test_a_client_that_does_not_wait_for_the_answer_leaves_an_error(router: Router):
    before, requests = router.errors(BASELINE, BASELINE), router.requests(BASELINE, BASELINE)
    with socket.create_connection(("127.0.0.1", router.port)) as client:
        client.sendall(b"GET /baseline/hang HTTP/1.1\r\nhost: node\r\n\r\n")
        labels = {"role": VARIANT, "protocol": "http", "team": "diagnostics", "model": "tumour", "version": BASELINE}
        until(lambda: router.value("envoy_cluster_upstream_rq_active", **labels) == 1)
    until(lambda: router.requests(BASELINE, BASELINE) == requests + 1)
    assert router.errors(BASELINE, BASELINE) == before + 1


def test_a_version_has_no_series_of_requests_before_the_first(counted: Counted, router: Router):
    counted("/baseline/200", 200, BASELINE, BASELINE, error=False)
    asked = {dict(labels).get("version") for name, labels in router.samples() if name.startswith("envoy_lepton_")}
    routed = {dict(labels).get("version") for name, labels in router.samples() if name.startswith("envoy_cluster_")}
    assert UNASKED in routed - asked


def test_buckets_hold_what_the_version_answered_itself_and_what_others_did_apart(counted: Counted, router: Router):
    def within(answered_by: str) -> float:
        return router.value(f"{LATENCY}_bucket", le="+Inf", **_series(DEAD, answered_by))

    own, rescued = within(DEAD), within(BASELINE)
    counted("/rescued/200", 200, DEAD, BASELINE, error=False)
    assert (within(DEAD), within(BASELINE)) == (own, rescued + 1)


def test_latencies_fall_into_the_buckets_that_were_asked_for(counted: Counted, router: Router):
    counted("/baseline/200", 200, BASELINE, BASELINE, error=False)
    bounds = {
        dict(labels)["le"]
        for name, labels in router.samples()
        if name == f"{LATENCY}_bucket" and ("version", BASELINE) in labels
    }
    assert {float(bound) for bound in bounds} == {*BUCKETS_MS, float("inf")}


def test_no_part_of_a_clusters_name_is_left_in_a_metrics_name(router: Router):
    assert not [name for name in router.names() if "tumour" in name or "variant" in name or "_0_0" in name]


def test_a_cluster_of_another_make_keeps_its_name_as_a_label(router: Router):
    names = {
        dict(labels).get("envoy_cluster_name")
        for name, labels in router.samples()
        if name == "envoy_cluster_membership_total"
    }
    assert "other" in names


def test_the_series_of_http_and_grpc_are_told_apart_by_protocol(router: Router):
    protocols = [
        dict(labels)["protocol"]
        for name, labels in router.samples()
        if name == "envoy_cluster_membership_total" and {("role", VARIANT), ("version", CANDIDATE)} <= labels
    ]
    assert sorted(protocols) == ["grpc", "http"]


@pytest.mark.parametrize("value", ["", "a|b", "a:b"])
def test_a_cluster_name_refuses_what_its_labels_could_not_be_read_out_of(value: str):
    with pytest.raises(ValueError, match="cluster's team"):
        cluster_name(VARIANT, value, "tumour", "1.0.0")
