"""Bringing a version's servers to what is wanted, with clients that notice every gap."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.settings.version import Health, ServerSettings
from infra.single_node.machine.claims import ports_of
from infra.single_node.machine.limits import Limits, forget
from infra.single_node.machine.node import NodeError
from infra.single_node.machine.servers import NotReadyError, Replica
from infra.single_node.machine.stats import VARIANT, cluster_name
from tests.deadline import until
from tests.single_node.running_node import QUICK, TEAM, RunningNode, new_model

READY_SECONDS = 20


def environment(node: RunningNode, replica: Replica) -> dict[str, str]:
    pid = node.supervisor.pid(replica.name)
    assert pid
    return psutil.Process(pid).environ()


def programs(node: RunningNode, model: str) -> list[str]:
    return node.runtime.names(f"{TEAM}.{model}-1.0.0")


@pytest.fixture
def devices(node: RunningNode, model: str) -> Iterator[list[str]]:
    """Ids of GPUs that this test alone knows, so that tests can share a node's claims."""
    yield [f"{model}-gpu{index}" for index in range(2)]
    with contextlib.suppress(NodeError):
        node.servers().remove(TEAM, model, "1.0.0")


def test_replicas_come_and_go_without_a_failed_request(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1})
    with node.load(model, per_second=200) as load:
        for replicas in (3, 1, 2, 1):
            found = node.servers().converge(node.spec(model), replicas, QUICK, READY_SECONDS)
            assert len(found) == len(programs(node, model)) == replicas
            load.wait_for(20)
    assert load.failures == 0, f"{load.statuses}, {load.broken}"


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_changed_spec_is_swapped_in_without_a_failed_request(node: RunningNode, model: str, replicas: int) -> None:
    node.serve(model, "1.0.0", replicas=replicas)
    node.route(model, {"1.0.0": 1})
    with node.load(model, per_second=200) as load:
        for change in range(3):
            spec = node.spec(model, env={"CHANGE": str(change)})
            found = node.servers().converge(spec, replicas, QUICK, READY_SECONDS)
            assert [environment(node, replica)["CHANGE"] for replica in found] == [str(change)] * replicas
            assert programs(node, model) == sorted(replica.name for replica in found)
            load.wait_for(20)
    assert load.failures == 0, f"{load.statuses}, {load.broken}"


def test_an_unchanged_spec_leaves_the_servers_alone(node: RunningNode, model: str) -> None:
    replica = node.serve(model, "1.0.0")["1.0.0"][0]
    before = node.supervisor.pid(replica.name)
    assert node.serve(model, "1.0.0")["1.0.0"][0].ports == replica.ports
    assert node.supervisor.pid(replica.name) == before


_SLOW_FOR_THE_ROUTER = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers["user-agent"] == "Envoy/HC":
            time.sleep(1)
        self.rfile.read(int(self.headers["content-length"] or 0))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_GET

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_an_old_server_goes_only_when_the_router_uses_its_successor(node: RunningNode, model: str) -> None:
    # Until the router has an answer to its first check of a new server, it goes on with the old one.
    patient = Health.model_validate({"interval": "200ms", "timeout": "5s"})
    specs = [
        node.spec(model, command=[sys.executable, "-c", _SLOW_FOR_THE_ROUTER, "{http_port}"], env={"CHANGE": change})
        for change in ("1", "2")
    ]
    node.servers().converge(specs[0], 1, patient, READY_SECONDS)
    node.route(model, {"1.0.0": 1})
    with node.load(model, per_second=200) as load:
        replica = node.servers().converge(specs[1], 1, patient, READY_SECONDS)[0]
        assert node.router.replicas(cluster_name(VARIANT, TEAM, model, "1.0.0")) == {replica.ports["http"]: True}
        load.wait_for(20)
    assert load.failures == 0, f"{load.statuses}, {load.broken}"


