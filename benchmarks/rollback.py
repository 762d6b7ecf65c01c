"""What a bad release costs: how long a failing canary is served, and what a healthy one or an unlucky one goes through.

A canary that fails is the scenario of `benchmarks/scenarios/lepton.yaml`, played as on any other system; beside
each run stands its floor: an update of an empty program, and the bare write of weights to the router, under the same
load. False alarms are counted over simulated rollouts, as thousands are needed, and over some real ones. A canary of
five steps shows how the requests are split at each, and whether any is lost.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import yaml
from rich.progress import Progress
from scipy import stats

from benchmarks import scenario
from benchmarks.open_loop import Answer, OpenLoop, Request
from benchmarks.processes import BenchmarkError, MissingToolError
from benchmarks.results import Cell, Goal, Result, Spread, Table
from benchmarks.served import BASELINE, CANDIDATE, ENDPOINT, Served, pulumi_version, served_project
from infra.contracts import ObservationError, Observer, PlatformExports, observer_of, shifter_of
from infra.settings.rollout import RolloutSettings
from rollout.analysis.judge import Judge
from rollout.analysis.samples import Counts, Look

SCENARIO = Path(__file__).parent / "scenarios/lepton.yaml"
TEAM, MODEL = "diagnostics", "tumour"
RUNS_A_ROUND = 4
RATE = 100.0
EQUAL_ERRORS = 0.01
REAL_EQUAL_RUNS = 3
STEPS = (10, 25, 50, 75, 100)
SIMULATED = 1000
SIMULATED_BAKE_SECONDS = 60
FALSE_ALARMS = 0.05
CONFIDENCE = 0.999
"""Of the split's deviation, as in the benchmark of the split."""


def run(directory: Path, rounds: int, seconds: float, progress: Progress) -> Result:
    """Four runs of the scenario a round."""
    del seconds
    result = Result("rollback", {"requests_per_second": RATE, "runs": rounds * RUNS_A_ROUND})
    _simulated_alarms(result, progress)
    try:
        # Each version's server is told how often to fail; the canary warms up with nothing, lest that give it away.
        healthy = ["--error-ratio=0", "--seed=0"]
        with served_project(
            directory / "project",
            flags={BASELINE: healthy, CANDIDATE: healthy},
            versions={CANDIDATE: {"warm_up": 0}},
        ) as served:
            result.settings["software_of_pulumi"] = pulumi_version(served)
            _five_steps(served, result, progress)
            _equal_versions(served, result, progress)
            _failing_canary(served, rounds * RUNS_A_ROUND, result, progress)
    except MissingToolError as missing:
        result.left_out.append(f"real rollouts: {missing}")
    except BenchmarkError as error:
        result.failed.append(f"real rollouts: {error}")
    return result


# -- a canary that fails


def _failing_canary(served: Served, runs: int, result: Result, progress: Progress) -> None:
    port = str(served.port)
    played = scenario.read(SCENARIO, {"url": f"http://127.0.0.1:{port}"})
    _fails(served, BASELINE, 0.0)
    _fails(served, CANDIDATE, 0.05)
    exports = cast("PlatformExports", served.platform())
    done: list[scenario.Run] = []
    floors: list[dict[str, float]] = []
    moves: list[float] = []
    for number in progress.track(range(1, runs + 1), description="rollback, failing canary"):
        with _Watch(observer_of(exports), seconds=0.02) as watch:
            done.append(scenario.play(played, number, served.folder, served.environment))
        moves.append(_seconds_of_move(watch.seen, done[-1]))
        with OpenLoop(Request(served.url), RATE):
            floors.append({"empty_up": served.empty_up(), "bare_write": _bare_write(exports)})
    result.tables.append(scenario.table(played, done))
    result.goals.extend(scenario.goals(played, done))
    names = {"empty_up": "pulumi up of an empty program, s", "bare_write": "bare write of weights to the router, s"}
    rows: list[list[Cell]] = [[text, Spread.of([floor[name] for floor in floors])] for name, text in names.items()]
    ratio = statistics.median(moves) / statistics.median(floor["bare_write"] for floor in floors)
    rows.insert(0, ["from the gate's word until the router had the baseline's weights, s", Spread.of(moves)])
    rows.append(["that / bare write, medians", ratio])
    result.tables.append(Table("Floor of a rollback, in the same run under the same load", ["", ""], rows))
    result.rounds["failing canary"] = [
        {"run": run.figures() | {"to_router": move}, "floor": floor}
        for run, move, floor in zip(done, moves, floors, strict=True)
    ]


