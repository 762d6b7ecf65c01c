"""`lepton rollout plan` on a real node: what it says, and that it touches nothing."""

from __future__ import annotations

import urllib.request
from typing import Any

import psutil
import pytest

from tests.engine.sandbox import TEAM, Sandbox


@pytest.fixture(scope="module")
def endpoint(project: Sandbox) -> str:
    """`scan` 1.0.0 with all traffic; 1.1.0 is written, and not deployed."""
    project.must("deploy", project.write_version("scan", "1.0.0"))
    project.write_version("scan", "1.1.0")
    address = project.write_endpoint("scan", {"1.0.0": 1})
    project.must("deploy", address)
    return address


def plan(project: Sandbox, endpoint: str, *arguments: str) -> Any:
    return project.must("rollout", "plan", endpoint, *arguments, "--json").json


def test_a_plan_has_the_shape_that_scripts_rely_on(project: Sandbox, endpoint: str) -> None:
    found = plan(project, endpoint, "--to", "1.1.0", "--strategy", "canary", "--steps", "5,20,100", "--bake", "30s")
    assert [step["weights"] for step in found["steps"]] == [
        {"1.0.0": 95, "1.1.0": 5},
        {"1.0.0": 80, "1.1.0": 20},
        {"1.0.0": 0, "1.1.0": 100},
    ]
    assert {step["bake_seconds"] for step in found["steps"]} == {30.0}
    assert found["fits"] is True
    assert found["seconds"]["shortest"] >= 90


def test_a_plan_is_a_table_for_people_and_touches_nothing(project: Sandbox, endpoint: str) -> None:
    before = project.config("dev.scan").read_text(), project.status(endpoint)
    shown = project.must("rollout", "plan", endpoint, "--to", "1.0.0=50", "--to", "1.1.0=50", "--strategy", "ab").out
    assert "1.0.0=50 1.1.0=50" in shown
    assert "It fits." in shown
    assert (project.config("dev.scan").read_text(), project.status(endpoint)) == before
    assert project.server_pids("scan", "1.1.0") == []


def test_a_plan_says_how_long_gates_take_at_the_rate_of_now(project: Sandbox, endpoint: str) -> None:
    def planned_under_load() -> Any:
        for _ in range(20):
            with urllib.request.urlopen(f"{project.url}/{TEAM}/scan/v2/health/live", timeout=5):
                pass
        found = plan(project, endpoint, "--to", "1.1.0", "--steps", "50,100", "--bake", "1s", "--max-bake", "2s")
        return found if found["requests_per_second"] else None

    found = project.wait_until(planned_under_load, 40, "a rate of requests")
    need = found["gates"][0]
    assert need["seconds"] == pytest.approx(need["samples"] / (found["requests_per_second"] * 0.5))
    # The stand-in gets a few requests a second, and two seconds are too short for any gate.
    assert need["within"] is False
    assert any("step 1 (50 %): gate error-ratio needs" in warning for warning in found["warnings"])


def test_a_plan_that_does_not_fit_names_the_strategy_that_would(project: Sandbox) -> None:
    third = f"{psutil.virtual_memory().total * 3 // 10 // 2**20}Mi"
    for version in ("1.0.0", "2.0.0"):
        project.write_version("large", version, replicas=2, resources={"memory": third})
    project.must("deploy", f"{TEAM}/dev.large-1.0.0")
    endpoint = project.write_endpoint("large", {"1.0.0": 1})
    project.must("deploy", endpoint)
    outcome = project.lepton("rollout", "plan", endpoint, "--to", "2.0.0", "--strategy", "blue-green", "--json")
    assert outcome.status == 1, outcome
    found = outcome.json
    assert found["fits"] is False
    assert found["lacking"].keys() == {"memory"}
    assert found["peak"]["needed"]["memory"] - found["peak"]["total"]["memory"] == found["lacking"]["memory"]
    # One replica of either side at a time.
    assert found["would_fit"] == ["rolling", "rolling with max_surge 0 and max_unavailable 1"]
    assert plan(project, endpoint, "--to", "2.0.0", "--strategy", "rolling")["fits"] is True


def test_a_version_without_a_config_is_refused_before_anything_is_looked_at(project: Sandbox, endpoint: str) -> None:
    outcome = project.lepton("rollout", "plan", endpoint, "--to", "7.0.0")
    assert outcome.status == 1
    assert "that version of scan has no stack in dev; write Pulumi.dev.scan-7.0.0.yaml" in outcome.err
