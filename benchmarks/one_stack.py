"""Many versions as one stack, beside a stack for each: what creating them takes, and what a change of one of them.

The same components, made by one program from the same config files, on the cluster of benchmark `fleet`. They are
without endpoints, which can't be given weight for versions that aren't ready yet. The change is of one version's
replicas, by `pulumi up` of the one stack and by `lepton deploy` of that version's own, in turns.

LEPTON_FLEET: the number of versions of the larger of two, 1,000 if not given. Pulumi rewrites a stack's whole state
with each resource that it makes, which for 100 versions takes longer than making them: the larger is made without
(PULUMI_SKIP_CHECKPOINTS), so that what is told of creating it is less than it would take, and changed once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import results
from benchmarks.fleet_project import Fleet, Measured, fleet_size, tell
from benchmarks.processes import BenchmarkError, ended_gently
from benchmarks.results import Cell, Figures, Result, Spread, Table
from benchmarks.simulated_cluster import ROOT, simulated_cluster

SMALLER = 100
"""Versions of the smaller of two, which is made with a checkpoint for each resource, and changed in each round."""
LIMIT_SECONDS = 5400.0
"""What takes longer is given up."""
_STACK = "all"
_PROGRAM = f"""\
import json
import sys
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
import pulumi
import yaml
from infra.cluster import version as served
from infra.contracts import Stack
from infra.settings import VersionSettings

given = json.loads(Path("given.json").read_text())
# As anybody would have it in one program: each provider is a process.
shared = served.provider("cluster", given["platform"]["internals"]["connection"], None)
served.provider = lambda *_: shared
# It has none of a version's, and the engine is writing its state.
served.own_outputs = dict
for team, name, file in given["versions"]:
    document = yaml.load(Path(file).read_text(), Loader=yaml.CSafeLoader)["config"]["lepton:version"]
    settings = VersionSettings.model_validate(document | {{"environment": given["environment"]}})
    served.ServedVersion(Stack(team, name, given["folder"]), settings, given["platform"], secret=False)
"""


def run(directory: Path, rounds: int, seconds: float, progress: Progress) -> Result:
    """What was measured is kept size by size, so that a run that is cut leaves the smaller."""
    del seconds
    size = fleet_size()
    sizes = sorted({min(SMALLER, size), size})
    result = Result("one_stack", {"versions": size, "rounds": rounds})
    columns = ["", "created in s", "MiB at most", "state, MiB", "one changed, s", "MiB at most", "`lepton deploy`, s"]
    table = Table("One stack of all", [*columns, "ratio", "load"], [])
    result.tables.append(table)
    with ended_gently(), simulated_cluster(directory / "cluster", sum(sizes) + 2 * len(sizes)) as cluster:
        fleet = Fleet(directory / "many", "many", size, cluster)
        fleet.found()
        fleet.add(fleet.versions[0])
        _say(progress, "a platform and a version", fleet.lepton("up", fleet.environment))
        for version in progress.track(fleet.versions, description="one stack, artifacts"):
            fleet.add(version)
        for size in sizes:
            try:
                one = OneStack(directory / f"all-{size}", fleet, size)
                made = _say(progress, f"{size} made", one.up(checkpoints=size <= SMALLER))
                turns = [_change(one, fleet, number, progress) for number in range(rounds if size <= SMALLER else 1)]
            except (BenchmarkError, TimeoutError) as error:
                result.failed.append(f"{size:,} versions as one stack: {error}")
                break
            result.rounds[f"{size} versions"] = [{"create": made.figures}, *turns]
            table.rows.append(_row(one, made, turns))
            results.write(result)
    return result


class OneStack:
    """So many of a fleet's versions as one stack, in an environment of its own on the same platform."""

    def __init__(self, folder: Path, fleet: Fleet, size: int) -> None:
        self.folder, self._fleet, self.size = folder, fleet, size
        self._backend = folder / "backend"
        self._backend.mkdir(parents=True)
        (folder / "Pulumi.yaml").write_text(json.dumps({"name": "monolith", "runtime": "python"}))
        (folder / "__main__.py").write_text(_PROGRAM)
        given = {
            "environment": f"all-{size}",
            "folder": str(fleet.folder),
            "platform": fleet.platform(),
            "versions": [
                [version.team, version.stack, str(fleet.config(version))] for version in fleet.versions[:size]
            ],
        }
        (folder / "given.json").write_text(json.dumps(given))
        self._pulumi("stack", "init", _STACK)

    def up(self, *, checkpoints: bool = True) -> Measured:
        """Raises TimeoutError beyond LIMIT_SECONDS, and BenchmarkError where it fails."""
        command = ("up", "--yes", "--skip-preview", "--refresh", "--suppress-outputs", "--stack", _STACK)
        return self._pulumi(*command, environ={} if checkpoints else {"PULUMI_SKIP_CHECKPOINTS": "true"})

    @property
    def state_bytes(self) -> int:
        return (self._backend / f".pulumi/stacks/monolith/{_STACK}.json").stat().st_size

    def _pulumi(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Measured:
        own: dict[str, Any] = {
            "PULUMI_BACKEND_URL": f"file://{self._backend}",
            "PULUMI_HOME": str(self.folder / "home"),
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }
        return self._fleet.measured(
            ["pulumi", *arguments, "--non-interactive"],
            folder=self.folder,
            environ=own | dict(environ or {}),
            limit=LIMIT_SECONDS,
        )


def _change(one: OneStack, fleet: Fleet, number: int, progress: Progress) -> Figures:
    """The same version's replicas in both: 2, then 1, and so on; which goes first alternates."""
    version = fleet.versions[0]
    fleet.configure(version, replicas=2 - number % 2)
    commands: dict[str, Callable[[], Measured]] = {
        "one stack": one.up,
        "lepton deploy": lambda: fleet.lepton("deploy", version.address),
    }
    order = sorted(commands, reverse=number % 2 == 1)
    return {name: _say(progress, f"a change of {one.size}, {name}", commands[name]()).figures for name in order}


def _row(one: OneStack, made: Measured, turns: list[Figures]) -> list[Cell]:
    def spread(name: str, figure: str) -> Spread:
        return Spread.of([turn[name][figure] for turn in turns])

    ratios = [turn["one stack"]["seconds"] / turn["lepton deploy"]["seconds"] for turn in turns]
    return [
        f"{one.size:,} versions",
        made.seconds,
        made.peak_mib,
        one.state_bytes / 2**20,
        spread("one stack", "seconds"),
        spread("one stack", "peak_mib"),
        spread("lepton deploy", "seconds"),
        Spread.of(ratios),
        spread("one stack", "load"),
    ]


def _say(progress: Progress, what: str, measured: Measured) -> Measured:
    return tell(progress, f"one stack: {what}", measured)
