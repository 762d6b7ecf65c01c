"""A project with one environment of many versions in a cluster, and the commands that users run in it, measured."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.progress import Progress

from benchmarks.processes import BenchmarkError
from benchmarks.simulated_cluster import ROOT, SimulatedCluster
from infra.names import PLATFORM_PROJECT
from model_packaging.build import build_artifact
from model_packaging.stores import open_store
from tests.cluster.gateway import CLASS
from tests.plugins.kubernetes import with_plugin

_FLEET = 1000
TEAMS = 25
VERSIONS_OF_A_MODEL = 4
WEIGHTS = (90, 10, 0, 0)
"""At first, of a model's versions."""
_IMAGE = "registry.example.org/server@sha256:" + "0123456789abcdef" * 4
_LOOK_SECONDS = 0.5
_DONE = " s)"
"""How a line ends that says of a stack what became of it."""


@dataclass(frozen=True)
class Measured:
    """A command that ran."""

    seconds: float
    peak_mib: float
    """Of resident memory, the command's and its children's together; what they share counts for each."""
    load: float
    """The machine's load average (1 minute) at its end."""
    said: Any
    """Its `--json`."""

    @property
    def figures(self) -> dict[str, float]:
        return {"seconds": self.seconds, "peak_mib": self.peak_mib, "load": self.load}

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.peak_mib:.0f} MiB, load {self.load:.1f}"


@dataclass(frozen=True)
class Version:
    team: str
    model: str
    version: str
    environment: str

    @property
    def stack(self) -> str:
        return f"{self.environment}.{self.model}-{self.version}"

    @property
    def address(self) -> str:
        return f"{self.team}/{self.stack}"

    @property
    def endpoint(self) -> str:
        return f"{self.team}/{self.environment}.{self.model}"


def fleet_size() -> int:
    """How many versions the larger fleet is to have, as LEPTON_FLEET says."""
    return int(os.environ.get("LEPTON_FLEET", _FLEET))


def tell(progress: Progress, what: str, measured: Measured) -> Measured:
    """Says on the way what came of a command, as a run may take hours."""
    progress.console.print(f"{what}: {measured}", highlight=False)
    return measured


