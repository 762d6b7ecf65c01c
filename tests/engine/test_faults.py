"""Faults that are really caused, and what is left of them after the next command."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import psutil

from infra.single_node.machine.supervisor import Supervisor
from tests.engine.sandbox import TEAM, Sandbox, names


def kill_pulumi(project: Sandbox, lepton_pid: int) -> None:
    """kill -9 of the `pulumi` that a `lepton` runs, as soon as it holds the stack's lock."""

    def updating() -> psutil.Process | None:
        children = psutil.Process(lepton_pid).children(recursive=True)
        return next((child for child in children if child.name() == "pulumi" and "up" in child.cmdline()), None)

    process = project.wait_until(updating, 30, "pulumi up")
    project.wait_until(project.locks, 30, "the lock")
    process.send_signal(signal.SIGKILL)


def test_an_update_killed_in_the_middle_is_completed_by_the_next_call(project: Sandbox) -> None:
    address = project.write_version("killed", "1.0.0", "--ready-after", "8s")
    first = project.start("lepton", "deploy", address)
    project.wait_until(lambda: project.server_pids("killed", "1.0.0"), 60, "the server's start")
    kill_pulumi(project, first.pid)
    assert project.finish(first).status == 1

    second = project.must("deploy", address)

    assert "was killed; clearing its lock" in second.err
    assert len(project.server_pids("killed", "1.0.0")) == 1
    # The engine doesn't wait for its language host's end; one that was left alone stays for minutes.
    project.wait_until(lambda: not project.leftovers(), 20, "the end of Pulumi's processes")
    assert "nothing changed" in project.must("deploy", address).out


def test_what_a_killed_update_made_is_destroyed_by_down(own_project: Sandbox) -> None:
    project = own_project
    project.must("up", "dev", "--requests", "0")
    address = project.write_version("orphan", "1.0.0", "--ready-after", "8s")
    first = project.start("lepton", "deploy", address)
    project.wait_until(lambda: project.server_pids("orphan", "1.0.0"), 60, "the server's start")
    kill_pulumi(project, first.pid)
    project.finish(first)

    project.must("down", "dev")

    assert names(project.processes()) == []
    # The engine doesn't wait for its language host's end; one that was left alone stays for minutes.
    project.wait_until(lambda: not project.leftovers(), 20, "the end of Pulumi's processes")


def test_a_weight_change_killed_in_the_middle_is_completed_by_the_next(project: Sandbox) -> None:
    for version in ("1.0.0", "2.0.0"):
        project.must("deploy", project.write_version("shift", version))
    endpoint = project.write_endpoint("shift", {"1.0.0": 1, "2.0.0": 0})
    project.must("deploy", endpoint)
    first = project.start("lepton", "traffic", "set", endpoint, "1.0.0=0", "2.0.0=1")
    kill_pulumi(project, first.pid)
    assert project.finish(first).status == 1

    second = project.must("traffic", "set", endpoint, "1.0.0=40", "2.0.0=60")

    assert "was killed; clearing its lock" in second.err
    assert project.observed(endpoint) == {"1.0.0": 40, "2.0.0": 60}


def test_a_running_update_is_not_disturbed(project: Sandbox) -> None:
    address = project.write_version("busy", "1.0.0", "--ready-after", "12s")
    project.pulumi("stack", "init", "dev.busy-1.0.0")
    first = project.start_pulumi("up", "--yes", "--skip-preview", "--stack", "dev.busy-1.0.0")
    try:
        project.wait_until(lambda: project.server_pids("busy", "1.0.0"), 60, "the server's start")
        second = project.lepton("deploy", address)
    finally:
        outcome = project.finish(first)

    assert second.status == 1
    assert "locked by an update of" in second.err
    assert outcome.status == 0


def test_an_interrupted_weight_change_leaves_config_and_data_plane_in_agreement(project: Sandbox) -> None:
    project.must("deploy", project.write_version("interrupted", "1.0.0"))
    project.must("deploy", project.write_version("interrupted", "2.0.0"))
    endpoint = project.write_endpoint("interrupted", {"1.0.0": 90, "2.0.0": 10})
    project.must("deploy", endpoint)
    running = project.start("lepton", "traffic", "set", endpoint, "1.0.0=10", "2.0.0=90", new_session=True)
    project.wait_until(lambda: project.locks("interrupted"), 30, "the update's start")

    os.killpg(running.pid, signal.SIGINT)
    outcome = project.finish(running)

    assert "Traceback" not in outcome.err, outcome
    assert "interrupted: waiting for Pulumi" in outcome.err
    # Pulumi takes the lock before it minds interrupts: one that comes in between leaves the lock, for this to clear.
    project.must("deploy", endpoint)
    assert project.locks("interrupted") == []
    expected = {"1.0.0": 10, "2.0.0": 90} if outcome.status == 0 else {"1.0.0": 90, "2.0.0": 10}
    assert project.observed(endpoint) == expected


def test_a_changed_artifact_is_refused_before_anything_starts(project: Sandbox) -> None:
    address = project.write_version("tampered", "1.0.0")
    weights = next(
        blob for blob in (project.store.path / "blobs/sha256").iterdir() if b"tampered 1.0.0" in _bytes(blob)
    )
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")

    outcome = project.lepton("deploy", address)

    assert outcome.status == 1
    assert weights.name in outcome.err, outcome
    assert project.server_pids("tampered", "1.0.0") == []
    assert not list(project.node.programs.glob("diagnostics.tampered-*"))


