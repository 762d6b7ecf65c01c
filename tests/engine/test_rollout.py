"""Rollouts by the real engine: traffic moves in steps under load, is judged, is taken back, and survives its driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deadline import until
from tests.engine.load import Load, infer_url
from tests.engine.sandbox import TEAM, Outcome, Sandbox

OLD, NEW = "1.0.0", "1.1.0"
JUDGED: dict[str, Any] = {
    "steps": [50, 100],
    "bake": "2s",
    "max_bake": "60s",
    "gates": [{"metric": "error_ratio", "detect": 0.3}],
}
"""The harm to be seen is so great that a few requests are enough to pass."""
SLOW: dict[str, Any] = {"steps": [50, 100], "bake": "10m", "max_bake": "10m", "gates": []}
"""Nothing happens by itself."""


class Steady:
    """An endpoint between two good versions, which the tests of this module move traffic between."""

    model = "steady"
    endpoint = f"{TEAM}/dev.steady"

    def __init__(self, project: Sandbox) -> None:
        self.project = project
        for version in (OLD, NEW):
            project.must("deploy", project.write_version(self.model, version))
        self.configure({OLD: 100, NEW: 0}, JUDGED)
        project.must("deploy", self.endpoint)

    def configure(self, weights: dict[str, int], rollout: dict[str, Any]) -> None:
        self.project.write_endpoint(self.model, weights, rollout=rollout)

    def rollout(self, *arguments: str) -> Outcome:
        return self.project.lepton("rollout", arguments[0], self.endpoint, *arguments[1:], "--json")

    def status(self) -> dict[str, Any]:
        return self.project.must("rollout", "status", self.endpoint, "--json").json

    def state(self) -> dict[str, Any] | None:
        """As the config file has it."""
        return yaml.safe_load(self.project.config("dev.steady").read_text())["config"].get("lepton:rollout")

    def is_at(self, step: int, phase: str) -> None:
        """Waits until the rollout is there. Steps count from 1, as people do."""

        def there() -> bool:
            state = self.state()
            return state is not None and (state["step"] + 1, state["phase"]) == (step, phase)

        until(there, 120, what=f"step {step} {phase}")

    def drivers(self) -> list[int]:
        """Processes that drive the endpoint, as its state names them."""
        state = self.state()
        return [int(state["driver"].split(".")[-2])] if state else []


@pytest.fixture(scope="module")
def steady(project: Sandbox) -> Steady:
    return Steady(project)


@pytest.fixture
def slow(steady: Steady) -> Iterator[Steady]:
    """A rollout to the new version, whose first step bakes until somebody says something."""
    steady.project.must("traffic", "set", steady.endpoint, f"{OLD}=100", f"{NEW}=0")
    steady.configure({OLD: 100, NEW: 0}, SLOW)
    assert steady.rollout("start", "--to", NEW, "--detach").status == 0
    steady.is_at(1, "baking")
    yield steady
    if steady.state() is not None:
        steady.rollout("abort")
    assert steady.state() is None


def test_a_healthy_canary_gets_all_traffic_and_no_request_is_lost(project: Sandbox, steady: Steady) -> None:
    with Load(infer_url(project.url, steady.model)) as load:
        outcome = steady.rollout("start", "--to", NEW)
    assert outcome.status == 0, outcome
    assert {"rollout", "phase", "step", "steps", "weights", "outcomes", "reason"} <= outcome.json.keys()
    assert (outcome.json["phase"], outcome.json["weights"]) == ("succeeded", {OLD: 0, NEW: 100})
    assert [found["verdict"] for found in outcome.json["outcomes"]] == ["pass"]
    assert project.observed(steady.endpoint) == {OLD: 0, NEW: 100}
    assert not load.lost()
    assert steady.state() is None
    record = project.root / ".state/rollouts" / f"{TEAM}.dev.steady" / outcome.json["rollout"]
    assert json.loads((record / "record.json").read_text())["outcome"] == "succeeded"
    assert steady.status() == {"endpoint": steady.endpoint, "rollout": None}


def test_a_canary_that_fails_a_twentieth_is_taken_back_and_costs_nothing_else(project: Sandbox) -> None:
    project.must("deploy", project.write_version("failing", OLD))
    project.must("deploy", project.write_version("failing", NEW, "--error-ratio", "0.05"))
    endpoint = project.write_endpoint("failing", {OLD: 100}, rollout=JUDGED | {"bake": "60s"})
    project.must("deploy", endpoint)
    with Load(infer_url(project.url, "failing"), rate=100) as load:
        outcome = project.lepton("rollout", "start", endpoint, "--to", NEW, "--json")
        until(lambda: load.answers[-1].version == OLD, what="the old version's answers")
    assert outcome.status == 1, outcome
    assert outcome.json["phase"] == "taken back"
    assert "1.1.0 failed gate error-ratio" in outcome.json["reason"]
    assert project.observed(endpoint) == {OLD: 100}
    assert not load.lost(except_version=NEW)
    assert load.of(NEW)
    assert "taken back: 1.1.0 failed gate" in project.must("history", endpoint, "--json").json[-1]["message"]


def test_a_driver_that_is_killed_in_mid_bake_is_followed_by_the_next_start(slow: Steady) -> None:
    (driver,) = slow.drivers()
    second = slow.rollout("resume")
    assert second.status == 1
    assert "another process on this machine drives its rollout" in second.err
    os.kill(driver, signal.SIGKILL)
    until(lambda: not slow.status()["driven"], what="the driver's end")

    refused = slow.rollout("start", "--to", f"{OLD}=50", "--to", f"{NEW}=50")
    assert refused.status == 1
    assert "under way, baking at step 1 of 2; go on with `lepton rollout resume" in refused.err
    following = slow.rollout("start", "--to", NEW, "--detach")
    assert following.status == 0, following
    slow.is_at(1, "baking")
    assert slow.drivers() != [driver]
    assert slow.project.observed(slow.endpoint) == {OLD: 50, NEW: 50}


def test_it_is_paused_resumed_promoted_and_aborted(slow: Steady) -> None:
    paused = slow.rollout("pause")
    assert (paused.status, paused.json["phase"]) == (0, "paused")
    assert slow.project.observed(slow.endpoint) == {OLD: 50, NEW: 50}
    watched = slow.project.lepton("rollout", "watch", slow.endpoint)
    assert (watched.status, "paused by" in watched.out) == (3, True)

    assert slow.rollout("resume", "--detach").status == 0
    slow.is_at(1, "baking")
    assert slow.rollout("promote").status == 0
    slow.is_at(2, "baking")
    status = slow.status()
    assert (status["step"], status["weights"], status["driven"]) == (2, {OLD: 0, NEW: 100}, True)

    assert slow.rollout("abort").status == 0
    assert slow.project.observed(slow.endpoint) == {OLD: 100, NEW: 0}
    assert slow.state() is None


def test_a_persons_traffic_set_pauses_it_and_resume_sets_the_step_again(slow: Steady) -> None:
    outcome = slow.project.must("traffic", "set", slow.endpoint, f"{OLD}=80", f"{NEW}=20")
    assert "this pauses its rollout" in outcome.err
    until(lambda: not slow.status()["driven"], what="the driver's end")
    state = slow.status()
    assert (state["phase"], state["observed_weights"]) == ("paused", {OLD: 80, NEW: 20})

    assert slow.rollout("resume", "--detach").status == 0
    slow.is_at(1, "baking")
    assert slow.project.observed(slow.endpoint) == {OLD: 50, NEW: 50}


def test_a_step_waits_for_its_approval(steady: Steady) -> None:
    steady.project.must("traffic", "set", steady.endpoint, f"{OLD}=100", f"{NEW}=0")
    steady.configure({OLD: 100, NEW: 0}, SLOW | {"bake": "1s", "approve": [100]})
    driver = steady.project.start("lepton", "rollout", "start", steady.endpoint, "--to", NEW)
    steady.is_at(2, "awaiting approval")
    assert steady.project.observed(steady.endpoint) == {OLD: 50, NEW: 50}
    assert steady.rollout("promote").status == 0
    outcome = steady.project.finish(driver)
    assert outcome.status == 0, outcome
    assert steady.project.observed(steady.endpoint) == {OLD: 0, NEW: 100}


def test_a_detached_driver_outlives_the_terminal(slow: Steady) -> None:
    (driver,) = slow.drivers()
    asked = subprocess.run(["ps", "-o", "sid=", "-p", str(driver)], capture_output=True, text=True, check=True)
    assert int(asked.stdout) == driver