class Fleet:
    """The project: each model has four versions and an endpoint, and teams have the models in turn."""

    def __init__(self, folder: Path, environment: str, size: int, cluster: SimulatedCluster) -> None:
        self.folder, self.environment, self._cluster = folder, environment, cluster
        models = -(-size // VERSIONS_OF_A_MODEL)
        self.teams = [f"{environment}-{number}" for number in range(min(TEAMS, models))]
        self.versions = [
            Version(self.teams[model % len(self.teams)], f"model-{model}", f"1.{number % 4}.0", environment)
            for number in range(size)
            for model in [number // VERSIONS_OF_A_MODEL]
        ]

    @property
    def stacks(self) -> int:
        """How many, with the platform's."""
        return 1 + len(self.versions) + len({version.model for version in self.versions})

    @property
    def changed(self) -> list[Version]:
        """Whose changes are previewed, of the larger fleet: one in a hundred."""
        return self.versions[: max(1, len(self.versions) // 100)]

    # -- what a user writes

    def write(self, done: Callable[[], object]) -> None:
        """All of it. `done` is called for each version."""
        self.found()
        for version in self.versions:
            self.add(version)
            done()
        for model in dict.fromkeys((version.team, version.model) for version in self.versions):
            of_it = [version for version in self.versions if (version.team, version.model) == model]
            variants = [
                {"version": version.version, "weight": weight} for version, weight in zip(of_it, WEIGHTS, strict=False)
            ]
            document = {"environment": self.environment, "model": model[1], "variants": variants}
            self._write(model[0], f"{self.environment}.{model[1]}", "endpoint", document)

    def found(self) -> None:
        """The platform, and the teams without anything."""
        shutil.copytree(
            ROOT / "stacks/platform",
            self.folder / "stacks/platform",
            ignore=shutil.ignore_patterns("Pulumi.*", "__pycache__"),
        )
        shutil.copy(ROOT / "Pulumi.yaml", self.folder)
        (self.folder / ".gitignore").write_text(".state/\n")
        self._write("platform", self.environment, "platform", self._platform())
        for team in self.teams:
            folder = self.folder / "stacks" / team
            folder.mkdir()
            (folder / "Pulumi.yaml").write_text(yaml.safe_dump({"name": team, "runtime": {"name": "python"}}))
            shutil.copy(ROOT / "stacks/diagnostics/__main__.py", folder)

    def add(self, version: Version) -> None:
        """A version's artifact and its config."""
        folder = self.folder / ".state" / "artifact"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.bin").write_bytes(f"{version.address}".encode())
        samples = [{"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]}]
        package = {
            "framework": {"name": "none", "version": "1"},
            "training_data": "none",
            "licence": "none",
            "samples": samples,
        }
        (folder / "package.yaml").write_text(yaml.safe_dump(package))
        build_artifact(folder, version.model, version.version, open_store(self._store))
        self.configure(version)

    def configure(self, version: Version, *, replicas: int = 1) -> None:
        document = {"environment": self.environment, "model": version.model, "version": version.version}
        document |= {"replicas": replicas, "server": {"command": ["serve"]}}
        self._write(version.team, version.stack, "version", document)

    def config(self, version: Version) -> Path:
        return self.folder / "stacks" / version.team / f"Pulumi.{version.stack}.yaml"

    def commit(self) -> None:
        """Everything, so that Git knows of no change."""
        who = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org"]
        for command in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message", "fleet"]):
            self.run(["git", *command])

    def _platform(self) -> dict[str, Any]:
        control_plane, gateway = self._cluster.control_plane, self._cluster.gateway
        cluster = {
            "existing": {"kubeconfig": str(control_plane.kubeconfig)},
            "namespace": f"lepton-{self.environment}",
            "teams": {team: {} for team in self.teams},
            "gateway": {"class_name": CLASS, "port": gateway.port, "url": gateway.url},
            "images": {"server": _IMAGE, "puller": _IMAGE},
            "monitoring": {"kind": "external", "url": "http://prometheus.example.org:9090"},
        }
        return {"environment": self.environment, "mode": "cluster", "store": self._store, "cluster": cluster}

    @property
    def _store(self) -> str:
        return f"{self._cluster.store}/{self.environment}"

    def _write(self, team: str, stack: str, kind: str, document: Mapping[str, Any]) -> None:
        file = self.folder / "stacks" / team / f"Pulumi.{stack}.yaml"
        # What Pulumi keeps there stays.
        kept = yaml.safe_load(file.read_text()) if file.exists() else {}
        file.write_text(yaml.safe_dump(kept | {"config": {f"lepton:{kind}": dict(document)}}, sort_keys=False))

    # -- what a user runs

    def lepton(self, *arguments: str, told: Callable[[int], object] = lambda _: None) -> Measured:
        """`lepton … --json`; `told` is called from time to time with the number of stacks that are done."""
        return self.measured(["lepton", *arguments, "--json"], told=told)

    def run(self, command: Sequence[str]) -> str:
        """Raises BenchmarkError where it fails."""
        outcome = subprocess.run(
            command, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False
        )
        if outcome.returncode:
            raise BenchmarkError(f"{' '.join(command)}: exit status {outcome.returncode}\n{outcome.stderr}")
        return outcome.stdout

    def platform(self) -> Any:
        """The platform's outputs, as `infra.contracts.PlatformExports`."""
        script = f'eval "$(lepton env)"; exec pulumi stack output --json --stack {self.environment} --non-interactive'
        return json.loads(self.run(["bash", "-c", script]))

    def states(self) -> list[int]:
        """The size in bytes of each of its stacks' states."""
        backend = self.folder / ".state/backend/.pulumi/stacks"
        assert PLATFORM_PROJECT in os.listdir(backend)
        return [file.stat().st_size for file in backend.glob("*/*.json")]

    @property
    def environ(self) -> dict[str, str]:
        mine = {name: text for name, text in os.environ.items() if not name.startswith(("PULUMI_", "LEPTON_"))}
        # Else every command tries first to download the plugins of all packages that are installed.
        return with_plugin(mine) | {"PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true"}

    def measured(
        self,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
        limit: float | None = None,
        told: Callable[[int], object] = lambda _: None,
    ) -> Measured:
        """Runs it.

        Raises:
            TimeoutError: when it takes longer than `limit` seconds; it is ended then.
            BenchmarkError: when it fails.
        """
        out, err = self.folder / ".state" / "out", self.folder / ".state" / "err"
        out.parent.mkdir(exist_ok=True)
        began, peak, looks = time.monotonic(), 0, 0
        with (
            out.open("w") as to_out,
            err.open("w") as to_err,
            _started(command, folder or self.folder, self.environ | dict(environ or {}), to_out, to_err) as process,
        ):
            while not _ended(process):
                peak, looks = max(peak, _resident(process.pid)), looks + 1
                if looks % 10 == 0:
                    told(sum(line.endswith(_DONE) for line in err.read_text().splitlines()))
                if limit is not None and time.monotonic() - began > limit:
                    raise TimeoutError(f"{' '.join(command)}: not done after {limit:.0f} s")
        seconds = time.monotonic() - began
        if process.returncode:
            words = "\n".join((out.read_text() + err.read_text()).splitlines()[-20:])
            raise BenchmarkError(f"{' '.join(command)}: exit status {process.returncode}\n{words}")
        said = json.loads(out.read_text()) if "--json" in command else None
        return Measured(seconds, peak / 2**20, os.getloadavg()[0], said)


@contextlib.contextmanager
def _started(
    command: Sequence[str], folder: Path, environ: Mapping[str, str], out: Any, err: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which doesn't outlive this, nor does any that it has started."""
    process = subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    try:
        yield process
    finally:
        if process.poll() is None:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total
