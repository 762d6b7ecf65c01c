"""Looks at metrics: what a Prometheus of the real kind answers, and counters that do what counters do."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest
import yaml

from infra.contracts import NodeInventory, ObservationError, PlatformExports, QueryError, Room, Traffic
from infra.settings.rollout import Gate
from infra.single_node.machine import metrics
from infra.single_node.machine.node import NodeError
from infra.single_node.observe import Observer
from rollout.analysis.samples import WINDOW_SECONDS, Counts, Look, Sampler
from rollout.clock import SystemClock
from tests.deadline import until

V1, V2 = "1.0.0", "2.0.0-rc.1"


@dataclass
class ClockStandIn:
    """Time that passes when it is told to."""

    seconds: float = 0.0
    jumped: float = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(1e9 + self.seconds + self.jumped, UTC)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class ObserverStandIn:
    """A data plane's traffic, and metrics out of a table."""

    weights: dict[str, int] = field(default_factory=lambda: {V1: 90, V2: 10})
    shadow: dict[str, float] = field(default_factory=dict)
    series: dict[tuple[str, str, str, str], float] = field(default_factory=dict)
    """By name, version, source and instance; of buckets, the name ends with `/` and the bound."""
    age: float = 1.0
    answers: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    """By query, of gates."""
    dead: bool = False
    asked: list[str] = field(default_factory=list)

    def traffic(self, team: str, model: str) -> Traffic:
        return {"weights": self.weights, "shadow": self.shadow}

    def ready(self, team: str, model: str, versions: list[str]) -> dict[str, int]:
        raise NotImplementedError

    def room(self) -> Room:
        raise NotImplementedError

    def confirm(self) -> None:
        raise NotImplementedError

    def inventory(self) -> list[NodeInventory]:
        raise NotImplementedError

    def why_not_ready(self, team: str, model: str, version: str) -> list[str]:
        raise NotImplementedError

    def split(self, team: str, model: str, requests: int) -> dict[str, int] | None:
        raise NotImplementedError

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        self.asked.append(promql)
        if self.dead:
            raise ObservationError("Prometheus at http://127.0.0.1:9090 does not answer: refused")
        if not promql.startswith("{"):
            return self.answers.get(promql, [])
        found: list[tuple[dict[str, str], float]] = []
        for (key, version, source, instance), value in self.series.items():
            name, _, bound = key.partition("/")
            labels = {"team": "diagnostics", "model": "tumour", "version": version, "instance": instance}
            labels |= {"le": bound} if bound else {}
            labels |= {"source": source} if source else {}
            found.append(({"__name__": f"version:{name}", **labels}, value))
            if name == "requests:total":
                found.append(({"version": version, "source": source, "age": "s"}, self.age))
        return found

    def count(self, version: str, requests: float, errors: float = 0, source: str = "client", at: str = "router"):
        self.series["requests:total", version, source, at] = requests
        self.series["errors:total", version, source, at] = errors


class Scene:
    def __init__(self, *gates: Gate) -> None:
        self.observer = ObserverStandIn()
        self.clock = ClockStandIn()
        self.sampler = Sampler(self.observer, "diagnostics", "tumour", gates, self.clock)

    def look(self) -> Look:
        self.clock.seconds += 2
        return self.sampler.look([V1, V2])


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_the_first_look_is_where_counting_starts(scene: Scene):
    scene.observer.count(V1, 1_000_000, 5000)
    first = scene.look()
    assert (first.counts, first.problem, first.seconds) == ({}, "", 0.0)
    assert first.weights == {V1: 90, V2: 10}
    scene.observer.count(V1, 1_000_180, 5002)
    assert scene.look().counts[V1] == Counts(180, 2)


def test_a_version_that_never_had_a_request_has_none(scene: Scene):
    scene.observer.count(V1, 100)
    scene.look()
    assert scene.look().counts[V2] == Counts()


def test_a_new_series_counts_from_zero_where_its_router_was_counting(scene: Scene):
    scene.observer.count(V1, 100)
    scene.look()
    scene.observer.count(V2, 12, 3)
    assert scene.look().counts[V2] == Counts(12, 3)


def test_a_new_routers_first_values_are_where_counting_starts(scene: Scene):
    """It may have counted for days, under another scrape or before Prometheus lost its data."""
    scene.observer.count(V1, 100)
    scene.look()
    scene.observer.count(V1, 70_000, 9000, at="other")
    scene.observer.count(V1, 110)
    assert scene.look().counts[V1] == Counts(10)
    scene.observer.count(V1, 70_005, 9001, at="other")
    assert scene.look().counts[V1] == Counts(5, 1)


def test_a_counter_that_began_anew_counts_from_zero(scene: Scene):
    scene.observer.count(V1, 1000, 100)
    scene.look()
    scene.observer.count(V1, 7, 1)
    assert scene.look().counts[V1] == Counts(7, 1)


def test_errors_that_are_ahead_of_their_requests_wait(scene: Scene):
    scene.observer.count(V1, 100)
    scene.look()
    scene.observer.count(V1, 102, 3)
    assert scene.look().counts[V1] == Counts(2, 2)
    scene.observer.count(V1, 110, 3)
    assert scene.look().counts[V1] == Counts(8, 1)


