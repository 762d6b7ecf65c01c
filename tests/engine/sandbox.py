"""A project in a folder of its own, driven as a user drives it: by the commands `lepton` and `pulumi`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from infra.names import PLATFORM_PROJECT
from infra.single_node.machine.marks import NODE_VARIABLE
from infra.single_node.machine.node import Node
from infra.single_node.machine.supervisor import Supervisor
from model_packaging.build import build_artifact
from model_packaging.stores import Store
from model_packaging.stores.layout import Layout
from tests.plugins import oip_server

REPOSITORY = Path(__file__).parents[2]
TEAM = "diagnostics"
_LIMIT_SECONDS = 300.0
"""Far more than any command takes, beside other work too."""


class Sandbox:
    team = TEAM
    name = "dev"
    """Of the environment."""

    def __init__(self) -> None:
        # Short, as the node's sockets are below it.
        self.root = Path(tempfile.mkdtemp(prefix="lepton-"))
        shutil.copy(REPOSITORY / "Pulumi.yaml", self.root)
        for source, folder in (("platform", "platform"), (TEAM, self.team)):
            (self.root / "stacks" / folder).mkdir(parents=True)
            shutil.copy(REPOSITORY / "stacks" / source / "__main__.py", self.root / "stacks" / folder)
        project = yaml.safe_load((REPOSITORY / "stacks" / TEAM / "Pulumi.yaml").read_text())
        (self.root / "stacks" / self.team / "Pulumi.yaml").write_text(yaml.safe_dump(project | {"name": self.team}))
        self.store = Layout(self.root / ".state" / "store")
        self.node = Node(self.root / ".state" / "nodes" / "dev")
        self.port, self.metrics_port, first = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        self.write_platform(ports=f"{first}-{first + 200}")

    # -- what a user writes

    def write_platform(self, *, ports: str, **node: Any) -> None:
        self._node_settings = {"port": self.port, "ports": ports} | node
        document = {
            "environment": "dev",
            "mode": "single-node",
            "node": self._node_settings,
            "monitoring": {"port": self.metrics_port},
        }
        self._write("platform", "dev", "platform", document)

    def write_node(self, **node: Any) -> None:
        self.write_platform(**(self._node_settings | node))

    def write_version(
        self, model: str, version: str, *arguments: str, package: bool = True, team: str | None = None, **settings: Any
    ) -> str:
        """A version served by the stand-in server with these extra arguments; returns its address."""
        if package:
            self.package(model, version)
        command = [self.stand_in_server, "--host", "{host}", "--http-port", "{http_port}"]
        command += ["--model", "{model}", "--version", "{version}", *arguments]
        document = {"environment": self.name, "model": model, "version": version, "server": {"command": command}}
        return self._write(team or self.team, f"{self.name}.{model}-{version}", "version", document | settings)

    def write_endpoint(self, model: str, weights: dict[str, int], /, **settings: Any) -> str:
        variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
        document = {"environment": self.name, "model": model, "variants": variants} | settings
        return self._write(self.team, f"{self.name}.{model}", "endpoint", document)

    def package(self, model: str, version: str) -> str:
        folder = self.root / "models" / model / version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.bin").write_bytes(f"{model} {version}".encode() * 1000)
        (folder / "package.yaml").write_text(
            yaml.safe_dump(
                {
                    "framework": {"name": "none", "version": "1"},
                    "training_data": "none",
                    "licence": "Apache-2.0",
                    "samples": [{"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]}],
                }
            )
        )
        return build_artifact(folder, model, version, self.artifact_store).digest

    @property
    def artifact_store(self) -> Store:
        """Where the environment's versions come from."""
        return self.store

    @property
    def stand_in_server(self) -> str:
        """The stand-in server's path, where versions run."""
        return str(oip_server.build())

    def config(self, stack: str, team: str | None = None) -> Path:
        return self.root / "stacks" / (team or self.team) / f"Pulumi.{stack}.yaml"

    def _write(self, team: str, stack: str, kind: str, document: dict[str, Any]) -> str:
        file = self.config(stack, team)
        # What `pulumi stack init` put there stays.
        kept = yaml.safe_load(file.read_text()) if file.exists() else {}
        file.write_text(yaml.safe_dump(kept | {"config": {f"lepton:{kind}": document}}, sort_keys=False))
        return f"{team}/{stack}"

    # -- what a user runs

    @property
    def environment(self) -> dict[str, str]:
        mine = {
            name: value for name, value in os.environ.items() if not name.startswith(("PULUMI_", "LEPTON_", "PYTHON"))
        }
        path = [str(Path(sys.prefix) / "bin"), str(REPOSITORY / ".tools" / "bin"), mine["PATH"]]
        # As `lepton` does for a single node: it would be tried in every command, for packages that nobody uses.
        return mine | {"PATH": os.pathsep.join(path), "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true"}

    def start(
        self,
        *command: str,
        folder: Path | None = None,
        env: dict[str, str] | None = None,
        new_session: bool = False,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=folder or self.root,
            env=env or self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=new_session,
        )

    def run(self, *command: str, folder: Path | None = None, env: dict[str, str] | None = None) -> Outcome:
        return self.finish(self.start(*command, folder=folder, env=env))

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        """Its outcome. What takes longer than _LIMIT_SECONDS is ended, and an AssertionError says what it had said."""
        try:
            out, err = process.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            out, err = process.communicate()
            raise AssertionError(f"{process.args}: not done after {_LIMIT_SECONDS:g} s\n{out}{err}") from None
        return Outcome(process.returncode, out, err)

    def lepton(self, *arguments: str) -> Outcome:
        return self.run("lepton", *arguments)

    def must(self, *arguments: str) -> Outcome:
        """`lepton`, where nothing may go wrong."""
        outcome = self.lepton(*arguments)
        assert outcome.status == 0, outcome
        return outcome

    def pulumi(self, *arguments: str, team: str | None = None) -> Outcome:
        """Raw `pulumi` in a team's folder, with just the environment that `lepton env` prints."""
        return self.finish(self.start_pulumi(*arguments, team=team))

    def start_pulumi(self, *arguments: str, team: str | None = None) -> subprocess.Popen[str]:
        script = f'{self.must("env").out}\nexec pulumi "$@"'
        command = ("bash", "-c", script, "pulumi", *arguments, "--non-interactive")
        is_platform = team == PLATFORM_PROJECT
        return self.start(*command, folder=self.root if is_platform else self.root / "stacks" / (team or self.team))

    def observed(self, endpoint: str) -> dict[str, int]:
        return self.must("traffic", "show", endpoint, "--json").json["observed_weights"]

    def status(self, endpoint: str) -> dict[str, Any]:
        return self.must("status", endpoint, "--json").json

    # -- what is there

    def processes(self) -> list[psutil.Process]:
        """Every process of this project's node."""
        return [
            process
            for process in psutil.process_iter()
            if _variable(process, NODE_VARIABLE) == str(self.node.directory)
        ]

    def leftovers(self) -> list[psutil.Process]:
        """Processes of Pulumi that work on this project."""
        mark = str(self.root)
        return [
            process for process in psutil.process_iter() if (_variable(process, "LEPTON_STACK") or "").startswith(mark)
        ]

    def locks(self, model: str = "") -> list[Path]:
        """Locks that Pulumi holds on stacks of that model."""
        locks = self.root / ".state" / "backend" / ".pulumi" / "locks"
        return [lock for lock in locks.rglob("*.json") if model in str(lock.parent)]

    def server_pids(self, model: str, version: str) -> list[int]:
        return [
            process.pid
            for process in self.processes()
            if (_variable(process, "LEPTON_MODEL"), _variable(process, "LEPTON_VERSION")) == (model, version)
        ]

    def wait_until(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.02)
        return found

    def close(self) -> None:
        for process in self.leftovers():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        Supervisor(self.node).stop()
        assert names(self.processes()) == []
        shutil.rmtree(self.root)


class Outcome:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit status {self.status}\n--- out\n{self.out}\n--- err\n{self.err}"


@contextmanager
def listening(port: int) -> Any:
    """Somebody else's program on a port."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        yield


def free_ports(count: int) -> list[int]:
    """Ports that this worker alone uses: each worker of a run has a range of its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    found: list[int] = []
    first = 22_000 + worker * 2_000
    while len(found) < count:
        _next[0] += 250 if len(found) == count - 1 else 1
        port = first + _next[0] % 2_000
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


_next = [0]


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except psutil.Error:
        return None


def names(processes: Iterable[psutil.Process]) -> list[str]:
    return [" ".join(process.cmdline()) for process in processes]
