"""The router's cost: Envoy as this project configures it, against no router at all, HAProxy and nginx.

Two backends are asked. One answers at once, so that only the router's own cost shows; the other takes as long as a
small model does, as then a router's cost matters only as far as it comes on top. Envoy with one route and one cluster,
and nothing else switched on, tells how much of the cost is Envoy's and how much this project's configuration.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from benchmarks import load
from benchmarks.processes import Cores, MissingToolError, cpu_seconds
from benchmarks.results import Cell, Figures, Goal, Result, Spread, Table
from benchmarks.targets import (
    Backends,
    EnvoyTarget,
    Target,
    backends,
    bare_envoy_router,
    check_weights,
    direct,
    endpoint_settings,
    haproxy_router,
    nginx_router,
)

WEIGHTS = {"1.0.0": 90, "1.1.0": 10}
CONNECTIONS = 32
LATENCY_RATE = 1000.0
LATENCY_CONNECTIONS = 4
MODEL_MS = 10
GOAL = 0.95
RIVALS = ("HAProxy", "nginx")


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    cores: Cores
    directory: Path
    rounds: int
    seconds: float
    progress: Progress
    result: Result


Measure = Callable[[Target, Bench, float], dict[str, float]]


def run(directory: Path, rounds: int, seconds: float, progress: Progress) -> Result:
    cores = Cores.share_out()
    result = Result(
        "router",
        {
            "weights": "/".join(map(str, WEIGHTS.values())),
            "rounds": rounds,
            "seconds_a_measurement": seconds,
            "connections": CONNECTIONS,
            "latency_rate": LATENCY_RATE,
            "latency_connections": LATENCY_CONNECTIONS,
            "router_cores": str(cores.router),
            "load_and_backend_cores": str(cores.load),
        },
    )
    bench = Bench(cores, directory, rounds, seconds, progress, result)
    for name, delay_ms, measures in (
        ("an instant backend", 0, [_full_speed, _latency]),
        (f"a backend that takes {MODEL_MS} ms", MODEL_MS, [_full_speed]),
    ):
        home = directory / str(delay_ms)
        home.mkdir()
        try:
            with _targets(bench, home, delay_ms) as targets:
                measured = _measure(name, targets, measures, bench)
        except MissingToolError as missing:
            result.left_out.append(f"{name}: {missing}")
            continue
        if measured:
            result.rounds[name] = measured
            _tabulate(name, list(targets), bench)
    return result


@contextlib.contextmanager
def _targets(bench: Bench, home: Path, delay_ms: int) -> Iterator[list[Target]]:
    """The routers that are there, each seen to send requests to every version."""
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(backends(list(WEIGHTS), bench.cores, home, delay_ms))
        targets = [direct(behind)]
        for start in (_envoy, bare_envoy_router, haproxy_router, nginx_router):
            try:
                target = stack.enter_context(start(behind, WEIGHTS, bench.cores, home))
            except MissingToolError as missing:
                if str(missing) not in bench.result.left_out:
                    bench.result.left_out.append(str(missing))
                continue
            targets.append(target)
            if target.splits:
                answers = load.in_parallel(target.url, [None] * 500)
                check_weights(target, WEIGHTS, Counter(answer.version or "" for answer in answers))
        bench.result.settings |= {f"software_of_{target.name}": target.software for target in targets[1:]}
        bench.result.settings[f"backend_{delay_ms}_ms"] = behind.software
        yield targets


@contextlib.contextmanager
def _envoy(behind: Backends, weights: dict[str, int], cores: Cores, directory: Path) -> Iterator[Target]:
    with EnvoyTarget(behind, directory).started(endpoint_settings(weights), cores) as target:
        yield target


def _measure(name: str, targets: list[Target], measures: Sequence[Measure], bench: Bench) -> list[Figures]:
    """Figures by target, for each round. A round has every target, and starts with another one than the last."""
    usable: list[Measure] = []
    for measure in measures:
        try:
            for target in targets:
                measure(target, bench, 1)  # So that none is measured cold.
        except MissingToolError as missing:
            bench.result.left_out.append(f"{measure.__doc__} with {name}: {missing}")
        else:
            usable.append(measure)
    if not usable:
        return []
    figures: list[Figures] = [{} for _ in range(bench.rounds)]
    turns = list(itertools.product(range(bench.rounds), range(len(targets))))
    for index, turn in bench.progress.track(turns, description=f"router, {name}"):
        target = targets[(index + turn) % len(targets)]
        found = [measure(target, bench, bench.seconds) for measure in usable]
        figures[index][target.name] = {figure: value for one in found for figure, value in one.items()}
    return figures


def _full_speed(target: Target, bench: Bench, seconds: float) -> dict[str, float]:
    """throughput and CPU time"""
    cores = bench.cores
    before = cpu_seconds(target.process) if target.process else 0.0
    burst = load.full_speed(
        target.url, connections=CONNECTIONS, seconds=seconds, cores=cores.load, directory=bench.directory
    )
    figures = {"requests_per_second": burst.rate}
    if target.process:
        used = cpu_seconds(target.process) - before
        figures |= {
            "cpu_seconds_per_10k": used / burst.requests * 10_000,
            "busy_percent": used / burst.seconds / len(cores.router) * 100,
        }
    return figures


def _latency(target: Target, bench: Bench, seconds: float) -> dict[str, float]:
    """latency"""
    latencies = load.fixed_rate(
        target.url,
        rate=LATENCY_RATE,
        connections=LATENCY_CONNECTIONS,
        seconds=seconds,
        cores=bench.cores.load,
        directory=bench.directory,
    )
    return {f"p{percent}_ms": load.percentile(latencies, percent) for percent in (50, 99)}


def _tabulate(name: str, targets: list[Target], bench: Bench) -> None:
    rounds = bench.result.rounds[name]

    def over_rounds(figure: Callable[[Figures], float]) -> Cell:
        try:
            return Spread.of([figure(one) for one in rounds])
        except KeyError:
            return "-"

    def plain(target: Target, figure: str) -> Cell:
        return over_rounds(lambda one: one[target.name][figure])

    def added(target: Target, figure: str) -> Cell:
        if target.process is None:
            return plain(target, figure)
        return over_rounds(lambda one: one[target.name][figure] - one["direct"][figure])

    plain_figures = {
        "requests_per_second": "requests/s",
        "cpu_seconds_per_10k": "CPU s per 10k",
        "busy_percent": "core busy %",
    }
    added_figures = {"p50_ms": "added p50 ms", "p99_ms": "added p99 ms"} if "p50_ms" in rounds[0]["direct"] else {}
    bench.result.tables.append(
        Table(
            f"Router before {name}: median (min to max) of rounds"
            + ("; latency is what comes on top of direct's, which is in its own row" if added_figures else ""),
            ["", *plain_figures.values(), *added_figures.values()],
            [
                [
                    target.name,
                    *(plain(target, figure) for figure in plain_figures),
                    *(added(target, figure) for figure in added_figures),
                ]
                for target in targets
            ],
        )
    )
    if "requests_per_second" in rounds[0].get("Envoy", {}):
        _compare(name, [rival for rival in RIVALS if rival in rounds[0]], over_rounds, bench)


def _compare(
    name: str, rivals: list[str], over_rounds: Callable[[Callable[[Figures], float]], Cell], bench: Bench
) -> None:
    rows: list[list[Cell]] = []
    others = ["direct", "bare Envoy", *rivals]
    for figure, better, label in (
        ("requests_per_second", max, "throughput (more is better)"),
        ("cpu_seconds_per_10k", min, "CPU time a request (less is better)"),
    ):
        row: list[Cell] = [
            label,
            *(over_rounds(lambda one, of=of, figure=figure: one["Envoy"][figure] / one[of][figure]) for of in others),
        ]
        if rivals:
            best = Spread.of(
                [
                    one["Envoy"][figure] / better(one[rival][figure] for rival in rivals)
                    for one in bench.result.rounds[name]
                ]
            )
            row.append(best)
            if better is max:
                text = f"throughput before {name}, Envoy / better of {' and '.join(rivals)}"
                bench.result.goals.append(Goal(text, best.median, GOAL, at_least=True))
        rows.append(row)
    columns = ["Envoy as configured /", *others, *(["the better"] if rivals else [])]
    bench.result.tables.append(Table(f"Router before {name}: ratios within a round", columns, rows))