def test_latencies_come_by_bound_and_rise_with_it(scene: Scene):
    scene.observer.count(V1, 100)
    for bound, value in {"10": 50, "20": 90, "+Inf": 100}.items():
        scene.observer.series[f"latency_ms:bucket/{bound}", V1, "client", "router"] = value
    scene.look()
    # The router began anew: what it has of the first bound happens to be more than before.
    for bound, value in {"10": 60, "20": 61, "+Inf": 62}.items():
        scene.observer.series[f"latency_ms:bucket/{bound}", V1, "client", "router"] = value
    assert scene.look().counts[V1].latency_ms == {10: 10, 20: 61, math.inf: 62}


def test_processor_time_is_summed_over_servers(scene: Scene):
    scene.observer.count(V1, 100)
    for server in ("a", "b"):
        scene.observer.series["cpu_seconds:total", V1, "", server] = 5.0
    scene.look()
    for server in ("a", "b", "new"):
        scene.observer.series["cpu_seconds:total", V1, "", server] = 6.5
    assert scene.look().counts[V1].cpu_seconds == pytest.approx(3.0)


def test_of_a_shadow_its_copies_count(scene: Scene):
    scene.observer.weights, scene.observer.shadow = {V1: 100}, {V2: 100.0}
    scene.observer.count(V1, 100)
    scene.look()
    scene.observer.count(V2, 5, 5)
    scene.observer.count(V2, 40, 1, source="shadow")
    look = scene.look()
    assert look.counts[V2] == Counts(40, 1)
    assert look.shadow == {V2: 100.0}


def test_a_dead_metrics_server_is_a_problem_and_loses_no_counts(scene: Scene):
    scene.observer.count(V1, 100)
    scene.look()
    scene.observer.dead = True
    assert "does not answer" in scene.look().problem
    scene.observer.dead = False
    scene.observer.count(V1, 150, 1)
    after = scene.look()
    assert (after.problem, after.counts[V1], after.seconds) == ("", Counts(50, 1), 2.0)


def test_a_stale_series_is_a_problem(scene: Scene):
    scene.observer.count(V1, 100)
    scene.look()
    scene.observer.age = 16.0
    look = scene.look()
    assert look.counts == {}
    assert look.problem == (
        "no fresh sample of version:requests:total for diagnostics/tumour: the newest sample is 16 s old"
    )


def test_metrics_without_the_endpoint_are_a_problem(scene: Scene):
    look = scene.look()
    assert look.problem == "no fresh sample of version:requests:total for diagnostics/tumour: there is none"


def test_of_a_version_whose_series_ended_nothing_is_known(scene: Scene):
    scene.observer.count(V1, 100)
    scene.observer.count(V2, 10)
    scene.look()
    del scene.observer.series["requests:total", V2, "client", "router"]
    assert scene.look().counts.keys() == {V1}


def test_seconds_are_those_that_passed_when_the_clock_jumps(scene: Scene):
    scene.observer.count(V1, 100)
    scene.look()
    scene.clock.jumped = -86400.0
    look = scene.look()
    assert look.seconds == 2.0
    assert look.at == pytest.approx(1e9 + 4 - 86400)


# -- queries of gates

ACCURACY = Gate(
    metric="promql",
    name="accuracy",
    better="higher",
    query='avg(rate(right{{team="{team}",model="{model}",version="{version}"}}[{window}]))'.replace("{{", "{").replace(
        "}}", "}"
    ),
)


def filled(version: str, window: str) -> str:
    return f'avg(rate(right{{team="diagnostics",model="tumour",version="{version}"}}[{window}]))'


def look_for(scene: Scene, seconds: float) -> list[Look]:
    return [scene.look() for _ in range(round(seconds / 2))]


def test_queries_are_asked_once_a_window_for_just_that_window():
    scene = Scene(ACCURACY)
    scene.observer.count(V1, 100)
    for version in (V1, V2):
        scene.observer.answers[filled(version, f"{WINDOW_SECONDS:.0f}s")] = [({}, 0.9)]
    looks = look_for(scene, 3 * WINDOW_SECONDS)
    values = [look.values for look in looks if look.values]
    assert values == [{"accuracy": {V1: 0.9, V2: 0.9}}] * 2
    assert not any(look.problems for look in looks)


@pytest.mark.parametrize(
    ("answer", "said"),
    [([], "gave 0 values"), ([({"a": "1"}, 1.0), ({"a": "2"}, 2.0)], "gave 2 values"), ([({}, math.nan)], "no number")],
)
def test_a_query_without_one_value_is_a_problem_of_its_gate_alone(
    answer: list[tuple[dict[str, str], float]], said: str
):
    scene = Scene(ACCURACY)
    scene.observer.count(V1, 100)
    scene.observer.answers[filled(V1, "10s")] = [({}, 0.9)]
    scene.observer.answers[filled(V2, "10s")] = answer
    look = look_for(scene, WINDOW_SECONDS + 2)[-1]
    assert look.problem == ""
    assert look.values == {"accuracy": {V1: 0.9}}
    assert look.problems["accuracy"].startswith(f"{V2}: the query must give one value")
    assert said in look.problems["accuracy"]
    assert look.counts.keys() == {V1, V2}


