"""Versions deployed, traffic moved and taken back, through the real engine and on the real data plane."""

from __future__ import annotations

import json
import shutil
import urllib.request

import pytest

from tests.engine.sandbox import TEAM, Sandbox


@pytest.fixture(scope="module")
def endpoint(project: Sandbox) -> str:
    """Two versions of `scan` behind an endpoint, 90 to 10."""
    for version in ("1.0.0", "1.1.0"):
        project.write_version("scan", version)
    address = project.write_endpoint("scan", {"1.0.0": 90, "1.1.0": 10})
    project.must("up", "dev", "--requests", "20")
    return address


def test_status_has_the_shape_that_scripts_rely_on(project: Sandbox, endpoint: str) -> None:
    project.must("traffic", "set", endpoint, "1.0.0=90", "1.1.0=10")
    status = project.status(endpoint)
    assert status["url"] == f"{project.url}/{TEAM}/scan"
    assert status["weights"] == status["observed_weights"] == {"1.0.0": 90, "1.1.0": 10}
    assert status["ready"] == {"1.0.0": 1, "1.1.0": 1}
    assert status["revision"] >= 1


def test_up_again_changes_nothing_and_says_so(project: Sandbox, endpoint: str) -> None:
    before = project.status(endpoint)["revision"]
    again = project.must("up", "dev", "--requests", "0")
    assert "nothing changed" in again.out
    assert project.status(endpoint)["revision"] == before


def test_up_reports_the_split_that_it_measured(project: Sandbox, endpoint: str) -> None:
    project.must("traffic", "set", endpoint, "1.0.0=1", "1.1.0=0")
    report = project.must("up", "dev", "--requests", "50", "--json").json
    (found,) = [item for item in report["endpoints"] if item["endpoint"] == endpoint]
    assert found["split"]["versions"] == {"1.0.0": 50}
    assert found["split"]["failures"] == {}


def test_traffic_set_moves_the_data_plane(project: Sandbox, endpoint: str) -> None:
    project.must("traffic", "set", endpoint, "1.0.0=0", "1.1.0=1")
    with urllib.request.urlopen(f"{project.url}/{TEAM}/scan/v2/health/live", timeout=5) as answer:
        assert answer.headers["x-model-version"] == "1.1.0"


def test_a_weight_change_touches_no_server(project: Sandbox, endpoint: str) -> None:
    before = project.server_pids("scan", "1.0.0") + project.server_pids("scan", "1.1.0")
    project.must("traffic", "set", endpoint, "1.0.0=30", "1.1.0=70")
    assert project.server_pids("scan", "1.0.0") + project.server_pids("scan", "1.1.0") == before


def test_rollback_restores_the_previous_weights(project: Sandbox, endpoint: str) -> None:
    project.must("traffic", "set", endpoint, "1.0.0=80", "1.1.0=20")
    project.must("traffic", "set", endpoint, "1.0.0=0", "1.1.0=100")
    result = project.must("rollback", endpoint, "--json").json
    assert result["weights"] == {"1.0.0": 80, "1.1.0": 20}
    assert project.status(endpoint)["observed_weights"] == {"1.0.0": 80, "1.1.0": 20}
    assert "weight: 80" in project.config("dev.scan").read_text()


def test_rollback_goes_to_a_revision_by_its_number(project: Sandbox, endpoint: str) -> None:
    for weight in (61, 62, 63):
        project.must("traffic", "set", endpoint, f"1.0.0={weight}")
    history = project.must("history", endpoint, "--json").json
    (wanted,) = [entry["revision"] for entry in history if entry["weights"]["1.0.0"] == 61]
    project.must("rollback", endpoint, "--to-revision", str(wanted))
    assert project.status(endpoint)["observed_weights"]["1.0.0"] == 61


def test_history_tells_what_each_revision_was_for(project: Sandbox, endpoint: str) -> None:
    project.must("traffic", "set", endpoint, "1.0.0=17", "1.1.0=83")
    last = project.must("history", endpoint, "--json").json[-1]
    assert last["weights"] == {"1.0.0": 17, "1.1.0": 83}
    assert last["message"] == "traffic set 1.0.0=17 1.1.0=83"


