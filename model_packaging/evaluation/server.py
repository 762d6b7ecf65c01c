"""One version's server for as long as its evaluation lasts: the production command, on free ports of this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.settings.version import RESERVED_VARIABLES
from infra.single_node.machine.limits import Limits
from infra.single_node.machine.marks import NODE_VARIABLE, PROGRAM_VARIABLE
from infra.single_node.machine.servers import ServerSpec, is_ready, server_command
from infra.single_node.machine.supervisor import INHERITED
from model_packaging.errors import ServerFailed
from model_packaging.evaluation import guard
from model_packaging.evaluation.options import EvaluationRequest

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.05
_STOP_SECONDS = 5.0
_LOG_LINES = 20

# Besides what a node's servers inherit: the devices that this evaluation may use.
_INHERITED = (*INHERITED, *RESERVED_VARIABLES)


@dataclass(frozen=True)
class RunningServer:
    """A server that was ready once."""

    url: str
    start_seconds: float
    log: Path
    process: subprocess.Popen[bytes]

    def failure(self, what: str) -> ServerFailed:
        """An error that says what happened, whether the server still runs, and what it wrote last."""
        return _failure(self.process, self.log, what)


@contextlib.contextmanager
def running_server(request: EvaluationRequest, scratch: Path, ready_seconds: float) -> Iterator[RunningServer]:
    """Starts the version's server in its unpacked folder, and ends it with all its processes after the block.

    Args:
        request: says what and where.
        scratch: a folder of this server's own, for its log. Its path marks the processes.
        ready_seconds: how long it may take until its ready path answers 200.

    Raises:
        ServerFailed: it ended before it was ready, or took too long; with its last log lines.
    """
    settings = request.serving
    purposes = ["http", *(["grpc"] if settings.grpc else []), *(["metrics"] if settings.metrics_path else [])]
    ports = _free_ports(purposes)
    spec = ServerSpec(
        team="evaluation",
        model=request.model,
        version=request.version,
        model_dir=str(request.folder),
        server=settings,
        env={},
        limits=Limits(),
        gpus=0,
        image=None,
        drain_seconds=_STOP_SECONDS,
    )
    command, env = server_command(spec, _HOST, ports, str(request.folder))
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    log = scratch / "server.log"
    started = time.monotonic()
    process = guard.start(
        {
            "command": command,
            "env": inherited | env | {NODE_VARIABLE: str(scratch), PROGRAM_VARIABLE: "server"},
            "directory": str(scratch),
            "log": str(log),
            "stop_seconds": _STOP_SECONDS,
        },
        scratch,
    )
    try:
        while not is_ready(ports["http"], settings.ready_path):
            if process.poll() is not None:
                raise _failure(process, log, "did not become ready")
            if time.monotonic() > started + ready_seconds:
                what = f"was not ready within {ready_seconds:g} s (GET {settings.ready_path})"
                raise _failure(process, log, what)
            time.sleep(_POLL_SECONDS)
        yield RunningServer(f"http://{_HOST}:{ports['http']}", time.monotonic() - started, log, process)
    finally:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def _failure(process: subprocess.Popen[bytes], log: Path, what: str) -> ServerFailed:
    # One that died under a request needs a moment until its guard knows.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    ended = "" if process.returncode is None else f" and ended with status {process.returncode}"
    return ServerFailed(f"the server {what}{ended}. Its last log lines:\n{_tail(log)}")


def _tail(log: Path) -> str:
    try:
        with log.open(errors="replace") as lines:
            return "".join(deque(lines, _LOG_LINES)).rstrip() or "(none)"
    except FileNotFoundError:
        return "(none)"


def _free_ports(purposes: list[str]) -> dict[str, int]:
    """A loopback port for each purpose, that nobody had just now."""
    with contextlib.ExitStack() as held:
        ports: dict[str, int] = {}
        for purpose in purposes:
            probe = held.enter_context(socket.socket())
            probe.bind((_HOST, 0))
            ports[purpose] = probe.getsockname()[1]
        return ports
