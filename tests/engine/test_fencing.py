"""What rollouts rely on, by the real engine: updates in order, weights ahead of their stack, versions warmed up."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import yaml

from infra.contracts import PlatformExports, Shifter, shifter_of
from rollout.driving.warming import Warmed, warm_up
from rollout.project import Project
from rollout.release import Releases
from tests.engine.sandbox import TEAM, Outcome, Sandbox

MODEL = "fenced"
ENDPOINT = f"{TEAM}/dev.{MODEL}"


@pytest.fixture(scope="module")
def endpoint(project: Sandbox) -> str:
    """Two versions of `fenced`, and an endpoint that has never been up."""
    for version in ("1.0.0", "1.1.0"):
        project.must("deploy", project.write_version(MODEL, version))
    return project.write_endpoint(MODEL, {"1.0.0": 100, "1.1.0": 0})


@pytest.fixture
def up(project: Sandbox, endpoint: str) -> Sandbox:
    """The endpoint as an update without a rollout leaves it."""
    project.write_endpoint(MODEL, {"1.0.0": 100, "1.1.0": 0})
    project.must("deploy", endpoint)
    return project


def rollout(driver: str, step: int = 0, *, follows: dict[str, Any] | None = None) -> dict[str, Any]:
    """As much of a rollout's state as its stack's program reads, and something that it doesn't."""
    return {"id": "20260101-000000-abcd", "driver": driver, "step": step, "phase": "moving", "follows": follows}


def write(project: Sandbox, weights: dict[str, int], state: dict[str, Any]) -> None:
    project.write_endpoint(MODEL, weights)
    file = project.config(f"dev.{MODEL}")
    content = yaml.safe_load(file.read_text())
    content["config"]["lepton:rollout"] = state
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def pulumi_up(project: Sandbox) -> Outcome:
    return project.pulumi("up", "--yes", "--skip-preview", "--stack", f"dev.{MODEL}")


def outputs(project: Sandbox) -> dict[str, Any]:
    return json.loads(project.pulumi("stack", "output", "--json", "--stack", f"dev.{MODEL}").out)


def test_the_first_update_of_a_stack_has_nothing_to_follow(project: Sandbox, endpoint: str) -> None:
    follows = {"weights": {"1.0.0": 1, "1.1.0": 1}, "driver": None}
    write(project, {"1.0.0": 100, "1.1.0": 0}, rollout("first", follows=follows))
    project.must("deploy", endpoint)
    assert outputs(project)["rollout"] == {"id": "20260101-000000-abcd", "driver": "first", "step": 0}
    # And a stack whose rollout is over says so.
    project.write_endpoint(MODEL, {"1.0.0": 100, "1.1.0": 0})
    project.must("deploy", endpoint)
    assert "rollout" not in outputs(project)


def test_an_update_that_follows_what_the_stack_has_is_made_and_may_be_repeated(up: Sandbox) -> None:
    before = {"weights": {"1.0.0": 100, "1.1.0": 0}, "driver": None}
    write(up, {"1.0.0": 90, "1.1.0": 10}, rollout("a", 1, follows=before))
    up.must("deploy", ENDPOINT)
    assert up.observed(ENDPOINT) == {"1.0.0": 90, "1.1.0": 10}
    assert "nothing changed" in up.must("deploy", ENDPOINT).out
    assert pulumi_up(up).status == 0
    # The next step of the same driver follows its own.
    now = {"weights": {"1.0.0": 90, "1.1.0": 10}, "driver": "a"}
    write(up, {"1.0.0": 50, "1.1.0": 50}, rollout("a", 2, follows=now))
    assert pulumi_up(up).status == 0
    assert outputs(up)["rollout"]["step"] == 2
    assert up.observed(ENDPOINT) == {"1.0.0": 50, "1.1.0": 50}


def test_an_update_that_follows_anything_else_is_refused_and_touches_nothing(up: Sandbox) -> None:
    routes = (up.node.router / "routes.json").read_text()
    before = outputs(up)
    follows = {"weights": {"1.0.0": 95, "1.1.0": 5}, "driver": "b"}
    write(up, {"1.0.0": 90, "1.1.0": 10}, rollout("b", 1, follows=follows))

    outcome = up.lepton("deploy", ENDPOINT)

    assert outcome.status == 1
    assert (
        f"Pulumi.dev.{MODEL}.yaml: lepton:rollout.follows: the stack was changed meanwhile: it has 1.0.0=100 1.1.0=0 "
        "by no rollout, and this update by driver b follows 1.0.0=95 1.1.0=5 by driver b" in outcome.err
    ), outcome
    assert (up.node.router / "routes.json").read_text() == routes
    assert outputs(up) == before


@pytest.fixture(scope="module")
def shifter(project: Sandbox) -> Shifter:
    outcome = project.pulumi("stack", "output", "--json", "--stack", "dev", team="lepton")
    platform: PlatformExports = json.loads(outcome.out)
    return shifter_of(platform)


def test_a_stack_follows_weights_that_were_shifted_before_it(up: Sandbox, shifter: Shifter) -> None:
    weights = {"1.0.0": 20, "1.1.0": 80}
    shifter.shift(TEAM, MODEL, weights)
    assert up.observed(ENDPOINT) == weights

    up.write_endpoint(MODEL, weights)
    assert pulumi_up(up).status == 0

    assert up.observed(ENDPOINT) == weights
    assert outputs(up)["weights"] == weights
    assert "nothing changed" in up.must("deploy", ENDPOINT).out, "a refresh finds no difference"


def test_a_shift_that_no_stack_follows_is_drift_and_the_next_deploy_takes_it_back(
    up: Sandbox, shifter: Shifter
) -> None:
    shifter.shift(TEAM, MODEL, {"1.0.0": 20, "1.1.0": 80})
    assert "1 updated" in up.must("deploy", ENDPOINT).out
    assert up.observed(ENDPOINT) == {"1.0.0": 100, "1.1.0": 0}


def test_a_variant_without_weight_is_warmed_up_by_its_packages_samples(
    up: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("PULUMI_", "LEPTON_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", up.environment["PATH"])
    project = Project(up.root)
    endpoint = project.stack(ENDPOINT)

    assert warm_up(Releases(project), project, endpoint, "1.1.0").requests == 10

    up.write_version(MODEL, "1.1.0", warm_up=0)
    assert warm_up(Releases(project), project, endpoint, "1.1.0") == Warmed(0, 0.0)