def test_pulumi_up_by_hand_does_the_same_work(project: Sandbox, endpoint: str) -> None:
    project.write_endpoint("scan", {"1.0.0": 41, "1.1.0": 59})
    outcome = project.pulumi("up", "--yes", "--stack", "dev.scan")
    assert outcome.status == 0, outcome
    assert project.status(endpoint)["observed_weights"] == {"1.0.0": 41, "1.1.0": 59}


def test_comments_in_a_config_survive_a_weight_change(project: Sandbox, endpoint: str) -> None:
    project.must("traffic", "set", endpoint, "1.0.0=50", "1.1.0=50")
    file = project.config("dev.scan")
    file.write_text(file.read_text().replace("model: scan", "model: scan # owned by radiology"))
    project.must("traffic", "set", endpoint, "1.0.0=51")
    assert "# owned by radiology" in file.read_text()


def test_a_version_in_use_is_not_taken_away(project: Sandbox, endpoint: str) -> None:
    project.must("traffic", "set", endpoint, "1.0.0=1", "1.1.0=1")
    outcome = project.pulumi("destroy", "--yes", "--stack", "dev.scan-1.1.0")
    assert outcome.status != 0
    assert "still a variant of diagnostics.scan" in outcome.out + outcome.err
    assert project.status(endpoint)["ready"] == {"1.0.0": 1, "1.1.0": 1}


def test_revisions_keep_their_numbers_however_long_the_history_is(project: Sandbox) -> None:
    project.must("deploy", project.write_version("long", "1.0.0"))
    endpoint = project.write_endpoint("long", {"1.0.0": 7})
    project.must("deploy", endpoint)
    # As a backend of many months has them: updates that changed nothing. One is real, the others its copies.
    assert project.pulumi("up", "--yes", "--skip-preview", "--stack", "dev.long").status == 0
    history = project.root / ".state" / "backend" / ".pulumi" / "history" / TEAM / "dev.long"
    latest = max(history.glob("*.history.json"))
    name, moment = latest.name.removesuffix(".history.json").rsplit("-", 1)
    for number in range(1, 11):
        shutil.copy(latest, history / f"{name}-{int(moment) + number}.history.json")
    project.must("traffic", "set", endpoint, "1.0.0=8")
    result = project.must("rollback", endpoint, "--json").json
    assert (result["restored"], result["weights"]) == (1, {"1.0.0": 7})


def test_of_two_changes_at_once_one_is_refused_and_the_other_is_whole(project: Sandbox, endpoint: str) -> None:
    project.must("traffic", "set", endpoint, "1.0.0=1", "1.1.0=1")
    commands = {(71, 29), (33, 67)}
    running = {
        weights: project.start("lepton", "traffic", "set", endpoint, f"1.0.0={weights[0]}", f"1.1.0={weights[1]}")
        for weights in commands
    }
    outcomes = {weights: project.finish(process) for weights, process in running.items()}
    (done,) = [weights for weights, outcome in outcomes.items() if outcome.status == 0]
    (refused,) = commands - {done}
    assert "another lepton on this machine is changing it" in outcomes[refused].err
    assert project.observed(endpoint) == {"1.0.0": done[0], "1.1.0": done[1]}
    assert f"weight: {done[0]}" in project.config("dev.scan").read_text()


def test_a_variant_is_dropped(project: Sandbox) -> None:
    for version in ("1.0.0", "2.0.0"):
        project.must("deploy", project.write_version("drop", version))
    endpoint = project.write_endpoint("drop", {"1.0.0": 1, "2.0.0": 1})
    project.must("deploy", endpoint)
    project.must("traffic", "set", endpoint, "--drop", "2.0.0")
    assert project.observed(endpoint) == {"1.0.0": 1}


def test_a_preview_of_a_new_version_touches_nothing(project: Sandbox) -> None:
    project.write_version("preview", "1.0.0")
    project.pulumi("stack", "init", "dev.preview-1.0.0")
    outcome = project.pulumi("preview", "--stack", "dev.preview-1.0.0", "--json")
    project.config("dev.preview-1.0.0").unlink()
    assert outcome.status == 0, outcome
    assert json.loads(outcome.out)["changeSummary"]["create"] > 0
    assert project.server_pids("preview", "1.0.0") == []
