"""What keeps the node's programs running, and brings them back after its own death."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.single_node.machine import supervisor as supervisor_module
from infra.single_node.machine.claims import is_port_free
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.program import Program
from infra.single_node.machine.supervisor import Supervisor, belongs_to, handed_on
from infra.single_node.platform import NodeSupervisor
from tests.deadline import until
from tests.single_node.running_node import RunningNode, new_model


def forever(name: str, **env: str) -> Program:
    return Program(name, ["sleep", "4321"], env, stop_seconds=1)


def running(node: RunningNode, name: str) -> int:
    """The program's process id, once it runs."""
    return until(lambda: node.supervisor.state(name) in {"STARTING", "RUNNING"} and node.supervisor.pid(name)) or 0


def test_a_killed_program_is_started_again(node: RunningNode, model: str) -> None:
    node.supervisor.put(forever(model))
    first = running(node, model)
    node.kill(model)
    until(lambda: node.supervisor.pid(model) not in {None, first})
    node.supervisor.remove(model)


def test_the_same_program_put_again_is_left_running(node: RunningNode, model: str) -> None:
    for _ in range(2):
        node.supervisor.put(forever(model))
    first = running(node, model)
    node.supervisor.put(forever(model))
    assert node.supervisor.pid(model) == first
    node.supervisor.remove(model)


def test_a_changed_program_is_restarted(node: RunningNode, model: str) -> None:
    node.supervisor.put(forever(model))
    first = running(node, model)
    node.supervisor.put(forever(model, CHANGED="yes"))
    second = running(node, model)
    assert second != first
    assert not psutil.pid_exists(first)
    node.supervisor.remove(model)


def test_a_program_that_was_stopped_by_hand_is_started_by_the_next_put(node: RunningNode, model: str) -> None:
    node.supervisor.put(forever(model))
    running(node, model)
    node.supervisor._call("stopProcess", model)
    node.supervisor.put(forever(model))
    assert running(node, model)
    node.supervisor.remove(model)


def test_a_program_that_ignores_sigterm_is_killed_after_its_time(node: RunningNode, model: str) -> None:
    deaf = [
        sys.executable,
        "-c",
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)",
    ]
    node.supervisor.put(Program(model, deaf, env={"PYTHONUNBUFFERED": "1"}, stop_seconds=1))
    pid = running(node, model)
    until(lambda: "deaf" in node.supervisor.log_tail(model))
    node.supervisor.remove(model)
    assert not psutil.pid_exists(pid)


def test_arguments_and_environment_arrive_as_they_are(node: RunningNode, model: str) -> None:
    odd = "a b'c\"d%(x)s%%$HOME;\\n, é\nnew line"
    script = "import os, sys, json; print(json.dumps([sys.argv[1], os.environ['ODD']])); import time; time.sleep(600)"
    node.supervisor.put(Program(model, [sys.executable, "-uc", script, odd], env={"ODD": odd}))
    line = until(lambda: node.supervisor.log_tail(model))
    assert json.loads(line) == [odd, odd]
    node.supervisor.remove(model)


