"""Serves the node's own figures to Prometheus: processor, memory, disk, GPUs, and what each model version takes.

A version's processes are found by the variables that its servers are started with, which their children inherit. Run as
`python -m infra.single_node.machine.exporter --directory DIR --port PORT`; it listens on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.single_node.machine.marks import CONTAINER_VARIABLE, NODE_VARIABLE

VERSION_VARIABLES = ("LEPTON_TEAM", "LEPTON_MODEL", "LEPTON_VERSION")

_LABELS = ("team", "model", "version")
# A process that was just forked still has its parent's environment, until it is replaced by the program it is to be.
_SETTLED_SECONDS = 5.0

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Version = tuple[str, str, str]


class Process(NamedTuple):
    """A process at this moment."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks since the machine did; with the id, tells it from any other process."""
    cpu_seconds: float
    memory_bytes: int


class Gpu(NamedTuple):
    """A GPU at this moment."""

    id: str
    utilisation_ratio: float
    memory_used_bytes: int
    memory_total_bytes: int


def all_processes() -> Iterator[Process]:
    """The machine's processes, by one read each: psutil takes several, and there may be hundreds.

    Source: proc_pid_stat(5).
    """
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                line = file.read()
        except OSError:
            continue
        # The second field, the program's name in parentheses, may hold anything; what follows starts with the third.
        fields = line[line.rindex(b")") + 2 :].split()
        user, system, start, pages = (int(fields[number - 3]) for number in (14, 15, 22, 24))
        yield Process(int(entry), start, (user + system) / _TICKS, pages * _PAGE_BYTES)


def environment_of(pid: int) -> dict[str, str]:
    """Raises psutil.Error when the process has ended, or is not ours to look at."""
    return psutil.Process(pid).environ()


class NodeCollector(Collector):
    """The machine's processor, memory and disk. `directory`: where the disk is looked at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily(
            "lepton_node_cpu_seconds", "Processor time of all cores by what for.", labels=["mode"]
        )
        times = psutil.cpu_times()._asdict()
        for mode, seconds in times.items():
            # Time for guests is in `user` and `nice` already.
            if not mode.startswith("guest"):
                cpu.add_metric([mode], seconds)
        yield cpu
        memory = psutil.virtual_memory()
        yield _bytes(
            "memory", "Memory, used or available to a new process.", memory.total - memory.available, memory.available
        )
        disk = psutil.disk_usage(str(self._directory))
        yield _bytes("disk", "Space of the disk that the node's files are on, used or free.", disk.used, disk.free)


class VersionCollector(Collector):
    """Processor time and memory of each model version's processes.

    `processes` lists all of the machine, `environment` is that of one, `clock` tells seconds since the machine's start.
    """

    def __init__(
        self,
        directory: Path,
        processes: Callable[[], Iterable[Process]] = all_processes,
        environment: Callable[[int], dict[str, str]] = environment_of,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._directory = str(directory)
        self._processes = processes
        self._environment = environment
        self._clock = clock
        self._started = clock()
        # By process id and start, as ids are used again.
        self._version_of: dict[tuple[int, int], Version | None] = {}
        self._cpu_seen: dict[tuple[int, int], float] = {}
        # A sum over living processes would fall when one ends, and look like a counter that starts anew.
        self._cpu_total: dict[Version, float] = defaultdict(float)
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily(
            "lepton_version_cpu_seconds", "Processor time of a version's processes.", labels=_LABELS
        )
        memory = GaugeMetricFamily(
            "lepton_version_memory_bytes", "Resident memory of a version's processes.", labels=_LABELS
        )
        count = GaugeMetricFamily("lepton_version_processes", "Processes of a version.", labels=_LABELS)
        with self._lock:
            for version, processes in self._scan().items():
                cpu.add_metric(version, self._cpu_total[version])
                memory.add_metric(version, sum(process.memory_bytes for process in processes))
                count.add_metric(version, len(processes))
        yield from (cpu, memory, count)

    def _scan(self) -> dict[Version, list[Process]]:
        found: dict[Version, list[Process]] = defaultdict(list)
        alive: set[tuple[int, int]] = set()
        for process in self._processes():
            key = (process.pid, process.start_ticks)
            alive.add(key)
            version = self._version(process)
            if version is not None:
                found[version].append(process)
                self._count(process, version)
        for known in (self._version_of, self._cpu_seen):
            for key in known.keys() - alive:
                del known[key]
        return found

    def _version(self, process: Process) -> Version | None:
        key = (process.pid, process.start_ticks)
        if key in self._version_of:
            return self._version_of[key]
        try:
            version = self._marked(self._environment(process.pid))
        except (psutil.Error, OSError):
            version = None
        if version is not None or self._clock() - process.start_ticks / _TICKS > _SETTLED_SECONDS:
            self._version_of[key] = version
        return version

    def _marked(self, environment: dict[str, str]) -> Version | None:
        if self._directory not in {environment.get(NODE_VARIABLE), environment.get(CONTAINER_VARIABLE)}:
            return None
        team, model, version = (environment.get(name, "") for name in VERSION_VARIABLES)
        return (team, model, version) if team and model and version else None

    def _count(self, process: Process, version: Version) -> None:
        key = (process.pid, process.start_ticks)
        # What an older process took before this exporter ran was counted by the one before it.
        is_new = process.start_ticks / _TICKS >= self._started
        before = self._cpu_seen.get(key, 0.0 if is_new else process.cpu_seconds)
        self._cpu_total[version] += max(0.0, process.cpu_seconds - before)
        self._cpu_seen[key] = process.cpu_seconds


class GpuCollector(Collector):
    """The machine's GPUs."""

    def __init__(self, gpus: Callable[[], Iterable[Gpu]]) -> None:
        self._gpus = gpus

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        utilisation = GaugeMetricFamily(
            "lepton_node_gpu_utilisation_ratio", "Time in which the GPU was at work, 0 to 1.", labels=["gpu"]
        )
        memory = GaugeMetricFamily("lepton_node_gpu_memory_bytes", "The GPU's memory.", labels=["gpu", "state"])
        for gpu in self._gpus():
            utilisation.add_metric([gpu.id], gpu.utilisation_ratio)
            memory.add_metric([gpu.id, "used"], gpu.memory_used_bytes)
            memory.add_metric([gpu.id, "free"], gpu.memory_total_bytes - gpu.memory_used_bytes)
        yield from (utilisation, memory)


