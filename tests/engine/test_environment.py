"""Whole environments, up and down, and what stands in their way."""

from __future__ import annotations

import urllib.request

import psutil
import pytest

from infra.single_node.machine.claims import ports_of
from tests.engine.sandbox import TEAM, Sandbox, listening, names


def test_a_broken_version_keeps_only_its_own_endpoint_from_coming_up(own_project: Sandbox) -> None:
    project = own_project
    project.write_version("bad", "1.0.0", "--never-ready", ready_timeout="2s")
    project.write_version("good", "1.0.0")
    bad, good = (project.write_endpoint(model, {"1.0.0": 1}) for model in ("bad", "good"))

    outcome = project.lepton("up", "dev", "--requests", "0")

    assert outcome.status == 1
    assert f"{bad}: not tried, for {TEAM}/dev.bad-1.0.0" in outcome.err
    assert project.observed(good) == {"1.0.0": 1}
    listed = project.must("package", "list", "--environment", "dev", "--json").json
    assert [summary["model"] for summary in listed] == ["good"]


def test_up_fails_where_requests_fail(own_project: Sandbox) -> None:
    project = own_project
    project.write_version("sick", "1.0.0")
    endpoint = project.write_endpoint("sick", {"1.0.0": 1})
    project.must("up", "dev", "--requests", "5")
    (program,) = project.node.programs.glob("diagnostics.sick-1.0.0_*.conf")
    port = ports_of(project.node, program.stem)["http"]
    faults = urllib.request.Request(
        f"http://127.0.0.1:{port}/faults", data=b'{"error_ratio": 1}', headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(faults, timeout=5):
        pass

    outcome = project.lepton("up", "dev", "--requests", "20")

    assert outcome.status == 1
    assert f"{endpoint}: of 20 requests failed 20: 20 with 500" in outcome.err


def test_down_names_a_stack_whose_config_is_gone_and_touches_nothing(own_project: Sandbox) -> None:
    project = own_project
    address = project.write_version("lost", "1.0.0")
    project.must("up", "dev", "--requests", "0")
    content = project.config("dev.lost-1.0.0").read_text()
    project.config("dev.lost-1.0.0").unlink()

    outcome = project.lepton("down", "dev")

    assert outcome.status == 1
    assert f"{address}: no config file any more, and still resources" in outcome.err
    assert len(project.server_pids("lost", "1.0.0")) == 1
    project.config("dev.lost-1.0.0").write_text(content)
    project.must("down", "dev")


def test_a_wrong_passphrase_is_told_with_what_to_do(own_project: Sandbox) -> None:
    project = own_project
    project.must("up", "dev", "--requests", "0")
    outcome = project.run("lepton", "up", "dev", env=project.environment | {"PULUMI_CONFIG_PASSPHRASE": "wrong"})
    assert outcome.status == 1
    assert "PULUMI_CONFIG_PASSPHRASE is not the one" in outcome.err, outcome


def test_after_a_reboot_up_brings_everything_back(own_project: Sandbox) -> None:
    project = own_project
    project.write_version("reboot", "1.0.0")
    endpoint = project.write_endpoint("reboot", {"1.0.0": 1})
    project.must("up", "dev", "--requests", "0")
    processes = project.processes()
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)

    project.must("up", "dev", "--requests", "10")

    assert project.status(endpoint)["ready"] == {"1.0.0": 1}


def test_the_guard_comes_back_after_kill_9_with_what_it_needs_and_goes_where_it_is_not_wanted(
    own_project: Sandbox,
) -> None:
    project = own_project
    secret = "hunter2-very-secret"
    up = project.run("lepton", "up", "dev", env=project.environment | {"PULUMI_CONFIG_PASSPHRASE": secret})
    assert up.status == 0, up
    (first,) = guards(project)

    first.kill()
    second = project.wait_until(lambda: [g for g in guards(project) if g.pid != first.pid], 20, "another guard")[0]

    assert second.environ()["PULUMI_CONFIG_PASSPHRASE"] == secret
    files = [path for path in project.root.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    file = project.config("dev", "platform")
    file.write_text(file.read_text().replace("mode: single-node", "mode: single-node\n    guard: false"))
    again = project.run("lepton", "up", "dev", env=project.environment | {"PULUMI_CONFIG_PASSPHRASE": secret})
    assert "1 deleted" in again.err, again
    assert guards(project) == []


def guards(project: Sandbox) -> list[psutil.Process]:
    return [process for process in project.processes() if " guard dev " in " ".join(process.cmdline())]


@pytest.mark.parametrize("key", ["node.port", "monitoring.port"])
def test_a_taken_port_is_an_error_before_anything_is_touched(own_project: Sandbox, key: str) -> None:
    project = own_project
    port = project.port if key == "node.port" else project.metrics_port
    with listening(port):
        outcome = project.lepton("up", "dev")
    assert outcome.status == 1
    assert f"lepton:platform.{key}: given {port}" in outcome.err, outcome
    assert "python" in outcome.err, "who holds it"


def test_down_leaves_no_process_and_no_port(own_project: Sandbox) -> None:
    project = own_project
    project.write_version("gone", "1.0.0")
    project.write_endpoint("gone", {"1.0.0": 1})
    project.must("up", "dev", "--requests", "5")
    ports = [project.port, project.metrics_port]

    project.must("down", "dev")

    assert names(project.processes()) == []
    for port in ports:
        with listening(port):
            pass


def test_gpus_that_are_not_free_are_refused_with_their_holders(own_project: Sandbox) -> None:
    project = own_project
    project.write_node(gpus=["0", "1"])
    project.must("up", "dev", "--requests", "0")
    project.must("deploy", project.write_version("gpu", "1.0.0", resources={"gpu": 2}))

    outcome = project.lepton("deploy", project.write_version("gpu", "1.1.0", resources={"gpu": 1}))

    assert outcome.status == 1
    assert "GPU 0 by diagnostics.gpu-1.0.0" in outcome.err
    (pid,) = project.server_pids("gpu", "1.0.0")
    assert psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] == "0,1"