def test_a_version_that_never_gets_ready_fails_in_bounded_time_and_changes_nothing_else(project: Sandbox) -> None:
    project.must("deploy", project.write_version("stuck", "1.0.0"))
    endpoint = project.write_endpoint("stuck", {"1.0.0": 1})
    project.must("deploy", endpoint)
    before = project.status(endpoint)
    bad = project.write_version("stuck", "1.1.0", "--never-ready", ready_timeout="3s")
    started = time.monotonic()

    outcome = project.lepton("deploy", bad)

    assert outcome.status == 1
    assert time.monotonic() - started < 30
    assert "was not ready within 3 s" in outcome.err
    assert "listening" in outcome.err, "the server's last log lines"
    assert project.server_pids("stuck", "1.1.0") == []
    assert project.status(endpoint) == before


def test_weight_for_a_version_that_is_not_deployed_is_refused(project: Sandbox) -> None:
    project.must("deploy", project.write_version("absent", "1.0.0"))
    endpoint = project.write_endpoint("absent", {"1.0.0": 1})
    project.must("deploy", endpoint)
    project.write_version("absent", "2.0.0")

    outcome = project.lepton("traffic", "set", endpoint, "2.0.0=1")

    assert outcome.status == 1
    assert "2.0.0" in outcome.err
    assert "lepton deploy diagnostics/dev.absent-2.0.0" in outcome.err
    assert project.status(endpoint)["observed_weights"] == {"1.0.0": 1}
    assert "2.0.0" not in project.config("dev.absent").read_text()


def test_a_dead_version_can_not_gain_weight(project: Sandbox) -> None:
    for version in ("1.0.0", "2.0.0"):
        project.must("deploy", project.write_version("dead", version))
    endpoint = project.write_endpoint("dead", {"1.0.0": 1, "2.0.0": 0})
    project.must("deploy", endpoint)
    program = next(project.node.programs.glob("diagnostics.dead-2.0.0_*.conf")).stem
    Supervisor(project.node)._call("stopProcess", program)
    project.wait_until(lambda: project.status(endpoint)["ready"]["2.0.0"] == 0, 20, "the router seeing it dead")

    outcome = project.lepton("traffic", "set", endpoint, "2.0.0=1")

    assert outcome.status == 1
    assert "no healthy replica" in outcome.err
    assert project.status(endpoint)["observed_weights"] == {"1.0.0": 1, "2.0.0": 0}


def test_up_repairs_a_server_that_was_stopped_by_hand(project: Sandbox) -> None:
    address = project.write_version("stopped", "1.0.0")
    project.must("deploy", address)
    program = next(project.node.programs.glob("diagnostics.stopped-1.0.0_*.conf")).stem
    Supervisor(project.node)._call("stopProcess", program)

    outcome = project.must("deploy", address)

    assert "1 updated" in outcome.out
    assert len(project.server_pids("stopped", "1.0.0")) == 1


def test_refresh_finds_weights_that_were_changed_by_hand(project: Sandbox) -> None:
    for version in ("1.0.0", "2.0.0"):
        project.must("deploy", project.write_version("edited", version))
    endpoint = project.write_endpoint("edited", {"1.0.0": 90, "2.0.0": 10})
    project.must("deploy", endpoint)
    live = project.node.router / "routes.json"
    edited = live.with_suffix(".new")
    document = (
        live.read_text().replace('"weight": 90', '"weight": 5').replace('"version_info": "', '"version_info": "x')
    )
    edited.write_text(document)
    edited.replace(live)
    project.wait_until(lambda: project.status(endpoint)["observed_weights"]["1.0.0"] == 5, 10, "the edit's effect")

    preview = project.pulumi("preview", "--refresh", "--stack", "dev.edited", "--json")
    assert json.loads(preview.out)["changeSummary"].get("update") == 1
    project.must("deploy", endpoint)

    assert project.status(endpoint)["observed_weights"] == {"1.0.0": 90, "2.0.0": 10}


def test_a_killed_prometheus_comes_back(project: Sandbox) -> None:
    supervisor = Supervisor(project.node)
    before = supervisor.pid("prometheus")
    assert before
    psutil.Process(before).kill()

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{project.metrics_port}/-/ready", timeout=1) as answer:
                return answer.status == 200 and supervisor.pid("prometheus") != before
        except OSError:
            return False

    project.wait_until(answers, 20, "Prometheus's return")


def test_a_secret_stays_out_of_state_logs_and_names(project: Sandbox) -> None:
    address = project.write_version("secret", "1.0.0", env={"TOKEN": "placeholder"})
    project.pulumi("stack", "init", "dev.secret-1.0.0")
    arguments = ["config", "set", "--secret", "--path", "lepton:version.env.TOKEN", "hunter2-very-secret"]
    assert project.pulumi(*arguments, "--stack", "dev.secret-1.0.0").status == 0
    outcome = project.must("deploy", address)
    (pid,) = project.server_pids("secret", "1.0.0")
    assert psutil.Process(pid).environ()["TOKEN"] == "hunter2-very-secret"
    assert "hunter2" not in outcome.out + outcome.err
    holding = [path for path in project.root.rglob("*") if path.is_file() and b"hunter2" in _bytes(path)]
    assert all(path.stat().st_mode & 0o077 == 0 and path.parent == project.node.programs for path in holding), holding


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def test_an_empty_lock_that_a_full_disk_left_hinders_nobody(project: Sandbox) -> None:
    address = project.write_version("torn", "1.0.0")
    project.must("deploy", address)
    folder = project.root / ".state" / "backend" / ".pulumi" / "locks" / "organization" / TEAM / "dev.torn-1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "0190.json.1.tmp"
    lock.touch()
    os.utime(lock, (0, 0))
    outcome = project.must("deploy", address)
    assert f"a full disk left an empty lock; removing {lock.name}" in outcome.err
    assert not lock.exists()