def _seconds_of_move(seen: Sequence[_Weights], run: scenario.Run) -> float:
    """From when the record had the verdict until the router had the weights, to some hundredths of a second."""
    back = [each.since for each in seen if not each.weights.get(CANDIDATE)]
    if run.noticed_at is None or len(back) < 2:
        raise BenchmarkError(f"nobody saw the canary's way back: {[each.weights for each in seen]}")
    return max(0.0, back[-1] - run.noticed_at)


def _bare_write(exports: PlatformExports) -> float:
    """Seconds until the router has other weights, and back: half of both."""
    shifter = shifter_of(exports)
    began = time.monotonic()
    for share in (10, 0):
        shifter.shift(TEAM, MODEL, {BASELINE: 100 - share, CANDIDATE: share})
    return (time.monotonic() - began) / 2


def _fails(served: Served, version: str, ratio: float, seed: int = 1) -> None:
    """Has a version's server answer 500 to so many of its requests, by chance."""
    file = served.config(f"dev.{MODEL}-{version}")
    document = yaml.safe_load(file.read_text())
    command = document["config"]["lepton:version"]["server"]["command"]
    kept = [argument for argument in command if not argument.startswith(("--error-ratio=", "--seed="))]
    document["config"]["lepton:version"]["server"]["command"] = [*kept, f"--error-ratio={ratio}", f"--seed={seed}"]
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    served.lepton("deploy", f"{ENDPOINT}-{version}")


# -- canaries that do not


def _equal_versions(served: Served, result: Result, progress: Progress) -> None:
    """Rollouts of a canary that fails as often as the baseline: none should be taken back."""
    reasons: list[str] = []
    for number in progress.track(range(1, REAL_EQUAL_RUNS + 1), description="rollback, equal versions"):
        _fails(served, BASELINE, EQUAL_ERRORS, seed=2 * number)
        _fails(served, CANDIDATE, EQUAL_ERRORS, seed=2 * number + 1)
        with OpenLoop(Request(served.url), RATE):
            try:
                served.lepton(*_rollout("50,100", "20s"))
            except BenchmarkError as error:
                reasons.append(str(error))
        served.lepton("traffic", "set", ENDPOINT, f"{BASELINE}=100", f"{CANDIDATE}=0")
    text = f"of {REAL_EQUAL_RUNS} real rollouts where both fail {EQUAL_ERRORS:.0%}, not completed"
    result.goals.append(Goal(text, len(reasons), 0, at_least=False))
    result.rounds["equal versions"] = [{"rollouts": {"not_completed": len(reasons), "of": REAL_EQUAL_RUNS}}]
    result.failed.extend(f"a rollout of equal versions: {reason}" for reason in reasons)


def _simulated_alarms(result: Result, progress: Progress) -> None:
    """How many rollouts of a canary no worse than the baseline would fail a gate, looked at each second or two."""
    rows: list[list[Cell]] = []
    for seconds in (1, 2):
        alarms = sum(
            _false_alarm(np.random.default_rng([seconds, seed]), seconds)
            for seed in progress.track(range(SIMULATED), description=f"rollback, looks each {seconds} s")
        )
        share = alarms / SIMULATED
        # Clopper and Pearson 1934.
        low, high = stats.beta.ppf(
            [0.025, 0.975], [max(alarms, 1e-9), alarms + 1], [SIMULATED - alarms + 1, SIMULATED - alarms]
        )
        label = f"a look each {seconds} s"
        rows.append([label, SIMULATED, alarms, f"{share:.1%}", f"{low:.1%} to {high:.1%}"])
        result.goals.append(Goal(f"false alarms, {label}", share, FALSE_ALARMS, at_least=False))
        result.rounds[label] = [{"simulated": {"rollouts": SIMULATED, "alarms": alarms}}]
    bakes = f"{len(STEPS)} steps of {SIMULATED_BAKE_SECONDS} s at {RATE:.0f} requests/s"
    title = f"False alarms where canary and baseline both fail {EQUAL_ERRORS:.0%}: {bakes}"
    result.tables.append(Table(title, ["", "rollouts", "alarms", "share", "95 % interval"], rows))


_BOUNDS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
"""Of the simulated latencies' histogram, ms."""


