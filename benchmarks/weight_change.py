"""What a weight change costs: requests that fail while weights change under load, and the time it takes.

The 100 changes are the product's own: what an update of an endpoint stack does to the router, without the engine around
it. The time is that of the command, engine and all, from its start until a request is answered on the new weights, in a
project made for the run; beside it stands `pulumi up` of a program with nothing in it, under the same load. Model
servers are the tests' stand-ins, so that the load leaves the processor to what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress

from benchmarks import load
from benchmarks.processes import BenchmarkError, Cores, MissingToolError, find, free_ports, wait_until
from benchmarks.results import Cell, Goal, Result, Spread, Table
from benchmarks.targets import INFER, EnvoyTarget, backends, endpoint_settings
from tests.plugins import oip_server

ROOT = Path(__file__).resolve().parents[1]
ENDPOINT = "diagnostics/dev.tumour"
VERSIONS = ["1.0.0", "1.1.0"]
OLD, NEW = VERSIONS
RATE = 200.0
CHANGES = 100
SECONDS_BETWEEN_CHANGES = 0.3
GOAL_RATIO = 1.5
COMMAND_SECONDS = 300.0
"""At most, for any one command."""


def run(directory: Path, rounds: int, seconds: float, progress: Progress) -> Result:
    del seconds
    result = Result("weight_change", {"requests_per_second": RATE, "changes": CHANGES, "rounds": rounds})
    _under_load(directory / "data-plane", result, progress)
    try:
        _by_command(directory / "project", rounds, result, progress)
    except MissingToolError as missing:
        result.left_out.append(f"the time that a command takes: {missing}")
    except BenchmarkError as error:
        result.failed.append(f"the time that a command takes: {error}")
    return result


# -- the router alone


def _under_load(home: Path, result: Result, progress: Progress) -> None:
    """Changes of every kind: a canary's steps, all or nothing, and the baseline itself."""
    home.mkdir()
    steps = [(90, 10), (50, 50), (10, 90), (0, 100), (100, 0)]
    cores = Cores.share_out()
    took: list[float] = []
    with backends(VERSIONS, cores, home) as behind:
        everything = EnvoyTarget(behind, home)
        with (
            everything.started(endpoint_settings({OLD: 100, NEW: 0}), cores) as target,
            load.OpenLoop(target.port, target.path, RATE) as traffic,
        ):
            for index in progress.track(range(CHANGES), description="weight_change, router"):
                weights = dict(zip(VERSIONS, steps[index % len(steps)], strict=True))
                began = time.monotonic()
                everything.route(endpoint_settings(weights))
                took.append((time.monotonic() - began) * 1000)
                wait = SECONDS_BETWEEN_CHANGES - (time.monotonic() - began)
                time.sleep(max(0.0, wait))
    failed = _failures(traffic.answers, f"{CHANGES} changes")
    latencies = [answer.latency_ms for answer in traffic.answers]
    row: list[Cell] = [
        f"{CHANGES} changes of the router",
        len(traffic.answers),
        len(failed),
        Spread.of(took),
        load.percentile(latencies, 50),
        load.percentile(latencies, 99),
        max(latencies),
    ]
    columns = ["", "requests", "failed", "a change, ms", "latency p50 ms", "p99 ms", "most ms"]
    result.tables.append(Table(f"Weight changes at {RATE:.0f} requests/s", columns, [row]))
    result.goals.append(Goal(f"failed requests over {CHANGES} changes", len(failed), 0, at_least=False))
    result.rounds["router"] = [{"change": {"milliseconds": one}} for one in took]


def _failures(answers: Sequence[load.Answer], during: str) -> list[str]:
    """What failed; refuses a run that sent nothing, which would have nothing to fail."""
    if not answers:
        raise BenchmarkError(f"no request was sent during {during}")
    return [answer.failure for answer in answers if answer.version is None]


# -- the command