def test_a_program_that_inherits_has_its_starters_secrets_and_no_file_has_them(
    own_node: RunningNode, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_node.supervisor.stop()
    secret = "hunter2-very-secret"
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", secret)
    monkeypatch.setenv("WEBHOOK", secret)
    own_node.supervisor.start()
    own_node.supervisor.put(Program(model, ["/bin/sleep", "600"], inherits=True))
    own_node.supervisor.put(Program(f"{model}-other", ["/bin/sleep", "600"]))

    pid = running(own_node, model)
    for _ in range(2):
        found = psutil.Process(pid).environ()
        assert found["PULUMI_CONFIG_PASSPHRASE"] == found["WEBHOOK"] == secret
        # And it is started again with them.
        own_node.kill(model)
        before = pid
        pid = until(lambda before=before: (now := running(own_node, model)) != before and now)
    assert secret not in psutil.Process(running(own_node, f"{model}-other")).environ().values()
    files = [path for path in own_node.node.directory.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_what_an_update_tells_its_own_processes_is_not_handed_on() -> None:
    users = {
        "PULUMI_BACKEND_URL": "s3://bucket",
        "PULUMI_CONFIG_PASSPHRASE": "x",
        "AWS_PROFILE": "y",
        "LEPTON_REGISTRY_PASSWORD": "z",
        "LEPTON_CATALOGUE": "postgresql://",
    }
    updates = {
        "PULUMI_CONFIG": "{}",
        "PULUMI_LOG_OTLP_ENDPOINT": "localhost:1",
        "LEPTON_STACK": "/srv/stacks/platform/Pulumi.dev.yaml",
        "LEPTON_KEY_PASSWORD": "k",
        "LEPTON_PROGRAM": "another",
    }
    assert handed_on(users | updates) == users


def test_what_a_program_started_outlives_it_only_where_it_says_so(
    node: RunningNode, model: str, tmp_path: Path
) -> None:
    script = "setsid sleep 600 & echo $! > {}; wait"
    files = {True: tmp_path / "left", False: tmp_path / "ended"}
    children: dict[bool, psutil.Process] = {}
    for leaves, file in files.items():
        command = ["/bin/bash", "-c", script.format(file)]
        node.supervisor.put(Program(f"{model}-{leaves}".lower(), command, leaves_children=leaves))
        children[leaves] = psutil.Process(int(until(lambda file=file: file.exists() and file.read_text())))
    for leaves, file in files.items():
        file.unlink()
        node.kill(f"{model}-{leaves}".lower())
        until(lambda file=file: file.exists() and file.read_text(), what="it is started again")
    assert children[True].is_running()
    assert not children[False].is_running()

    for leaves in files:
        node.supervisor.remove(f"{model}-{leaves}".lower())
    assert belongs_to(children[True], node.node), "it ends with the node"
    children[True].kill()


def test_starting_a_supervisor_that_runs_changes_nothing(node: RunningNode) -> None:
    before = node.supervisor._call("getPID")
    Supervisor(node.node).start()
    assert node.supervisor._call("getPID") == before


def test_after_a_supervisors_death_the_next_start_ends_the_strays_and_brings_all_back(own_node: RunningNode) -> None:
    model = new_model()
    replica = own_node.serve(model, "1.0.0")["1.0.0"][0]
    own_node.route(model, {"1.0.0": 1})
    before = {process.pid for process in own_node.processes()}
    supervisord = psutil.Process(own_node.supervisor._call("getPID"))
    supervisord.kill()
    supervisord.wait(10)
    assert not own_node.supervisor.is_running()
    assert own_node.count(model, 10) == {"1.0.0": 10}, "what runs goes on without a supervisor"
    Supervisor(own_node.node).start()
    until(lambda: own_node.router.is_live() and own_node.healthy(model, "1.0.0") == 1, what="all is back")
    assert own_node.count(model, 10) == {"1.0.0": 10}
    assert own_node.servers().ready_replicas("tests", model, "1.0.0", "/v2/health/ready") == 1
    after = {process.pid for process in own_node.processes()}
    assert not before & after
    assert own_node.supervisor.pid(replica.name) in after


def test_a_stopped_node_has_no_process_and_no_socket_left(own_node: RunningNode) -> None:
    own_node.serve(new_model(), "1.0.0")
    assert own_node.processes()
    own_node.supervisor.stop()
    assert own_node.processes() == []
    assert not own_node.supervisor.is_running()
    assert is_port_free(own_node.port)
    own_node.supervisor.stop()


def test_stopping_many_programs_takes_no_longer_than_stopping_one(own_node: RunningNode) -> None:
    deaf = ["sh", "-c", "trap '' TERM; exec sleep 4321"]
    for _ in range(8):
        own_node.supervisor.put(Program(new_model(), deaf, stop_seconds=2))
    until(lambda: len([p for p in own_node.processes() if p.name() == "sleep"]) == 8)
    began = time.monotonic()
    own_node.supervisor.stop()
    assert time.monotonic() - began < 12, "one after the other they take 16 s at least"


def test_a_stopped_node_starts_again_with_all_it_had(own_node: RunningNode) -> None:
    model = new_model()
    own_node.serve(model, "1.0.0")
    own_node.route(model, {"1.0.0": 1})
    own_node.supervisor.stop()
    own_node.supervisor.start()
    until(lambda: own_node.router.is_live() and own_node.healthy(model, "1.0.0") == 1)
    assert own_node.count(model, 10) == {"1.0.0": 10}


def test_what_a_removed_platform_ran_is_not_started_by_a_later_one(own_node: RunningNode) -> None:
    own_node.supervisor.put(forever(new_model()))
    props = {"directory": str(own_node.node.directory)}
    NodeSupervisor.driver.delete(props)
    NodeSupervisor.driver.create(props)
    assert own_node.supervisor._call("getAllProcessInfo") == []
    NodeSupervisor.driver.delete(props)
    NodeSupervisor.driver.delete(props)


def test_a_supervisor_that_cannot_start_says_why(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.create()
    (node.programs / "broken.conf").write_text("[program:broken]\n")
    with pytest.raises(NodeError, match="program:broken does not specify a command"):
        Supervisor(node).start()


def test_a_folder_too_deep_for_a_socket_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="too long for a Unix socket"):
        Supervisor(Node(tmp_path / ("deep" * 30)))


def test_a_log_is_rotated_at_its_limit_and_its_tail_survives(
    node: RunningNode, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "LOG_BYTES", 20_000)
    script = "for n in range(40000): print(f'line {n:05} ' + 'x' * 40)\nimport time; time.sleep(600)"
    node.supervisor.put(Program(model, [sys.executable, "-uc", script]))

    def sizes() -> list[int]:
        return [path.stat().st_size for path in node.node.logs.glob(f"{model}.log*")]

    until(lambda: "line 39999" in node.supervisor.log_tail(model))
    assert len(sizes()) == 3
    # Supervisor looks at the size after each read, of 128 KiB at most; 2 MB were written.
    assert sum(sizes()) < 3 * (20_000 + 2**17)
    assert node.supervisor.log_tail(model, lines=5).splitlines()[-1].startswith("line 39999")
    node.supervisor.remove(model)
    assert sizes() == []


def test_programs_put_by_many_at_once_all_run(node: RunningNode) -> None:
    names = [new_model() for _ in range(6)]

    def in_thread(work: Callable[[str], None]) -> None:
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    in_thread(lambda name: Supervisor(node.node).put(forever(name)))
    assert len({running(node, name) for name in names}) == len(names)
    in_thread(lambda name: Supervisor(node.node).remove(name))
    assert {node.supervisor.state(name) for name in names} == {None}