def nvidia_gpus() -> Callable[[], list[Gpu]] | None:
    """Reads NVIDIA's GPUs through NVML; None where its library or a device is missing."""
    try:
        import pynvml as nvml  # noqa: PLC0415  # pyright: ignore[reportMissingImports] - an extra, for nodes with GPUs
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handles = {str(index): nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())}
    except nvml.NVMLError:
        return None

    def read() -> list[Gpu]:
        gpus: list[Gpu] = []
        for index, handle in handles.items():
            try:
                # NVML's structures; their fields have no types of their own.
                memory: Any = nvml.nvmlDeviceGetMemoryInfo(handle)
                rates: Any = nvml.nvmlDeviceGetUtilizationRates(handle)
            except nvml.NVMLError:
                # A lost device has no figures; the others still have.
                continue
            gpus.append(Gpu(index, rates.gpu / 100, memory.used, memory.total))
        return gpus

    return read if handles else None


def node_registry(directory: Path) -> CollectorRegistry:
    """All that this machine can tell. `directory`: the node's folder, as its processes' variable names it."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(directory))
    registry.register(VersionCollector(directory))
    gpus = nvidia_gpus()
    if gpus is not None:
        registry.register(GpuCollector(gpus))
    return registry


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="the node's folder")
    parser.add_argument("--port", type=int, required=True, help="where to serve /metrics, on 127.0.0.1")
    options = parser.parse_args(arguments)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server, thread = start_http_server(options.port, "127.0.0.1", node_registry(options.directory))
    stopped.wait()
    server.shutdown()
    server.server_close()
    thread.join()


def _bytes(what: str, description: str, used: int, free: int) -> Metric:
    metric = GaugeMetricFamily(f"lepton_node_{what}_bytes", description, labels=["state"])
    metric.add_metric(["used"], used)
    metric.add_metric(["free"], free)
    return metric


if __name__ == "__main__":
    main()
