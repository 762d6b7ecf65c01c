"""A project of a benchmark's own, up in a folder of its own: the example's two versions of a model behind one URL.

Its model servers are the tests' stand-ins, so that the load leaves the processor to what is measured. Beside it stands
an empty Pulumi program in the same kind of backend: what any update costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import BenchmarkError, MissingToolError, find, free_ports
from benchmarks.targets import INFER
from tests.plugins import oip_server

ROOT = Path(__file__).resolve().parents[1]
ENDPOINT = "diagnostics/dev.tumour"
BASELINE, CANDIDATE = "1.0.0", "1.1.0"
VERSIONS = (BASELINE, CANDIDATE)
COMMAND_SECONDS = 300.0
"""At most, for any one command."""


@dataclass(frozen=True)
class Served:
    """The project that is up, and the empty one beside it."""

    home: Path
    port: int

    @property
    def folder(self) -> Path:
        return self.home / "served"

    @property
    def url(self) -> str:
        """Where the endpoint answers inferences."""
        return f"http://127.0.0.1:{self.port}/{ENDPOINT.partition('/')[0]}/tumour{INFER}"

    @property
    def environment(self) -> dict[str, str]:
        """For commands that work in the project."""
        path = os.pathsep.join([str(Path(sys.prefix) / "bin"), str(ROOT / ".tools/bin"), os.environ["PATH"]])
        mine = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
        return mine | {"PATH": path, "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true"}

    def config(self, stack: str) -> Path:
        """The config file of one of the team's stacks."""
        return self.folder / f"stacks/diagnostics/Pulumi.{stack}.yaml"

    def lepton(self, *arguments: str) -> Any:
        """Runs `lepton` as a user does, and returns what its `--json` says."""
        return json.loads(self.run(["lepton", *arguments, "--json"], self.folder))

    def platform(self) -> Any:
        """The platform's outputs, as `infra.contracts.PlatformExports`."""
        script = 'eval "$(lepton env)"; exec pulumi stack output --json --stack dev --non-interactive'
        return json.loads(self.run(["bash", "-c", script], self.folder))

    def empty_up(self) -> float:
        """Brings the empty program up again, and returns the seconds that took."""
        began = time.monotonic()
        self._pulumi_in_empty("up", "--yes", "--skip-preview", "--stack", "bench")
        return time.monotonic() - began

    def make_empty(self) -> None:
        empty = self.home / "empty"
        empty.mkdir()
        (empty / "Pulumi.yaml").write_text("name: empty\nruntime: python\n")
        (empty / "__main__.py").write_text("")
        self._pulumi_in_empty("stack", "init", "bench")
        self.empty_up()  # The first makes the stack; later ones find it as it is to be.

    def _pulumi_in_empty(self, *arguments: str) -> None:
        empty = self.home / "empty"
        backend = empty / "backend"
        backend.mkdir(parents=True, exist_ok=True)
        environment = {
            "PULUMI_BACKEND_URL": f"file://{backend}",
            "PULUMI_HOME": str(empty / "home"),
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }
        self.run(["pulumi", *arguments, "--non-interactive"], empty, environment)

    def run(self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
        outcome = subprocess.run(
            command,
            cwd=folder,
            env=self.environment | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if outcome.returncode != 0:
            raise BenchmarkError(
                f"{' '.join(command)}: exit status {outcome.returncode}\n{outcome.stdout}{outcome.stderr}"
            )
        return outcome.stdout


@contextlib.contextmanager
def served_project(
    home: Path,
    *,
    flags: Mapping[str, Sequence[str]] | None = None,
    versions: Mapping[str, Mapping[str, object]] | None = None,
    endpoint: Mapping[str, object] | None = None,
) -> Iterator[Served]:
    """The example's stacks with their own state and ports, up; all traffic is on the baseline.

    `flags` are more arguments of the versions' servers, `versions` and `endpoint` more keys of their configs.

    Raises:
        MissingToolError: when `pulumi` or `go` isn't there.
        BenchmarkError: when a command fails.
    """
    if not shutil.which("pulumi", path=os.pathsep.join([str(ROOT / ".tools/bin"), os.environ["PATH"]])):
        raise MissingToolError("no `pulumi`; run `make tools`")
    find("go", "golang")
    home.mkdir(exist_ok=True)
    port, monitoring_port = free_ports(2)
    served = Served(home, port)
    stacks = served.folder / "stacks"
    shutil.copytree(ROOT / "stacks", stacks, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Pulumi.yaml", served.folder)
    server = [str(oip_server.build()), "--host", "{host}", "--http-port", "{http_port}", "--model", "{model}"]
    server += ["--version", "{version}", "--quiet"]
    above = max(port, monitoring_port) + 1
    _edit(
        stacks / "platform/Pulumi.dev.yaml",
        "lepton:platform",
        node={"port": port, "ports": f"{above}-{above + 200}"},
        monitoring={"port": monitoring_port},
    )
    for version in VERSIONS:
        command = [*server, *(flags or {}).get(version, ())]
        settings = {"replicas": 1, "server": {"command": command}, **(versions or {}).get(version, {})}
        _edit(served.config(f"dev.tumour-{version}"), "lepton:version", **settings)
    variants = [{"version": BASELINE, "weight": 100}, {"version": CANDIDATE, "weight": 0}]
    _edit(served.config("dev.tumour"), "lepton:endpoint", variants=variants, **(endpoint or {}))
    state = served.folder / ".state"
    build = [sys.executable, str(ROOT / "examples/tumour/build.py"), "--store", str(state / "store")]
    served.run([*build, "--work", str(state / "examples")], ROOT)
    try:
        served.lepton("up", "dev", "--requests", "0")
        served.make_empty()
        yield served
    finally:
        served.lepton("down", "dev")


def pulumi_version(served: Served) -> str:
    return served.run(["pulumi", "version"], served.folder).strip()


def _edit(file: Path, key: str, **changes: object) -> None:
    document = yaml.safe_load(file.read_text())
    document["config"][key] |= changes
    file.write_text(yaml.safe_dump(document, sort_keys=False))
