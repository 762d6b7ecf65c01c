"""Engine `local`: a process a version, several at a time, on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from infra.single_node.machine.marks import end_marked
from model_packaging.evaluation.plan import Plan
from model_packaging.evaluation.results import Failure
from model_packaging.evaluation.version import Notify, Outcome, Progress, run_version

# Forking a process that has threads, as NumPy's may be, can deadlock.
_PROCESSES = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class LocalEngine:
    """Processes on this machine. A server has its own process besides."""

    workers: int = 1
    """Versions at a time."""

    def run(self, plans: Sequence[Plan], notify: Notify) -> list[Outcome | Failure]:
        outcomes: dict[int, Outcome | Failure] = {}
        waiting = deque(enumerate(plans))
        for plan in plans:
            notify(Progress(plan.request.model, plan.request.version, "waiting", total=plan.dataset.rows))
        running: dict[Connection, tuple[int, _Worker]] = {}
        neighbours = min(self.workers, len(plans)) - 1
        with tempfile.TemporaryDirectory(prefix="lepton-evaluation-") as scratch:
            try:
                while waiting or running:
                    while waiting and len(running) < self.workers:
                        number, plan = waiting.popleft()
                        worker = _Worker(plan, Path(scratch, str(number)), neighbours)
                        running[worker.connection] = number, worker
                    for connection in wait(list(running)):
                        assert isinstance(connection, Connection)
                        number, worker = running[connection]
                        said = worker.hear()
                        if isinstance(said, Progress):
                            notify(said)
                        else:
                            outcomes[number] = said
                            del running[connection]
            finally:
                for _, worker in running.values():
                    worker.end()
        return [outcomes[number] for number in range(len(plans))]


class _Worker:
    """The process that evaluates one version."""

    def __init__(self, plan: Plan, scratch: Path, neighbours: int) -> None:
        scratch.mkdir()
        self._plan = plan
        self._scratch = scratch
        self.connection, theirs = _PROCESSES.Pipe()
        self._process: SpawnProcess = _PROCESSES.Process(target=_work, args=(plan, scratch, neighbours, theirs))
        self._process.start()
        # Its end of the pipe is its alone then, so that its death is the pipe's end.
        theirs.close()

    def hear(self) -> Progress | Outcome | Failure:
        """What the process says next; its death is a failure."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            self.end()
            request = self._plan.request
            return Failure(
                model=request.model,
                version=request.version,
                reason=f"the process that evaluated it ended with status {self._process.exitcode}, "
                "as it does when the machine runs out of memory; evaluate fewer versions at a time",
            )
        if not isinstance(said, Progress):
            self.end()
        return said

    def end(self) -> None:
        """Ends the process, which may have said all it had to say, and whatever it left behind."""
        self.connection.close()
        self._process.terminate()
        self._process.join()
        end_marked(str(self._scratch))


def _work(plan: Plan, scratch: Path, neighbours: int, connection: Connection) -> None:
    # Ctrl-C reaches all processes of the terminal; whoever started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(BrokenPipeError):
        connection.send(run_version(plan, scratch, neighbours, connection.send))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