def test_a_server_that_never_becomes_ready_fails_in_time_and_leaves_the_old_ones(node: RunningNode, model: str) -> None:
    old = node.serve(model, "1.0.0")["1.0.0"]
    node.route(model, {"1.0.0": 1})
    began = time.monotonic()
    with pytest.raises(NotReadyError, match=r"was not ready within 1 s \(GET /v2/health/ready\)") as error:
        node.servers().converge(node.spec(model, flags=["--never-ready"]), 1, QUICK, 1)
    assert time.monotonic() - began < 8
    assert "never becoming ready, as --never-ready asks" in str(error.value)
    assert programs(node, model) == [replica.name for replica in old]
    assert node.count(model, 20) == {"1.0.0": 20}


@pytest.mark.parametrize("replicas", [2, 3])
def test_when_a_later_replica_fails_nothing_is_left_that_nobody_serves(
    own_node: RunningNode, tmp_path: Path, replicas: int
) -> None:
    model = new_model()
    first = tmp_path / "first"
    # The first server that comes up is fine, and every later one never becomes ready.
    ordinary = own_node.spec(model).server.command
    script = f'mkdir {first} 2>/dev/null && exec "$@"; exec "$@" --never-ready'
    spec = own_node.spec(model, command=["sh", "-c", script, "sh", *ordinary])
    claimed = own_node.node.claims.read_text()
    with pytest.raises(NotReadyError):
        own_node.servers().converge(spec, replicas, QUICK, 1)
    assert programs(own_node, model) == []
    assert own_node.node.claims.read_text() == claimed
    assert {process.name() for process in own_node.processes()} <= {"envoy", "python", Path(sys.executable).name}


def test_a_server_that_exits_at_once_fails_long_before_the_timeout(node: RunningNode, model: str) -> None:
    began = time.monotonic()
    with pytest.raises(NotReadyError, match="exited 3 times before it was ready") as error:
        node.servers().converge(node.spec(model, command=["sh", "-c", "echo no weights; exit 3"]), 1, QUICK, 120)
    assert time.monotonic() - began < 15
    assert "no weights" in str(error.value)
    assert programs(node, model) == []


def test_a_command_that_does_not_exist_is_named_in_the_error(node: RunningNode, model: str) -> None:
    with pytest.raises(NotReadyError, match="no-such-server: No such file or directory"):
        node.servers().converge(node.spec(model, command=["no-such-server"]), 1, QUICK, 120)


def test_dead_servers_are_replaced_by_those_of_a_new_spec(own_node: RunningNode) -> None:
    model = new_model()
    own_node.serve(model, "1.0.0", replicas=2)
    own_node.route(model, {"1.0.0": 1})
    for name in programs(own_node, model):
        own_node.supervisor._call("stopProcess", name)
    found = own_node.servers().converge(own_node.spec(model, env={"CHANGE": "1"}), 2, QUICK, READY_SECONDS)
    assert programs(own_node, model) == sorted(replica.name for replica in found)
    assert own_node.count(model, 20) == {"1.0.0": 20}


def test_a_failed_replacement_of_a_routed_server_leaves_no_port_of_it_in_the_router(own_node: RunningNode) -> None:
    model = new_model()
    good, bad = own_node.serve(model, "1.0.0", replicas=2)["1.0.0"]
    own_node.route(model, {"1.0.0": 1})
    own_node.supervisor._call("stopProcess", bad.name)
    # The replacement finds every port of the range taken.
    servers = own_node.servers()
    servers._port_range = (good.ports["http"], good.ports["http"])
    with pytest.raises(NodeError, match="is taken: widen"):
        servers.converge(own_node.spec(model), 2, QUICK, READY_SECONDS)
    assert set(own_node.router.replicas(cluster_name(VARIANT, TEAM, model, "1.0.0"))) == {good.ports["http"]}
    assert own_node.count(model, 20) == {"1.0.0": 20}


def test_each_replica_sees_its_own_gpus_alone(node: RunningNode, model: str, devices: list[str]) -> None:
    found = node.servers(devices).converge(node.spec(model, gpus=1), 2, QUICK, READY_SECONDS)
    seen = [environment(node, replica)["CUDA_VISIBLE_DEVICES"] for replica in found]
    assert sorted(seen) == sorted(devices)


