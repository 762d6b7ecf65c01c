"""What a change costs among 1,000 versions on Kubernetes, and what among 10: `lepton` in two environments of a cluster.

The control plane and the gateway are real; nodes only say that they run Pods. Each command is measured from its start
to its end, engine and all, with the memory of its processes; those of the cluster are left out. What is compared is
done in turns.

LEPTON_FLEET: the larger environment's number of versions, 1,000 if not given.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from benchmarks import results
from benchmarks.fleet_project import Fleet, Measured, Version, fleet_size, tell
from benchmarks.processes import BenchmarkError, ended_gently
from benchmarks.results import Cell, Figures, Goal, Result, Spread, Table
from benchmarks.simulated_cluster import SimulatedCluster, simulated_cluster

SMALLER = 10
"""Versions of the smaller environment."""
GOAL_WEIGHT_CHANGE = 1.1
GOAL_PREVIEW = 1.25
SMALL, LARGE = "small", "large"


def run(directory: Path, rounds: int, seconds: float, progress: Progress) -> Result:
    """What was measured is kept part by part, so that a run that is cut leaves the parts before."""
    del seconds
    sizes = (SMALLER, fleet_size())
    if sizes[1] < sizes[0]:
        raise BenchmarkError(f"LEPTON_FLEET: given {sizes[1]}: the larger environment has at least {sizes[0]} versions")
    result = Result("fleet", {"versions": sizes[1], "of_the_smaller": sizes[0], "rounds": rounds})
    with ended_gently(), simulated_cluster(directory / "cluster", 2 * sum(sizes) + 2 * rounds) as cluster:
        benchmark = _Benchmark(directory, cluster, sizes, rounds, progress, result)
        benchmark.bring_up()
        for name, part in {
            "weight changes": benchmark.change_weights,
            "new versions": benchmark.add_versions,
            "previews": benchmark.preview,
            "a preview of everything": benchmark.preview_everything,
            "bringing up again": benchmark.bring_up_again,
        }.items():
            results.write(result)
            try:
                part()
            except BenchmarkError as error:
                result.failed.append(f"{name}: {error}")
    return result


@dataclass
class _Benchmark:
    directory: Path
    cluster: SimulatedCluster
    sizes: tuple[int, int]
    rounds: int
    progress: Progress
    result: Result
    fleets: dict[str, Fleet] = field(init=False)

    def __post_init__(self) -> None:
        self.fleets = {
            name: Fleet(self.directory / name, name, size, self.cluster)
            for name, size in zip((SMALL, LARGE), self.sizes, strict=True)
        }

    # -- the parts, in their order

    def bring_up(self) -> None:
        """All stacks of both environments, which were never there."""
        rows: list[list[Cell]] = []
        figures: Figures = {}
        for name, fleet in self.fleets.items():
            with self._bar(f"fleet, artifacts of {name}", len(fleet.versions)) as done:
                fleet.write(lambda done=done: done(None))
            before = self.cluster.objects()
            measured = self._up(name)
            fleet.commit()
            states = fleet.states()
            figures[name] = measured.figures | {"stacks": fleet.stacks, "state_bytes": sum(states)}
            rows.append(
                [
                    f"{len(fleet.versions):,} versions",
                    fleet.stacks,
                    measured.seconds,
                    60 * fleet.stacks / measured.seconds,
                    measured.peak_mib,
                    self.cluster.objects() - before,
                    self.cluster.etcd_mib(),
                    sum(states) / 2**20,
                    max(states) / 2**10,
                    measured.load,
                ]
            )
        self.result.rounds["bring up"] = [figures]
        columns = ["", "stacks", "s", "stacks a minute", "MiB at most", "objects", "etcd MiB", "states, MiB"]
        self._table("`lepton up` of what was never there", [*columns, "largest state, KiB", "load"], rows)

    def change_weights(self) -> None:
        def change(fleet: Fleet, number: int) -> Measured:
            first, second = fleet.versions[:2]
            weights = (50, 50) if number % 2 == 0 else (90, 10)
            given = [f"{one.version}={weight}" for one, weight in zip((first, second), weights, strict=True)]
            return fleet.lepton("traffic", "set", first.endpoint, *given)

        ratio = self._compare("weight change", "`lepton traffic set`", change)
        self._goal("a weight change, larger / smaller environment", ratio, GOAL_WEIGHT_CHANGE)

    def add_versions(self) -> None:
        def add(fleet: Fleet, number: int) -> Measured:
            first = fleet.versions[0]
            version = Version(first.team, first.model, f"2.{number}.0", first.environment)
            fleet.add(version)
            return fleet.lepton("deploy", version.address)

        self._compare("new version", "`lepton deploy` of a new version", add)

    def preview(self) -> None:
        """Of as many changed versions in both environments."""
        count = len(self.fleets[LARGE].changed)
        for fleet in self.fleets.values():
            fleet.commit()
            for version in fleet.versions[:count]:
                fleet.configure(version, replicas=2)

        def look(fleet: Fleet, _: int) -> Measured:
            return fleet.lepton("preview", fleet.environment, "--since", "HEAD")

        ratio = self._compare("preview", f"`lepton preview --since HEAD`, {count} versions changed", look)
        self._goal("a preview of 1 % changed, larger / smaller environment", ratio, GOAL_PREVIEW)
        for fleet in self.fleets.values():
            for version in fleet.versions[:count]:
                fleet.configure(version)

    def preview_everything(self) -> None:
        everything = self._say("preview of everything", self.fleets[LARGE].lepton("preview", LARGE))
        self.result.rounds["preview of everything"] = [{LARGE: everything.figures}]
        self._table("`lepton preview` of everything", ["", "s", "MiB at most", "load"], [_row(LARGE, everything)])

    def bring_up_again(self) -> None:
        measured = {name: self._up(name) for name in self.fleets}
        changed = [name for name, one in measured.items() if one.said["changed"]]
        if changed:
            self.result.failed.append(f"`lepton up` of {' and '.join(changed)} again: it changed something")
        self.result.rounds["bring up again"] = [{name: one.figures for name, one in measured.items()}]
        rows = [_row(name, one) for name, one in measured.items()]
        self._table("`lepton up` again, nothing changed", ["", "s", "MiB at most", "load"], rows)

    # -- inside

    def _up(self, name: str) -> Measured:
        fleet = self.fleets[name]
        with self._bar(f"fleet, {name} up", fleet.stacks) as done:
            return self._say(f"{name} up", fleet.lepton("up", name, "--requests", "0", told=done))

    def _compare(self, key: str, title: str, measure: Callable[[Fleet, int], Measured]) -> float:
        """Measures in both environments in turns; returns the median ratio of the larger to the smaller."""
        turns: list[Figures] = []
        for number in range(self.rounds):
            # Which goes first alternates, so that neither always meets what the other left behind.
            order = (SMALL, LARGE) if number % 2 == 0 else (LARGE, SMALL)
            turns.append(
                {name: self._say(f"{key}, {name}", measure(self.fleets[name], number)).figures for name in order}
            )
        self.result.rounds[key] = turns
        ratios = [turn[LARGE]["seconds"] / turn[SMALL]["seconds"] for turn in turns]
        rows: list[list[Cell]] = [
            [
                f"{len(self.fleets[name].versions):,} versions",
                *(Spread.of([turn[name][figure] for turn in turns]) for figure in ("seconds", "peak_mib", "load")),
            ]
            for name in self.fleets
        ]
        rows.append(["ratio", Spread.of(ratios), "", ""])
        self._table(title, ["", "s", "MiB at most", "load"], rows)
        return statistics.median(ratios)

    def _table(self, title: str, columns: list[str], rows: list[list[Cell]]) -> None:
        self.result.tables.append(Table(title, columns, rows))

    def _goal(self, text: str, ratio: float, bound: float) -> None:
        self.result.goals.append(Goal(text, ratio, bound, at_least=False))

    def _say(self, what: str, measured: Measured) -> Measured:
        return tell(self.progress, f"fleet: {what}", measured)

    @contextlib.contextmanager
    def _bar(self, text: str, total: int) -> Iterator[Callable[[int | None], object]]:
        """Gives a function that says how many are done; None: one more."""
        task = self.progress.add_task(text, total=total)

        def done(count: int | None) -> None:
            if count is None:
                self.progress.advance(task)
            else:
                self.progress.update(task, completed=count)

        yield done
        self.progress.remove_task(task)


def _row(name: str, measured: Measured) -> list[Cell]:
    return [name, measured.seconds, measured.peak_mib, measured.load]
