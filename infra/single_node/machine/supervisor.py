"""Keeps the node's programs running: a `supervisord` started on demand, told over its Unix socket.

Protocol: http://supervisord.org/api.html
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import time
import xmlrpc.client
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport

from infra.files import read_json, salvage_json, write_atomically, write_json
from infra.single_node.machine import limits
from infra.single_node.machine.marks import NODE_VARIABLE, PROGRAM_VARIABLE, end_marked, has_mark
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.program import Program

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""What servers have of the environment of whoever starts them."""
_PULUMI = (
    "PULUMI_BACKEND_URL",
    "PULUMI_CONFIG_PASSPHRASE",
    "PULUMI_CONFIG_PASSPHRASE_FILE",
    "PULUMI_ACCESS_TOKEN",
    "PULUMI_HOME",
)
"""Which of Pulumi's variables are the user's; an update sets more for its own processes."""
_OWN = ("LEPTON_CATALOGUE", "LEPTON_REGISTRY_")
"""How those of ours start that say where things are; others are marks, or for one command."""
_START_SECONDS = 10
LOG_BYTES = 10_000_000
"""A log is rotated at this size; two older ones are kept."""


class Supervisor:
    """The node's supervisord. `start` first; every other method needs it running."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._socket = node.socket("supervisor.sock")

    # -- the supervisor itself

    def is_running(self) -> bool:
        try:
            return self._call("getState")["statename"] == "RUNNING"
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return False

    def start(self) -> None:
        """Starts supervisord unless it runs, with every program that has a file.

        Raises:
            NodeError: when it doesn't come up, with its last log lines.
        """
        with self._node.locked("supervisor"):
            self._node.create()
            write_atomically(self._configuration, self._render_configuration())
            if self.is_running():
                return
            # A supervisor that was killed leaves its programs behind, holding their ports.
            self._end_strays()
            started = subprocess.run(
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)],
                env=handed_on(os.environ) | {NODE_VARIABLE: str(self._node.directory)},
                cwd=self._node.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            deadline = time.monotonic() + _START_SECONDS
            while not self.is_running():
                if started.returncode != 0 or time.monotonic() > deadline:
                    raise NodeError(f"supervisord did not start:\n{started.stdout}{self.log_tail('supervisord')}")
                time.sleep(0.02)

    def stop(self) -> None:
        """Stops every program and supervisord, and waits until they are gone."""
        with self._node.locked("supervisor"):
            if self.is_running():
                pid = self._call("getPID")
                # All at once: a shutdown alone stops one after the other.
                self._call("stopAllProcesses")
                names = [path.stem for path in self._node.programs.glob("*.conf")]
                self._call("shutdown")
                # One that takes longer is ended with the strays.
                with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                    psutil.Process(pid).wait(timeout=self._longest_stop(names) + _START_SECONDS)
            self._end_strays()
            limits.forget_all(self._control_groups)

    def forget_programs(self) -> None:
        """Has the next start start nothing."""
        with self._node.locked("supervisor"):
            for path in self._node.programs.glob("*"):
                path.unlink()

    def own_drift(self) -> list[str]:
        """supervisord's own file, if it is not as `start` writes it."""
        return self._differing({self._configuration: self._render_configuration()})

    # -- its programs

    def put(self, program: Program) -> None:
        """Runs `program`, restarting it if it ran with another specification or other files."""
        specification = self._specify(program)
        files = {**program.files, self._program(program.name): self._render_program(program)}
        if salvage_json(self._specification(program.name)) != specification or self._differing(files):
            self._remove(program.name)
        with self._node.locked("supervisor"):
            write_json(self._specification(program.name), specification, mode=0o600)
            for file, content in files.items():
                write_atomically(file, content, mode=0o600)
            self._call("reloadConfig")
        with _already(Faults.ALREADY_ADDED):
            self._call("addProcessGroup", program.name)
        # Added before, and stopped by hand since.
        if self.state(program.name) in {"STOPPED", "EXITED", "FATAL"}:
            with _already(Faults.ALREADY_STARTED):
                self._call("startProcess", program.name, False)

    def remove(self, name: str) -> None:
        """Stops the program and forgets it; fine if there is none."""
        running = self.is_running()
        if running:
            self._remove(name)
        with self._node.locked("supervisor"):
            self._program(name).unlink(missing_ok=True)
            self._specification(name).unlink(missing_ok=True)
            if running:
                self._call("reloadConfig")
        limits.forget(self._control_group(name))
        for log in self._node.logs.glob(f"{name}.log*"):
            log.unlink(missing_ok=True)

    def drift(self, program: Program) -> list[str]:
        """Which of the program's files are not as `put` writes them.

        What depends on who asks is left out: where the command was found, and the inherited environment.
        """

        def lasting(specification: dict[str, Any]) -> dict[str, Any]:
            env = {name: value for name, value in specification["env"].items() if name not in INHERITED}
            return specification | {"command": specification["command"][1:], "env": env}

        problems = self._differing({**program.files, self._program(program.name): self._render_program(program)})
        file = self._specification(program.name)
        try:
            same = lasting(salvage_json(file)) == lasting(self._specify(program))
        except (AttributeError, KeyError, TypeError):
            same = False
        return problems if same else [*problems, self._is_changed(file)]

    def state(self, name: str) -> str | None:
        """Supervisor's state name (`RUNNING`, `BACKOFF`, …); None for a program or a supervisor that isn't there."""
        info = self._info(name)
        return info["statename"] if info else None

    def pid(self, name: str) -> int | None:
        info = self._info(name)
        return info["pid"] or None if info else None

    def has_file(self, name: str) -> bool:
        return self._program(name).exists()

    def log_tail(self, name: str, lines: int = 20) -> str:
        """The last lines that the program wrote."""
        tail: deque[str] = deque(maxlen=lines)
        # One that was just rotated is empty.
        for file in (f"{name}.log.1", f"{name}.log"):
            with contextlib.suppress(FileNotFoundError), (self._node.logs / file).open(errors="replace") as log:
                tail.extend(log)
        return "".join(tail)

    # -- inside

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(None, None, serverurl=f"unix://{self._socket}")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)

    def _info(self, name: str) -> dict[str, Any] | None:
        try:
            return self._call("getProcessInfo", name)
        except OSError:
            return None
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != Faults.BAD_NAME:
                raise
            return None

    def _remove(self, name: str) -> None:
        with _already(Faults.BAD_NAME):
            self._call("stopProcessGroup", name)
            self._call("removeProcessGroup", name)
        # Workers that outlived their server.
        end_marked(str(self._node.directory), name)

    def _specify(self, program: Program) -> dict[str, Any]:
        marks = {NODE_VARIABLE: str(self._node.directory)}
        if not program.leaves_children:
            marks[PROGRAM_VARIABLE] = program.name
        specification = {
            "command": program.command,
            "directory": str(self._node.directory),
            "env": self._environment() | program.env | marks,
            "limits": asdict(program.limits),
            "control_group": self._control_group(program.name),
            "stop_seconds": program.stop_seconds,
        }
        # A key that most have no use for would make all of them differ from what runs on older nodes.
        return specification | ({"inherits": True} if program.inherits else {})

    def _differing(self, files: Mapping[Path, str]) -> list[str]:
        return [self._is_changed(file) for file, content in files.items() if _content(file) != content]

    def _is_changed(self, file: Path) -> str:
        return f"{file.relative_to(self._node.directory)} is not as configured"

    def _program(self, name: str) -> Path:
        return self._node.programs / f"{name}.conf"

    def _specification(self, name: str) -> Path:
        return self._node.programs / f"{name}.json"

    @property
    def _control_groups(self) -> str:
        return f"lepton-{self._node.id}"

    def _control_group(self, name: str) -> str:
        return f"{self._control_groups}/{name}"

    @property
    def _configuration(self) -> Path:
        return self._node.run / "supervisord.conf"

    def _environment(self) -> dict[str, str]:
        return {name: os.environ[name] for name in INHERITED if name in os.environ}

    def _render_configuration(self) -> str:
        return _ini(
            {
                "unix_http_server": {"file": self._socket, "chmod": "0700"},
                "supervisord": {
                    "logfile": self._node.logs / "supervisord.log",
                    "logfile_maxbytes": LOG_BYTES,
                    "logfile_backups": 2,
                    "pidfile": self._node.run / "supervisord.pid",
                    "childlogdir": self._node.logs,
                    "directory": self._node.directory,
                    "silent": "true",
                },
                "rpcinterface:supervisor": {
                    "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
                },
                "include": {"files": self._node.programs / "*.conf"},
            }
        )

    def _render_program(self, program: Program) -> str:
        launch = f"{sys.executable} -m infra.single_node.machine.launch {self._specification(program.name)}"
        return _ini(
            {
                f"program:{program.name}": {
                    "command": launch,
                    "directory": Path(__file__).parents[3],
                    "autostart": "true",
                    "autorestart": "true",
                    "startsecs": 1,
                    # Each try waits a second longer than the one before; never give up on a server.
                    "startretries": 1_000_000,
                    "stopwaitsecs": max(1, round(program.stop_seconds)),
                    "killasgroup": "true",
                    "redirect_stderr": "true",
                    "stdout_logfile": self._node.logs / f"{program.name}.log",
                    "stdout_logfile_maxbytes": LOG_BYTES,
                    "stdout_logfile_backups": 2,
                }
            }
        )

    def _longest_stop(self, names: list[str]) -> float:
        specifications = [read_json(self._specification(name), {}) for name in names]
        return max((specification.get("stop_seconds", 0) for specification in specifications), default=0)

    def _end_strays(self) -> None:
        """Ends processes of this node that no supervisor looks after any more."""
        end_marked(str(self._node.directory))


def belongs_to(process: psutil.Process, node: Node) -> bool:
    """Whether the process is one of the node's."""
    return has_mark(process, str(node.directory))


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What supervisord has of its starter's environment, in memory alone: for programs that act as the user would."""

    def is_users(name: str) -> bool:
        if name.startswith("PULUMI_"):
            return name in _PULUMI
        return not name.startswith("LEPTON_") or name.startswith(_OWN)

    return {name: value for name, value in environment.items() if is_users(name)}


@contextlib.contextmanager
def _already(fault_code: int) -> Any:
    """Takes a fault that says that a thing is already as wanted for success."""
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != fault_code:
            raise


def _content(file: Path) -> str | None:
    try:
        return file.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _ini(sections: dict[str, dict[str, object]]) -> str:
    lines: list[str] = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        # Supervisor expands %(…)s in every value.
        lines += [f"{key}={str(value).replace('%', '%%')}" for key, value in values.items()]
    return "\n".join(lines) + "\n"