@dataclass(frozen=True)
class _Commands:
    """A project of its own, and an empty one beside it in the same kind of backend."""

    home: Path
    port: int

    @property
    def project(self) -> Path:
        return self.home / "served"

    @property
    def empty(self) -> Path:
        return self.home / "empty"

    def lepton(self, *arguments: str) -> Any:
        """Runs `lepton` as a user does, and returns what its `--json` says."""
        return json.loads(self.run(["lepton", *arguments, "--json"], self.project, {}))

    def pulumi_in_empty(self, *arguments: str) -> None:
        backend = self.empty / "backend"
        backend.mkdir(parents=True, exist_ok=True)
        environment = {
            "PULUMI_BACKEND_URL": f"file://{backend}",
            "PULUMI_HOME": str(self.empty / "home"),
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }
        self.run(["pulumi", *arguments, "--non-interactive"], self.empty, environment)

    def run(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> str:
        path = os.pathsep.join([str(Path(sys.prefix) / "bin"), str(ROOT / ".tools/bin"), os.environ["PATH"]])
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
        outcome = subprocess.run(
            command,
            cwd=folder,
            env=inherited | {"PATH": path} | environment,
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


def _by_command(home: Path, rounds: int, result: Result, progress: Progress) -> None:
    figures: list[dict[str, dict[str, float]]] = []
    with _project(home, result) as commands:
        path = f"/{ENDPOINT.partition('/')[0]}/tumour{INFER}"
        with load.OpenLoop(commands.port, path, RATE) as traffic:
            for index in progress.track(range(rounds), description="weight_change, command"):
                old, new = (OLD, NEW) if index % 2 == 0 else (NEW, OLD)
                # Which of the two goes first alternates, so that neither always meets what the other left behind.
                order = ["lepton", "empty"] if index % 2 == 0 else ["empty", "lepton"]
                taken = {
                    which: _seconds_of_change(commands, traffic, old, new)
                    if which == "lepton"
                    else _seconds_of_empty(commands)
                    for which in order
                }
                figures.append(
                    {
                        "lepton traffic set": taken["lepton"],
                        "pulumi up of an empty program": taken["empty"],
                    }
                )
    failed = _failures(traffic.answers, "the commands")
    result.rounds["command"] = figures
    ratios = [
        one["lepton traffic set"]["to_first_answer_seconds"] / one["pulumi up of an empty program"]["seconds"]
        for one in figures
    ]
    rows: list[list[Cell]] = [
        [
            "lepton traffic set, to the first answer on the new weights, s",
            Spread.of([one["lepton traffic set"]["to_first_answer_seconds"] for one in figures]),
        ],
        [
            "lepton traffic set, to its end, s",
            Spread.of([one["lepton traffic set"]["seconds"] for one in figures]),
        ],
        [
            "pulumi up of an empty program, s",
            Spread.of([one["pulumi up of an empty program"]["seconds"] for one in figures]),
        ],
        ["ratio to the first answer", Spread.of(ratios)],
        [f"failed of {len(traffic.answers):,} requests", float(len(failed))],
    ]
    result.tables.append(Table(f"A weight change by command at {RATE:.0f} requests/s", ["", ""], rows))
    result.goals.append(
        Goal("command to first answer / empty pulumi up", statistics.median(ratios), GOAL_RATIO, at_least=False)
    )
    result.goals.append(Goal("failed requests while commands change weights", len(failed), 0, at_least=False))


def _seconds_of_change(commands: _Commands, traffic: load.OpenLoop, old: str, new: str) -> dict[str, float]:
    began = time.monotonic()
    commands.lepton("traffic", "set", ENDPOINT, f"{old}=0", f"{new}=100")
    seconds = time.monotonic() - began

    def first() -> load.Answer | None:
        return traffic.first_since(began, lambda answer: answer.version == new)

    wait_until(lambda: first() is not None, f"an answer by {new}")
    answer = first()
    assert answer is not None
    return {"seconds": seconds, "to_first_answer_seconds": answer.ended - began}


def _seconds_of_empty(commands: _Commands) -> dict[str, float]:
    began = time.monotonic()
    commands.pulumi_in_empty("up", "--yes", "--skip-preview", "--stack", "bench")
    return {"seconds": time.monotonic() - began}


@contextlib.contextmanager
def _project(home: Path, result: Result) -> Iterator[_Commands]:
    """The example's stacks with their own state and ports, up; all traffic is on the old version."""
    if not shutil.which("pulumi", path=os.pathsep.join([str(ROOT / ".tools/bin"), os.environ["PATH"]])):
        raise MissingToolError("no `pulumi`; run `make tools`")
    find("go", "golang")
    port, monitoring_port = free_ports(2)
    commands = _Commands(home, port)
    stacks = commands.project / "stacks"
    shutil.copytree(ROOT / "stacks", stacks, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Pulumi.yaml", commands.project)
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
        file = stacks / f"diagnostics/Pulumi.dev.tumour-{version}.yaml"
        _edit(file, "lepton:version", server={"command": server})
    variants = [{"version": OLD, "weight": 100}, {"version": NEW, "weight": 0}]
    _edit(stacks / "diagnostics/Pulumi.dev.tumour.yaml", "lepton:endpoint", variants=variants)
    state = commands.project / ".state"
    commands.run(
        [
            *(sys.executable, str(ROOT / "examples/tumour/build.py")),
            *("--store", str(state / "store"), "--work", str(state / "examples")),
        ],
        ROOT,
        {},
    )
    commands.empty.mkdir()
    (commands.empty / "Pulumi.yaml").write_text("name: empty\nruntime: python\n")
    (commands.empty / "__main__.py").write_text("")
    commands.pulumi_in_empty("stack", "init", "bench")
    result.settings["software_of_pulumi"] = commands.run(["pulumi", "version"], commands.empty, {}).strip()
    try:
        commands.lepton("up", "dev", "--requests", "0")
        _seconds_of_empty(commands)  # The first makes the stack; later ones find it as it is to be.
        yield commands
    finally:
        commands.lepton("down", "dev")


def _edit(file: Path, key: str, **changes: object) -> None:
    document = yaml.safe_load(file.read_text())
    document["config"][key] |= changes
    file.write_text(yaml.safe_dump(document, sort_keys=False))
