"""Simulated rollouts, recorded as a driver does it: what tests of records and of their page look at."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from infra.settings.rollout import RolloutSettings
from rollout.analysis.judge import Judge
from rollout.analysis.samples import Counts, Look
from rollout.driving.state import RolloutState
from rollout.records.record import Record
from rollout.strategies import Step

START = datetime(2026, 11, 21, 15, 42, 20, tzinfo=UTC)
BOUNDS = (1, 2.5, 5, 10, 25, 50, 75, 100, 250, 500, 1000, 2500, 5000, math.inf)
BASELINE, CANDIDATE = "1.0.0", "1.1.0"


@dataclass(frozen=True)
class Behaviour:
    """What a version does with its requests."""

    error_ratio: float = 0.01
    median_ms: float = 20.0
    spread: float = 0.5
    """Of the latencies' logarithm."""


def state(weights: list[Mapping[str, int]], **changed: Any) -> RolloutState:
    """The state of a rollout with such steps; the first weights are those before it."""
    total = sum(weights[0].values())
    steps = [
        Step(weights=dict(each), bake_seconds=60, percent=100 * each.get(CANDIDATE, 0) / total) for each in weights
    ]
    known = {
        "id": "20261121-154220-3f2a",
        "by": "ada@example.org",
        "driver": "host.1.abc",
        "strategy": "canary",
        "settings": RolloutSettings(),
        "initial": steps[0],
        "revision": 7,
        "baseline": BASELINE,
        "candidates": (CANDIDATE,),
        "steps": tuple(steps[1:]),
        "since": START.isoformat(),
        "started": START.isoformat(),
    }
    return RolloutState.model_validate(known | changed)


def canary(*percents: int) -> list[Mapping[str, int]]:
    return [{BASELINE: 100 - percent, CANDIDATE: percent} for percent in (0, *percents)]


class Simulation:
    """Goes through a rollout second by second, and records it."""

    def __init__(
        self,
        folder: Path,
        rollout: RolloutState,
        behaviours: Mapping[str, Behaviour],
        *,
        rate: int = 100,
        seed: int = 1,
    ) -> None:
        self.record = Record(folder, self.problem)
        self.state = rollout
        self.now = START
        self.problems: list[str] = []
        self._judge = Judge(rollout.settings, rollout.baseline, rollout.candidates)
        self._behaviours = behaviours
        self._rate = rate
        self._random = random.Random(seed)
        self._latencies = {name: _latency_shares(how) for name, how in behaviours.items()}

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def enter(self, phase: Any, seconds: float = 0.0, reason: str = "", step: int | None = None) -> None:
        """Comes to a phase, after so many seconds."""
        self.now += timedelta(seconds=seconds)
        index = self.state.step if step is None else step
        self.state = self.state.model_copy(update={"phase": phase, "reason": reason, "step": index})
        if phase in ("baking", "taken back", "aborted"):
            moved = self.state.current if phase == "baking" else self.state.initial
            doing = "moving" if phase == "baking" else phase
            self.record.event("weights", self.now, step=index + 1, phase=doing, weights=moved.weights, seconds=2.5)
        facts = {
            "endpoint": "radiology/dev.tumour",
            "step": index + 1,
            "steps": len(self.state.steps),
            "weights": self.state.current.weights,
            "reason": reason,
            "outcomes": [outcome.model_dump() for outcome in self.state.outcomes],
        }
        self.record.event(phase, self.now, **facts)

    def bake(self, step: int, seconds: int, *, every: float = 1.0, problem: str = "", until_fail: bool = True) -> bool:
        """Bakes a step, and says whether its gate failed."""
        self.enter("preparing", 0.2, step=step)
        self.enter("moving", 1.0)
        self.enter("baking", 2.5)
        self._judge.begin_step(step)
        for _ in range(int(seconds / every)):
            self.now += timedelta(seconds=every)
            counts = {} if problem else self._count(every)
            look = Look(self.now.timestamp(), every, counts, weights=self.state.current.weights, problem=problem)
            self._judge.see(look)
            verdicts = self._judge.verdicts()
            self.record.look(step, look, verdicts)
            failed = [
                f"{each.version} failed gate {each.gate}: {each.reason}" for each in verdicts if each.word == "fail"
            ]
            if failed and until_fail:
                self.enter("taking back", 0.0, "; ".join(failed))
                return True
        return False

    def end(self, phase: Any, seconds: float = 0.5, reason: str = "") -> None:
        self.enter(phase, seconds, reason)
        self.record.finish(self.state, self.now)

    def _count(self, seconds: float) -> dict[str, Counts]:
        weights = self.state.current.weights
        total = sum(weights.values())
        return {
            name: self._counts(name, round(self._rate * seconds * weight / total)) for name, weight in weights.items()
        }

    def _counts(self, name: str, requests: int) -> Counts:
        how = self._behaviours[name]
        errors = sum(self._random.random() < how.error_ratio for _ in range(requests))
        found = dict.fromkeys(BOUNDS, 0)
        for bound in self._random.choices(BOUNDS, self._latencies[name], k=requests):
            found[bound] += 1
        cumulative, total = {}, 0
        for bound, count in found.items():
            total += count
            cumulative[bound] = total
        return Counts(requests, errors, cumulative, requests * 0.004)


def _latency_shares(how: Behaviour) -> list[float]:
    def within(bound: float) -> float:
        return 0.5 * (1 + math.erf(math.log(bound / how.median_ms) / how.spread / math.sqrt(2)))

    below = [0.0, *(within(bound) for bound in BOUNDS[:-1]), 1.0]
    return [high - low for low, high in pairwise(below)]


def taken_back(folder: Path, *, seconds: int = 60) -> Simulation:
    """A canary that fails 5 % of its requests in its second step."""
    simulated = Simulation(
        folder, state(canary(5, 25, 50, 100)), {BASELINE: Behaviour(), CANDIDATE: Behaviour(0.05, 28)}
    )
    simulated.enter("waiting")
    failed = simulated.bake(0, 20, until_fail=False) or simulated.bake(1, seconds)
    assert failed, "the simulated gate did not fail"
    simulated.end("taken back", 1.4, simulated.state.reason)
    return simulated


def succeeded(
    folder: Path, *, percents: tuple[int, ...] = (5, 25, 50, 100), seconds: int = 60, every: float = 1.0
) -> Simulation:
    """A canary as good as the baseline, that a person pauses once."""
    simulated = Simulation(folder, state(canary(*percents)), {BASELINE: Behaviour(), CANDIDATE: Behaviour(0.01, 17)})
    simulated.enter("waiting")
    for step in range(len(percents)):
        simulated.bake(step, seconds, every=every, until_fail=False)
        if step == 1:
            simulated.enter("paused", 0.0, "paused by <script>alert('ada')</script> & co")
            simulated.now += timedelta(seconds=seconds / 2)
            simulated.enter("waiting")
    simulated.enter("finishing")
    simulated.end("succeeded")
    return simulated
