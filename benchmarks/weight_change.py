"""What a weight change costs: requests that fail while weights change under load, and the time it takes.

The 100 changes are the product's own: what an update of an endpoint stack does to the router, without the engine around
it. The time is that of the command, engine and all, from its start until a request is answered on the new weights, in a
project made for the run; beside it stands `pulumi up` of a program with nothing in it, under the same load. Model
servers are the tests' stand-ins, so that the load leaves the processor to what is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from benchmarks import load
from benchmarks.open_loop import Answer, OpenLoop, Request
from benchmarks.processes import BenchmarkError, Cores, MissingToolError, wait_until
from benchmarks.results import Cell, Goal, Result, Spread, Table
from benchmarks.served import ENDPOINT, Served, pulumi_version, served_project
from benchmarks.targets import EnvoyTarget, backends, endpoint_settings

VERSIONS = ["1.0.0", "1.1.0"]
OLD, NEW = VERSIONS
RATE = 200.0
CHANGES = 100
SECONDS_BETWEEN_CHANGES = 0.3
GOAL_RATIO = 1.5


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
            OpenLoop(_asked(target.url), RATE) as traffic,
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


def _asked(url: str) -> Request:
    return Request(url, body_names_version=True)


def _failures(answers: Sequence[Answer], during: str) -> list[str]:
    """What failed; refuses a run that sent nothing, which would have nothing to fail."""
    if not answers:
        raise BenchmarkError(f"no request was sent during {during}")
    return [answer.failure for answer in answers if answer.failure]


# -- the command


def _by_command(home: Path, rounds: int, result: Result, progress: Progress) -> None:
    figures: list[dict[str, dict[str, float]]] = []
    with served_project(home) as served:
        result.settings["software_of_pulumi"] = pulumi_version(served)
        with OpenLoop(_asked(served.url), RATE) as traffic:
            for index in progress.track(range(rounds), description="weight_change, command"):
                old, new = (OLD, NEW) if index % 2 == 0 else (NEW, OLD)
                # Which of the two goes first alternates, so that neither always meets what the other left behind.
                order = ["lepton", "empty"] if index % 2 == 0 else ["empty", "lepton"]
                taken = {
                    which: _seconds_of_change(served, traffic, old, new)
                    if which == "lepton"
                    else {"seconds": served.empty_up()}
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


def _seconds_of_change(served: Served, traffic: OpenLoop, old: str, new: str) -> dict[str, float]:
    began = time.monotonic()
    served.lepton("traffic", "set", ENDPOINT, f"{old}=0", f"{new}=100")
    seconds = time.monotonic() - began

    def first() -> Answer | None:
        return traffic.first_since(began, lambda answer: answer.version == new and not answer.failure)

    wait_until(lambda: first() is not None, f"an answer by {new}")
    answer = first()
    assert answer is not None
    return {"seconds": seconds, "to_first_answer_seconds": answer.ended - began}
