"""A program that runs until it is stopped, or until the tests that need it have ended, however they ended.

Run as a script, this is the parent that makes it so: `python daemon.py OWNER_PID COMMAND…`.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class Daemon:
    """One program, with its output in `NAME.log` and the process to end in `NAME.daemon`, so that any test process
    of the run can stop it, and start it again.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._state = folder / f"{name}.daemon"

    def start(self, *command: str, env: Mapping[str, str] | None = None) -> None:
        if self.running:
            return
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-ISE", __file__, str(test_run()), *command],
                env=dict(os.environ) | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _started[process.pid] = process
        self._state.write_text(json.dumps({"pid": process.pid, "command": command, "env": dict(env or {})}))

    def start_again(self) -> None:
        """With the command of the last time."""
        state = json.loads(self._state.read_text())
        self.start(*state["command"], env=state["env"])

    def stop(self) -> None:
        """Kills it: what it holds is thrown away with it, and a fault test wants no farewell."""
        if self._state.exists():
            pid = json.loads(self._state.read_text())["pid"]
            if self.running:
                # The kernel kills the program with its parent.
                children = _children(pid)
                os.kill(pid, signal.SIGKILL)
                _wait_for_end(pid, *children)

    @property
    def running(self) -> bool:
        return self._state.exists() and _runs(json.loads(self._state.read_text())["pid"])

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def stop_all(folder: Path) -> None:
    """Every program that was started with this folder, whoever started it."""
    for state in folder.glob("*.daemon"):
        Daemon(state.stem, folder).stop()


_started: dict[int, subprocess.Popen[bytes]] = {}


def test_run() -> int:
    """The process that ends with the run of the tests: of xdist's workers the one that started them."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def missing(*commands: str) -> list[str]:
    return [command for command in commands if shutil.which(command) is None]


def _runs(pid: int) -> bool:
    if process := _started.get(pid):
        return process.poll() is None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for_end(*pids: int) -> None:
    for pid in pids:
        try:
            end = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if not select.select([end], [], [], 10)[0]:
            raise TimeoutError(f"process {pid} does not end")
        os.close(end)
        if process := _started.pop(pid, None):
            process.wait()


def _main() -> None:
    owner, *command = sys.argv[1:]
    prctl = ctypes.CDLL(None).prctl
    try:
        ends = [os.pidfd_open(int(owner))]
    except ProcessLookupError:
        return
    process = subprocess.Popen(command, preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))  # noqa: PLW1509
    ends.append(os.pidfd_open(process.pid))
    # What starts under this process dies with it: it has only to end with whichever ends first.
    select.select(ends, [], [])


if __name__ == "__main__":
    _main()