def _false_alarm(chance: np.random.Generator, seconds: int) -> bool:
    judge = Judge(RolloutSettings(), BASELINE, [CANDIDATE])
    now = 0.0
    for index, percent in enumerate(STEPS):
        judge.begin_step(index)
        for _ in range(0, SIMULATED_BAKE_SECONDS, seconds):
            now += seconds
            counts = {
                version: _counts(chance, RATE * seconds * share / 100)
                for version, share in ((BASELINE, 100 - percent), (CANDIDATE, percent))
            }
            judge.see(Look(now, seconds, counts, weights={BASELINE: 100 - percent, CANDIDATE: percent}))
    # A gate that has failed at any look stays so.
    return any(verdict.word == "fail" for verdict in judge.verdicts())


def _counts(chance: np.random.Generator, expected: float) -> Counts:
    requests = int(chance.poisson(expected))
    latencies = chance.lognormal(mean=3.0, sigma=1.0, size=requests)
    at_most = {bound: int(np.count_nonzero(latencies <= bound)) for bound in _BOUNDS}
    errors = int(chance.binomial(requests, EQUAL_ERRORS))
    return Counts(requests, errors, {**at_most, float("inf"): requests})


# -- a canary of five steps


@dataclass(frozen=True)
class _Weights:
    """Weights that the router had, since when on the monotonic clock, and until when."""

    weights: dict[str, int]
    since: float
    until: float


class _Watch:
    """Notes the router's weights and when they change."""

    def __init__(self, observer: Observer, *, seconds: float = 0.1) -> None:
        """`seconds`: between two looks."""
        self.seen: list[_Weights] = []
        self._observer, self._seconds, self._stop = observer, seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            before = time.monotonic()
            try:
                weights = self._observer.traffic(TEAM, MODEL)["weights"]
            except ObservationError:
                continue  # The look before and the look after say what it was between them.
            after = time.monotonic()
            if self.seen and self.seen[-1].weights == weights:
                self.seen[-1] = _Weights(weights, self.seen[-1].since, before)
            else:
                self.seen.append(_Weights(weights, after, after))


def _five_steps(served: Served, result: Result, progress: Progress) -> None:
    task = progress.add_task("rollback, five steps", total=1)
    with (
        OpenLoop(Request(served.url, body_names_version=True), RATE) as load,
        _Watch(observer_of(cast("PlatformExports", served.platform()))) as watch,
    ):
        served.lepton(*_rollout(",".join(map(str, STEPS)), "20s"))
    served.lepton("traffic", "set", ENDPOINT, f"{BASELINE}=100", f"{CANDIDATE}=0")
    progress.advance(task)
    steps = [seen for seen in watch.seen if seen.weights.get(CANDIDATE)]
    if [seen.weights[CANDIDATE] for seen in steps] != list(STEPS):
        raise BenchmarkError(f"the router had other weights than the steps': {[seen.weights for seen in steps]}")
    rows = [_step_row(seen, load.answers, result) for seen in steps]
    between = sum(bool(answer.failure) for answer in load.answers)
    rows.append(["the whole rollout", "", len(load.answers), "", "", "", between])
    result.goals.append(Goal("requests lost over a canary of five steps", between, 0, at_least=False))
    columns = ["canary's weight", "seconds", "requests", "of canary", "expected", "deviation, sigma", "lost"]
    result.tables.append(Table(f"A healthy canary in five steps at {RATE:.0f} requests/s", columns, rows))


def _step_row(seen: _Weights, answers: Sequence[Answer], result: Result) -> list[Cell]:
    within = [answer for answer in answers if answer.due >= seen.since and answer.ended <= seen.until]
    lost = sum(bool(answer.failure) for answer in within)
    canary = sum(answer.version == CANDIDATE for answer in within)
    share = seen.weights[CANDIDATE] / sum(seen.weights.values())
    expected, deviation = len(within) * share, (len(within) * share * (1 - share)) ** 0.5
    away = (canary - expected) / deviation if deviation else float(canary - expected)
    percent = seen.weights[CANDIDATE]
    bound = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    result.goals.append(Goal(f"split's deviation at {percent} %, sigma", abs(away), bound, at_least=False))
    figures = {"requests": len(within), "canary": canary, "expected": expected, "sigma": away, "lost": lost}
    result.rounds[f"step of {percent} %"] = [{"step": {**figures, "seconds": seen.until - seen.since}}]
    return [f"{percent} %", seen.until - seen.since, len(within), canary, expected, away, lost]


def _rollout(steps: str, bake: str) -> tuple[str, ...]:
    options = ("--strategy", "canary", "--steps", steps, "--bake", bake)
    return ("rollout", "start", ENDPOINT, "--to", CANDIDATE, *options)