def test_a_look_is_one_query_for_all_counters(scene: Scene):
    scene.observer.count(V1, 100)
    look_for(scene, 20)
    assert len(scene.observer.asked) == 10


# -- Prometheus itself


@dataclass
class Exporter:
    """Serves counters, as recording rules would name them."""

    lines: dict[str, float]

    def __post_init__(self) -> None:
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = "".join(f"{name} {value}\n" for name, value in exporter.lines.items()).encode()
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@dataclass
class PrometheusObserver(ObserverStandIn):
    url: str = ""

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        try:
            return metrics.query(self.url, promql)
        except NodeError as error:
            raise ObservationError(str(error)) from None


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    exporter = Exporter({})
    yield exporter
    exporter.close()


@pytest.fixture
def prometheus(tmp_path: Path, exporter: Exporter) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    tools = Path(__file__).parents[2] / ".tools" / "bin"
    found = shutil.which("prometheus", path=f"{os.environ['PATH']}{os.pathsep}{tools}")
    assert found is not None, "no prometheus on PATH or in .tools/bin: `make tools` builds it"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = {"targets": [f"127.0.0.1:{exporter.port}"]}
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "counters", "honor_labels": True, "static_configs": [target]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [
            found,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )
    yield f"http://127.0.0.1:{port}", process
    process.terminate()
    process.wait()


def lines(versions: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for version, (requests, errors) in versions.items():
        whose = f'team="diagnostics",model="tumour",version="{version}",instance="router"'
        found[f'version:requests:total{{{whose},source="client"}}'] = requests
        found[f'version:errors:total{{{whose},source="client"}}'] = errors
        for bound in ("10", "+Inf"):
            found[f'version:latency_ms:bucket{{{whose},source="client",le="{bound}"}}'] = requests
        found[f"version:cpu_seconds:total{{{whose}}}"] = requests / 100
    return found


def look_until(sampler: Sampler, wanted: str, seconds: float = 20) -> list[Look]:
    """Looks until one has the version's requests, or a problem if that is wanted."""
    deadline, looks = time.monotonic() + seconds, list[Look]()
    while time.monotonic() < deadline:
        looks.append(sampler.look([V1, V2]))
        last = looks[-1]
        if last.problem if wanted == "problem" else wanted in last.counts and last.counts[wanted].requests:
            return looks
    raise AssertionError(f"no {wanted} in {seconds} s; the last look: {looks[-1]}")


def test_looks_read_a_real_prometheus(prometheus: tuple[str, subprocess.Popen[bytes]], exporter: Exporter):
    url, process = prometheus
    # Of another version, whose name the dots of the first would match.
    exporter.lines = lines({V1: (1000, 10), "1x0x0": (7, 7)})
    sampler = Sampler(PrometheusObserver(url=url), "diagnostics", "tumour", (), SystemClock())
    deadline = time.monotonic() + 20
    while (look := sampler.look([V1, V2])).problem:
        assert time.monotonic() < deadline, look.problem
    exporter.lines = lines({V1: (1100, 12), V2: (9, 4), "1x0x0": (9, 9)})
    look = look_until(sampler, V2)[-1]
    assert look.counts[V2] == Counts(9, 4, {10: 9, math.inf: 9}, cpu_seconds=0.09)
    assert look.counts.keys() == {V1, V2}

    # The series end: Prometheus says so at once, and no look takes them for quiet.
    exporter.lines = {}
    assert "there is none" in look_until(sampler, "problem")[-1].problem

    exporter.lines = lines({V1: (1150, 12), V2: (10, 4)})
    deadline = time.monotonic() + 20
    seen = Counts()
    while not seen.requests:
        seen = sampler.look([V1, V2]).counts.get(V1, Counts())
        assert time.monotonic() < deadline
    assert (seen.requests, seen.errors, seen.latency_ms) == (50, 0, {10: 50, math.inf: 50})
    assert seen.cpu_seconds == pytest.approx(0.5)

    process.terminate()
    process.wait()
    assert "does not answer" in sampler.look([V1, V2]).problem


@pytest.mark.parametrize(("query", "said"), [("rate(", "parse error"), ("time()", "scalar"), ("up[1m]", "matrix")])
def test_a_query_that_gives_no_vector_is_told_from_metrics_that_are_away(
    query: str, said: str, prometheus: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
):
    url, _ = prometheus
    exports = {"environment": "dev", "internals": {"directory": str(tmp_path), "gpus": []}, "metrics_url": url}
    observer = Observer(cast("PlatformExports", exports))
    until(lambda: answers(observer), what="Prometheus answers")
    with pytest.raises(QueryError, match=said):
        observer.query(query)


def answers(observer: Observer) -> bool:
    try:
        observer.query("vector(1)")
    except ObservationError:
        return False
    return True
