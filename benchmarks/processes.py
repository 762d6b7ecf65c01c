"""Starts what is measured, each on the cores it may use, and ends it again."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

DEADLINE_SECONDS = 20.0
SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""PATH, and where Debian puts servers, which an ordinary user's PATH leaves out."""


class BenchmarkError(Exception):
    """A benchmark could not be run, or its figures would mean nothing. Its text says why."""


class MissingToolError(BenchmarkError):
    """A command that isn't there, and the Debian package that has it."""


@contextlib.contextmanager
def ended_gently() -> Iterator[None]:
    """SIGTERM ends the benchmark as an interrupt does: nothing of it is left."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Cores:
    """Who runs where: the router alone on one core, backends and load generators on the others."""

    router: tuple[int, ...]
    load: tuple[int, ...]

    @classmethod
    def share_out(cls) -> Cores:
        *load, router = sorted(os.sched_getaffinity(0))
        return cls(router=(router,), load=tuple(load) or (router,))


def find(command: str, package: str) -> str:
    path = shutil.which(command, path=SEARCHED)
    if path is None:
        raise MissingToolError(f"no `{command}` on PATH; Debian has it as: apt-get install {package}")
    return path


def version_of(command: Sequence[str]) -> str:
    """The first line in which a command tells its version, whatever its exit status and its stream."""
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (outcome.stdout + outcome.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def pinned(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    return [find("taskset", "util-linux"), "-c", ",".join(map(str, cores)), *command]


@contextlib.contextmanager
def running(command: Sequence[str], cores: Sequence[int], log: Path) -> Iterator[psutil.Process]:
    """A process, ended on leaving; its words go to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(command, cores), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until(condition: Callable[[], bool], what: str, log: Path | None = None) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            words = "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log else ""
            raise BenchmarkError(f"{what} did not come about within {DEADLINE_SECONDS:.0f} s\n{words}".strip())
        time.sleep(0.02)


def wait_for_port(port: int, log: Path) -> None:
    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, f"a listener on port {port}", log)


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and its children."""
    family = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (one.cpu_times() for one in family))


def get_status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