def test_gpus_that_were_not_asked_for_are_hidden(node: RunningNode, model: str, devices: list[str]) -> None:
    replica = node.servers(devices).converge(node.spec(model), 1, QUICK, READY_SECONDS)[0]
    assert environment(node, replica)["CUDA_VISIBLE_DEVICES"] == ""


def test_gpus_are_free_again_after_removal(node: RunningNode, model: str, devices: list[str]) -> None:
    for _ in range(2):
        node.servers(devices).converge(node.spec(model, gpus=2), 1, QUICK, READY_SECONDS)
        node.servers(devices).remove(TEAM, model, "1.0.0")
    assert model not in node.node.claims.read_text()


def test_a_version_for_which_no_gpu_is_free_is_told_who_holds_them(
    node: RunningNode, model: str, devices: list[str]
) -> None:
    holder = node.servers(devices).converge(node.spec(model, gpus=2), 1, QUICK, READY_SECONDS)[0]
    other = new_model()
    with pytest.raises(NodeError, match=re.escape(f"GPU {devices[0]} by {holder.name}")) as error:
        node.servers(devices).converge(node.spec(other, gpus=1), 1, QUICK, READY_SECONDS)
    assert "asks for 1 GPU(s) and 0 of the node's 2" in str(error.value)
    assert other not in node.node.claims.read_text()


def test_a_dead_server_does_not_keep_its_gpu_from_its_successor(
    node: RunningNode, model: str, devices: list[str]
) -> None:
    old = node.servers(devices).converge(node.spec(model, gpus=2), 1, QUICK, READY_SECONDS)[0]
    node.supervisor._call("stopProcess", old.name)
    changed = node.spec(model, gpus=2, env={"CHANGE": "1"})
    new = node.servers(devices).converge(changed, 1, QUICK, READY_SECONDS)[0]
    assert new.name != old.name


def test_a_port_that_was_stolen_while_the_server_was_down_is_replaced(own_node: RunningNode) -> None:
    model = new_model()
    old = own_node.serve(model, "1.0.0")["1.0.0"][0]
    own_node.route(model, {"1.0.0": 1})
    own_node.supervisor._call("stopProcess", old.name)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", old.ports["http"]))
        thief.listen()
        new = own_node.serve(model, "1.0.0")["1.0.0"][0]
        assert new.ports["http"] != old.ports["http"]
        assert own_node.count(model, 20) == {"1.0.0": 20}


