"""The node's exporter, run as the process that it is, beside processes marked as a model version's servers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infra.single_node.machine.exporter import Gpu, GpuCollector, Process, VersionCollector

DEADLINE_SECONDS = 30

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

BURN = "while True: pass"
# A server of two processes: the burning one is the child.
BURN_IN_A_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])"
IDLE = "import signal; signal.pause()"


def parse(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def until(found: Callable[[], Any]) -> Any:
    """Asks until the answer is true; a scrape takes a while, so that asking is not spinning."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (result := found()):
        assert time.monotonic() < deadline, f"still {result!r} after {DEADLINE_SECONDS} s"
    return result


class Exporter:
    """A running exporter of the node in `directory`."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            self.port: int = chosen.getsockname()[1]
        command = [sys.executable, "-m", "infra.single_node.machine.exporter"]
        self.process = subprocess.Popen([*command, "--directory", str(directory), "--port", str(self.port)])

    def scrape(self) -> Samples:
        while True:
            assert self.process.poll() is None, "the exporter has ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                    return parse(answer.read().decode())
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):
                    raise

    def version(self, name: str, version: str) -> float | None:
        return value(self.scrape(), f"lepton_version_{name}", team="diagnostics", model="tumour", version=version)


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    exporter = Exporter(tmp_path)
    yield exporter
    exporter.process.terminate()
    exporter.process.wait(timeout=DEADLINE_SECONDS)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a Python program as a server of version `version` of the node in `directory`."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(program: str, version: str, directory: Path = tmp_path) -> subprocess.Popen[bytes]:
        marks = {"LEPTON_TEAM": "diagnostics", "LEPTON_MODEL": "tumour", "LEPTON_VERSION": version}
        environment = os.environ | marks | {"LEPTON_NODE": str(directory)}
        server = subprocess.Popen([sys.executable, "-c", program], env=environment)
        servers.append(server)
        return server

    yield start
    for server in servers:
        end(server)


def end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.kill()
        server.kill()
    server.wait(timeout=DEADLINE_SECONDS)


# -- as a process


def test_a_versions_processor_time_grows_while_its_server_burns_it(exporter: Exporter, serve: Callable[..., Any]):
    exporter.scrape()
    serve(BURN, "1.0.0")
    first = until(lambda: exporter.version("cpu_seconds_total", "1.0.0"))
    assert until(lambda: (exporter.version("cpu_seconds_total", "1.0.0") or 0) > first + 0.2)


def test_what_a_servers_children_take_counts_for_its_version(exporter: Exporter, serve: Callable[..., Any]):
    exporter.scrape()
    server = serve(BURN_IN_A_CHILD, "1.0.0")
    assert until(lambda: exporter.version("processes", "1.0.0") == 2)
    own = psutil.Process(server.pid).cpu_times()
    assert until(
        lambda: (exporter.version("cpu_seconds_total", "1.0.0") or 0) > own.user + own.system + 0.3,
    )


def test_a_versions_memory_is_what_its_server_has_resident(exporter: Exporter, serve: Callable[..., Any]):
    server = serve(f"held = bytearray(b'x' * 2**26); {IDLE}", "1.0.0")

    def agrees() -> bool:
        # While it starts, it holds more from one moment to the next.
        found, resident = exporter.version("memory_bytes", "1.0.0"), psutil.Process(server.pid).memory_info().rss
        return resident > 2**26 and found == pytest.approx(resident, rel=0.1)

    until(agrees)


def test_versions_are_told_apart(exporter: Exporter, serve: Callable[..., Any]):
    serve(IDLE, "1.0.0")
    serve(IDLE, "2.0.0-rc.1")
    assert until(lambda: exporter.version("processes", "1.0.0") == 1)
    assert until(lambda: exporter.version("processes", "2.0.0-rc.1") == 1)


def test_servers_of_another_node_are_not_counted(exporter: Exporter, serve: Callable[..., Any], tmp_path: Path):
    serve(IDLE, "3.0.0", directory=tmp_path / "other")
    serve(IDLE, "1.0.0")
    until(lambda: exporter.version("processes", "1.0.0"))
    assert exporter.version("processes", "3.0.0") is None


def test_a_version_whose_server_has_ended_has_no_figures(exporter: Exporter, serve: Callable[..., Any]):
    server = serve(IDLE, "1.0.0")
    until(lambda: exporter.version("processes", "1.0.0"))
    end(server)
    assert exporter.version("memory_bytes", "1.0.0") is None


def test_the_nodes_own_figures_are_those_of_the_machine(exporter: Exporter, tmp_path: Path):
    samples = exporter.scrape()
    memory = [value(samples, "lepton_node_memory_bytes", state=state) for state in ("used", "free")]
    assert sum(part or 0 for part in memory) == psutil.virtual_memory().total
    disk = [value(samples, "lepton_node_disk_bytes", state=state) for state in ("used", "free")]
    now = psutil.disk_usage(str(tmp_path))
    assert disk == pytest.approx([now.used, now.free], rel=0.05)
    assert value(samples, "lepton_node_cpu_seconds_total", mode="idle") == pytest.approx(
        psutil.cpu_times().idle, abs=60
    )


def test_it_listens_on_loopback_only(exporter: Exporter):
    exporter.scrape()
    connections = psutil.Process(exporter.process.pid).net_connections(kind="inet")
    assert {connection.laddr.ip for connection in connections if connection.status == "LISTEN"} == {"127.0.0.1"}


def test_it_ends_when_it_is_told_to(exporter: Exporter):
    exporter.scrape()
    exporter.process.terminate()
    assert exporter.process.wait(timeout=DEADLINE_SECONDS) == 0


# -- with processes made up

MARKS = {"LEPTON_NODE": "/node", "LEPTON_TEAM": "diagnostics", "LEPTON_MODEL": "tumour", "LEPTON_VERSION": "1.0.0"}
TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """Processes and their environments, and a clock, which started an hour before the exporter."""

    def __init__(self) -> None:
        self.now = 3600.0
        self.processes: list[Process] = []
        self.environments: dict[int, dict[str, str]] = {}
        self.asked: list[int] = []
        collector = VersionCollector(Path("/node"), lambda: self.processes, self.environment, lambda: self.now)
        self.registry = CollectorRegistry()
        self.registry.register(collector)

    def environment(self, pid: int) -> dict[str, str]:
        self.asked.append(pid)
        if pid not in self.environments:
            raise psutil.NoSuchProcess(pid)
        return self.environments[pid]

    def cpu_seconds(self) -> float | None:
        samples = parse(generate_latest(self.registry).decode())
        labels = {"team": "diagnostics", "model": "tumour", "version": "1.0.0"}
        return value(samples, "lepton_version_cpu_seconds_total", **labels)


def process(pid: int, started: float, cpu_seconds: float) -> Process:
    return Process(pid, round(started * TICKS), cpu_seconds, 4096)


def test_processor_time_does_not_fall_when_one_of_a_versions_processes_ends():
    machine = Machine()
    machine.environments = {1: MARKS, 2: MARKS}
    machine.processes = [process(1, 3601, 5.0), process(2, 3601, 7.0)]
    assert machine.cpu_seconds() == 12.0
    machine.processes = [process(1, 3601, 6.0)]
    assert machine.cpu_seconds() == 13.0


def test_a_container_of_the_node_is_counted_by_a_mark_of_its_own():
    machine = Machine()
    marks = {name: value for name, value in MARKS.items() if name != "LEPTON_NODE"}
    machine.environments = {1: marks | {"LEPTON_CONTAINER_OF": "/node"}, 2: marks | {"LEPTON_CONTAINER_OF": "/other"}}
    machine.processes = [process(1, 3601, 5.0), process(2, 3601, 7.0)]
    assert machine.cpu_seconds() == 5.0


def test_processor_time_from_before_the_exporter_is_not_counted_twice():
    machine = Machine()
    machine.environments = {1: MARKS}
    machine.processes = [process(1, 60, 1000.0)]
    assert machine.cpu_seconds() == 0.0
    machine.processes = [process(1, 60, 1002.0)]
    assert machine.cpu_seconds() == 2.0


def test_a_process_id_that_is_used_again_is_another_process():
    machine = Machine()
    machine.environments = {1: {}}
    machine.processes = [process(1, 60, 0.0)]
    assert machine.cpu_seconds() is None
    machine.environments = {1: MARKS}
    machine.processes = [process(1, 3700, 3.0)]
    assert machine.cpu_seconds() == 3.0


def test_a_process_that_vanishes_while_it_is_looked_at_is_left_out():
    machine = Machine()
    machine.environments = {1: MARKS}
    machine.processes = [process(1, 3601, 1.0), process(2, 3601, 1.0)]
    assert machine.cpu_seconds() == 1.0


def test_a_process_caught_before_it_became_the_server_is_found_later():
    machine = Machine()
    machine.environments = {1: {}}
    machine.processes = [process(1, machine.now - 0.1, 0.0)]
    assert machine.cpu_seconds() is None
    machine.environments = {1: MARKS}
    assert machine.cpu_seconds() == 0.0


def test_environments_are_read_once():
    machine = Machine()
    machine.environments = {1: MARKS, 2: {}}
    machine.processes = [process(1, 60, 1.0), process(2, 60, 1.0)]
    machine.cpu_seconds()
    machine.cpu_seconds()
    assert machine.asked == [1, 2]


def test_gpus_are_told_apart_with_used_and_free_memory():
    registry = CollectorRegistry()
    registry.register(GpuCollector(lambda: [Gpu("0", 0.5, 30, 40), Gpu("1", 0.0, 0, 40)]))
    samples = parse(generate_latest(registry).decode())
    assert value(samples, "lepton_node_gpu_utilisation_ratio", gpu="0") == 0.5
    assert value(samples, "lepton_node_gpu_utilisation_ratio", gpu="1") == 0.0
    assert value(samples, "lepton_node_gpu_memory_bytes", gpu="0", state="used") == 30
    assert value(samples, "lepton_node_gpu_memory_bytes", gpu="0", state="free") == 10