def test_a_version_that_is_still_a_variant_is_not_removed(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0", "1.2.0")
    node.route(model, {"1.0.0": 1, "1.1.0": 0}, shadow={"version": "1.2.0", "percent": 1})
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        with pytest.raises(NodeError, match=f"{model}-{version} is still a variant of {TEAM}.{model}"):
            node.servers().remove(TEAM, model, version)
    assert node.count(model, 20) == {"1.0.0": 20}
    node.route(model, {"1.0.0": 1})
    node.servers().remove(TEAM, model, "1.1.0")
    assert not node.servers().is_known(TEAM, model, "1.1.0")


def test_a_removed_version_leaves_nothing(node: RunningNode, model: str) -> None:
    replica = node.serve(model, "1.0.0")["1.0.0"][0]
    pid = node.supervisor.pid(replica.name)
    assert pid
    node.servers().remove(TEAM, model, "1.0.0")
    node.servers().remove(TEAM, model, "1.0.0")
    assert not psutil.pid_exists(pid)
    assert ports_of(node.node, replica.name) == {}
    assert not node.servers().is_known(TEAM, model, "1.0.0")
    assert [path for path in node.node.directory.rglob("*") if model in path.name] == []


def test_ready_replicas_counts_those_that_run_and_are_routed_to(own_node: RunningNode) -> None:
    model = new_model()
    first, _ = own_node.serve(model, "1.0.0", replicas=2)["1.0.0"]
    ready = own_node.servers().ready_replicas
    assert ready(TEAM, model, "1.0.0", "/v2/health/ready") == 2
    own_node.supervisor._call("stopProcess", first.name)
    assert ready(TEAM, model, "1.0.0", "/v2/health/ready") == 1


def test_no_replicas_is_a_version_that_is_known_and_empty(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    assert node.servers().converge(node.spec(model), 0, QUICK, READY_SECONDS) == []
    assert programs(node, model) == []
    assert node.servers().is_known(TEAM, model, "1.0.0")


def test_a_killed_servers_workers_do_not_outlive_it(own_node: RunningNode) -> None:
    model = new_model()
    server = own_node.spec(model).server.command
    spec = own_node.spec(model, command=["sh", "-c", 'sleep 4321 & exec "$@"', "sh", *server])
    replica = own_node.servers().converge(spec, 1, QUICK, READY_SECONDS)[0]

    def workers() -> set[int]:
        return {process.pid for process in own_node.processes() if process.name() == "sleep"}

    before = workers()
    assert len(before) == 1
    own_node.kill(replica.name)
    until(lambda: len(workers()) == 1 and workers() != before, what="the old worker is gone, and a new one is there")
    own_node.servers().remove(TEAM, model, "1.0.0")
    assert workers() == set()


def test_secrets_stay_in_files_that_are_this_users_alone(own_node: RunningNode) -> None:
    model, secret = new_model(), "s3cr3t-v4lue"
    own_node.servers().converge(own_node.spec(model, env={"TOKEN": secret}), 1, QUICK, READY_SECONDS)
    own_node.route(model, {"1.0.0": 1})
    failing = own_node.spec(model, env={"TOKEN": f"{secret}2"}, flags=["--never-ready"])
    with pytest.raises(NotReadyError) as error:
        own_node.servers().converge(failing, 1, QUICK, 1)
    assert secret not in str(error.value)
    own_node.supervisor.stop()
    holders = []
    for path in own_node.node.directory.rglob("*"):
        assert secret not in path.name
        if path.is_file() and secret.encode() in path.read_bytes():
            holders.append(path)
            assert path.stat().st_mode & 0o077 == 0, path
            assert path.parent.stat().st_mode & 0o077 == 0, path.parent
            assert path.suffix != ".log"
    assert [path.parent for path in holders] == [own_node.node.programs]


def test_the_environment_of_whoever_deploys_does_not_leak_into_servers(
    node: RunningNode, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "not for servers")
    replica = node.serve(model, "1.0.0")["1.0.0"][0]
    assert "PULUMI_CONFIG_PASSPHRASE" not in environment(node, replica)


def test_placeholders_are_filled_in(node: RunningNode, model: str) -> None:
    server = node.spec(model).server
    settings = ServerSettings(command=server.command, env={"WHERE": "{host}:{http_port}/{model}/{version}"})
    spec = node.spec(model).__class__(**{**vars(node.spec(model)), "server": settings, "limits": Limits(cpu=1.5)})
    replica = node.servers().converge(spec, 1, QUICK, READY_SECONDS)[0]
    found = environment(node, replica)
    assert found["WHERE"] == f"127.0.0.1:{replica.ports['http']}/{model}/1.0.0"
    assert found["OMP_NUM_THREADS"] == "2"


def test_what_a_server_is_given_does_not_replace_what_marks_it(
    node: RunningNode, model: str, devices: list[str]
) -> None:
    marks = ("CUDA_VISIBLE_DEVICES", "LEPTON_TEAM", "LEPTON_NODE", "LEPTON_PROGRAM")
    spec = node.spec(model, env=dict.fromkeys(marks, "mine"), gpus=1)
    replica = node.servers(devices).converge(spec, 1, QUICK, READY_SECONDS)[0]
    found = environment(node, replica)
    assert [found[name] for name in marks] == [replica.gpus[0], TEAM, str(node.node.directory), replica.name]


# -- limits

_CGROUP = Path("/sys/fs/cgroup")


def groups(node: RunningNode) -> list[Path]:
    return [path for path in _CGROUP.glob(f"**/lepton-{node.node.id}/*") if path.is_dir()]


@pytest.fixture
def limited(node: RunningNode) -> Callable[[], list[Path]]:
    """Finds the node's control groups; skips where this user may not make any."""
    controllers = [_CGROUP / "memory", _CGROUP] if (_CGROUP / "memory").exists() else [_CGROUP]
    if not os.access(controllers[0], os.W_OK):
        pytest.skip(f"this user may not make control groups in {controllers[0]}")
    return lambda: groups(node)


def test_a_server_that_takes_more_memory_than_its_limit_dies_and_is_restarted(
    node: RunningNode, model: str, limited: Callable[[], list[Path]]
) -> None:
    # Takes 64 MiB more each time a file is found, so it serves first and grows later.
    order = node.node.directory / f"grow-{model}"
    server = node.spec(model).server.command
    grow = (
        "import os, time\n"
        f"while not os.path.exists({str(order)!r}): time.sleep(0.02)\n"
        f"os.remove({str(order)!r})\n"
        "bytearray(os.urandom(2**20) * 400)\n"
        "time.sleep(60)\n"
    )
    # The server is the child, so that the growing process is the one that Supervisor looks after.
    script = f'"$@" & exec {sys.executable} -c "$GROW"'
    spec = node.spec(
        model,
        command=["sh", "-c", script, "sh", *server],
        env={"GROW": grow},
        limits=Limits(memory=200 * 2**20),
    )
    replica = node.servers().converge(spec, 1, QUICK, READY_SECONDS)[0]
    first = node.supervisor.pid(replica.name)
    assert [path for path in limited() if path.name == replica.name]
    order.touch()
    until(lambda: node.supervisor.pid(replica.name) not in {None, first}, 30, what="it was killed and restarted")
    node.servers().remove(TEAM, model, "1.0.0")
    assert [path for path in limited() if path.name == replica.name] == []


def test_a_group_that_is_still_busy_is_removed_when_its_last_process_has_ended(
    node: RunningNode, model: str, limited: Callable[[], list[Path]]
) -> None:
    name = f"lepton-{node.node.id}/{model}"
    enter = f"from infra.single_node.machine import limits; print(limits.enforce({name!r}, limits.Limits(cpu=1)))"
    last = subprocess.Popen(
        [sys.executable, "-uc", f"{enter}; import time; time.sleep(0.5)"], stdout=subprocess.PIPE, text=True
    )
    with last:
        assert last.stdout is not None
        assert last.stdout.readline().startswith("cgroup")
        assert [path for path in limited() if path.name == model]
        forget(name)
        assert [path for path in limited() if path.name == model] == []


def test_a_stopped_node_leaves_no_group_even_of_a_program_that_it_does_not_know(
    own_node: RunningNode, limited: Callable[[], list[Path]]
) -> None:
    model = new_model()
    own_node.servers().converge(own_node.spec(model, limits=Limits(cpu=0.5, memory=2**30)), 1, QUICK, READY_SECONDS)
    assert groups(own_node)
    for file in own_node.node.programs.glob(f"*{model}*"):
        file.unlink()
    own_node.supervisor.stop()
    assert list(_CGROUP.glob(f"**/lepton-{own_node.node.id}")) == []


def test_a_cpu_limit_is_set_and_its_group_goes_with_the_server(
    node: RunningNode, model: str, limited: Callable[[], list[Path]]
) -> None:
    replica = node.servers().converge(node.spec(model, limits=Limits(cpu=0.5)), 1, QUICK, READY_SECONDS)[0]
    (group,) = [path for path in limited() if path.name == replica.name]
    if (group / "cpu.max").exists():
        assert (group / "cpu.max").read_text().split() == ["50000", "100000"]
    else:
        assert (group / "cpu.cfs_quota_us").read_text().strip() == "50000"
    assert str(node.supervisor.pid(replica.name)) in (group / "cgroup.procs").read_text().split()
    node.servers().remove(TEAM, model, "1.0.0")
    assert not group.exists()
