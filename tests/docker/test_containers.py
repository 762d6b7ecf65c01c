"""What a container of the `docker` runtime is given, what it is kept from, and how it ends."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import docker.errors
import psutil
import pytest

from infra.settings.version import ServerSettings
from infra.single_node.machine.containers import ContainerRuntime
from infra.single_node.machine.limits import Limits
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.servers import Replica
from tests.deadline import until
from tests.docker.container_node import ContainerNode
from tests.single_node.running_node import BODY

MEBIBYTE = 2**20
INFER = "/v2/models/tumour/infer"


# -- what it serves


def test_a_replica_serves_through_its_port_on_loopback(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec(version="1.2.0"))
    answer = node.ask(replica, "POST", INFER, BODY)
    assert (answer.status, answer.json["model_version"]) == (200, "1.2.0")


def test_two_replicas_of_a_version_run_side_by_side(node: ContainerNode) -> None:
    spec = node.container_spec()
    replicas = [node.ready_replica(spec, index) for index in range(2)]
    assert node.containers.names(spec.owner) == [replica.name for replica in replicas]
    for replica in replicas:
        assert node.ask(replica, "POST", INFER, BODY).status == 200
        assert node.counts(replica)["served"] == 1


def test_a_port_is_published_on_no_address_but_loopback(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec())
    port = replica.ports["http"]
    assert _connects("127.0.0.1", port)
    others = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    assert others
    assert not [address for address in others if _connects(address, port)]


# -- what it is given


def test_the_memory_limit_is_enforced(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec(limits=Limits(memory=64 * MEBIBYTE)))
    assert node.inside(replica, "allocate", "16") == (0, "")
    status, _ = node.inside(replica, "allocate", "128")
    assert status == 137, "it was not killed"
    config = node.container(replica).attrs["HostConfig"]
    assert (config["Memory"], config["MemorySwap"]) == (64 * MEBIBYTE, 64 * MEBIBYTE)


def test_the_cpu_limit_is_enforced(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec(limits=Limits(cpu=0.5)))
    container = node.container(replica)
    assert container.attrs["HostConfig"]["NanoCpus"] == 500_000_000
    spinning = threading.Thread(target=node.inside, args=(replica, "spin", "2"))
    spinning.start()

    def throttled_periods() -> int:
        stats = node.engine.client.api.stats(str(container.id), stream=False, one_shot=True)
        return stats["cpu_stats"]["throttling_data"]["throttled_periods"]

    until(throttled_periods, what="it is throttled")
    spinning.join(30)


def test_numeric_libraries_are_told_how_many_cores_there_are(node: ContainerNode) -> None:
    replica = node.create_replica(node.container_spec(limits=Limits(cpu=1.5)))
    assert _environment(node, replica)["OMP_NUM_THREADS"] == "2"


def test_the_model_is_there_to_read_and_not_to_write(node: ContainerNode) -> None:
    spec = node.container_spec()
    server = ServerSettings(command=spec.server.command, env={"MODEL": "{model_dir}"})
    replica = node.ready_replica(replace(spec, server=server))
    folder = _environment(node, replica)["MODEL"]
    assert node.inside(replica, "read", f"{folder}/weights.bin") == (0, "weights")
    status, output = node.inside(replica, "write", f"{folder}/weights.bin")
    assert (status, "read-only" in output) == (1, True), output
    assert node.inside(replica, "write", "/elsewhere") == (0, "")


def test_servers_that_share_tensors_find_room_in_shared_memory(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec())
    _, mounts = node.inside(replica, "read", "/proc/self/mounts")
    line = next(line for line in mounts.splitlines() if line.split()[1] == "/dev/shm")
    assert f"size={8 * MEBIBYTE}k" in line


def test_it_has_no_capability_and_can_gain_none(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec())
    _, status = node.inside(replica, "read", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


def test_its_logs_are_rotated(node: ContainerNode) -> None:
    replica = node.create_replica(node.container_spec())
    config = node.container(replica).attrs["HostConfig"]["LogConfig"]
    assert config == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}


def test_a_version_without_gpus_sees_none(node: ContainerNode) -> None:
    replica = node.create_replica(node.container_spec())
    assert node.container(replica).attrs["HostConfig"]["DeviceRequests"] is None
    assert _environment(node, replica)["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_reserved_gpus_are_asked_of_the_engine_and_its_lack_of_a_driver_is_explained(node: ContainerNode) -> None:
    if "nvidia" in node.engine.client.info()["Runtimes"]:
        pytest.skip("this engine has a driver for GPUs")
    with pytest.raises(
        NodeError, match=r"no driver for GPUs.*NVIDIA Container Toolkit.*lepton:version\.resources\.gpu"
    ):
        node.create_replica(node.container_spec(), gpus=["1", "3"])
    (container,) = node.all_containers()
    (request,) = container.attrs["HostConfig"]["DeviceRequests"]
    assert (request["DeviceIDs"], request["Capabilities"]) == (["1", "3"], [["gpu"]])
    assert not any(variable.startswith("NVIDIA_VISIBLE_DEVICES=") for variable in container.attrs["Config"]["Env"])


def test_a_secret_is_in_its_environment_and_not_in_names_or_labels(node: ContainerNode) -> None:
    replica = node.create_replica(node.container_spec(env={"API_TOKEN": "hunter2"}))
    container = node.container(replica)
    assert _environment(node, replica)["API_TOKEN"] == "hunter2"
    seen = [container.name, container.labels, container.attrs["Args"], *node.networks()]
    assert "hunter2" not in str(seen)


# -- what it can't reach


def test_a_container_of_another_version_can_not_reach_it(node: ContainerNode) -> None:
    spec = node.container_spec(version="1.0.0")
    replica, sibling = (node.ready_replica(spec, index) for index in range(2))
    stranger = node.ready_replica(node.container_spec(version="2.0.0"))
    port = replica.ports["http"]
    assert len(node.networks()) == 2

    address, gateway = _address(node, replica), _gateway(node, stranger)
    assert node.inside(sibling, "connect", f"{address}:{port}") == (0, "")
    assert node.inside(stranger, "connect", f"{address}:{port}")[0] == 1
    assert node.inside(stranger, "connect", f"{gateway}:{port}")[0] == 1
    assert node.inside(stranger, "connect", f"{node.container(replica).name}:{port}")[0] == 1


# -- how it comes back, and how it ends


def test_a_killed_server_comes_back(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec())
    before = node.containers.instance(replica.name)
    assert before is not None
    assert node.containers.instance(replica.name) == before
    assert node.inside(replica, "kill", "oip-server")[0] in {0, 137}
    until(lambda: node.containers.instance(replica.name) not in {before, None}, what="there is another instance")
    node.wait_until_ready(replica)
    assert node.ask(replica, "POST", INFER, BODY).status == 200


def test_between_two_runs_a_container_that_keeps_exiting_is_still_the_last_instance(node: ContainerNode) -> None:
    replica = node.create_replica(node.container_spec(command=["/no-such-program"]))
    # The wait before the fifth run is long enough to look.
    until(lambda: node.container(replica).attrs["RestartCount"] >= 4, what="it was restarted 4 times")
    until(lambda: node.container(replica).status == "restarting", what="it is between two runs")
    assert node.containers.instance(replica.name) is not None


def test_a_stopped_container_is_known_and_runs_no_instance(node: ContainerNode) -> None:
    spec = node.container_spec()
    replica = node.ready_replica(spec)
    node.container(replica).stop(timeout=1)
    assert node.containers.instance(replica.name) is None
    assert node.containers.names(spec.owner) == [replica.name]


def test_what_was_never_started_has_no_names_no_instance_and_no_log(node: ContainerNode) -> None:
    assert node.containers.names("tests.tumour-1.0.0") == []
    assert node.containers.instance("tests.tumour-1.0.0_test_0") is None
    assert node.containers.log_tail("tests.tumour-1.0.0_test_0") == ""
    node.containers.stop("tests.tumour-1.0.0_test_0")


def test_the_log_tail_is_the_last_lines_of_all_output(node: ContainerNode) -> None:
    command = ["/oip-server", "--host={host}", "--http-port={http_port}"]
    replica = node.ready_replica(node.container_spec(command=command))
    for number in range(30):
        node.ask(replica, "POST", f"/v2/models/model/infer?{number}", BODY)
    lines = node.containers.log_tail(replica.name).splitlines()
    assert len(lines) == 20
    assert all(line.endswith("/infer 200") for line in lines)


def test_a_request_in_flight_is_answered_before_the_container_ends(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec(drain_seconds=30))
    node.faults(replica, delay_ms=1500)
    with _asking(node, replica) as answers:
        started = time.monotonic()
        node.containers.stop(replica.name)
        assert time.monotonic() - started < 15
    assert answers == [200]


def test_a_container_that_does_not_drain_is_ended_after_the_version_s_drain_time(node: ContainerNode) -> None:
    replica = node.ready_replica(node.container_spec(drain_seconds=1.5))
    assert node.container(replica).attrs["Config"]["StopTimeout"] == 2
    node.faults(replica, hang=True)
    with _asking(node, replica) as answers:
        started = time.monotonic()
        node.containers.stop(replica.name)
        assert 1.9 < time.monotonic() - started < 12
    assert answers == [None]


def test_a_server_that_knows_no_signals_ends_at_once(node: ContainerNode) -> None:
    replica = node.create_replica(node.container_spec(command=["/inside", "spin", "600"], drain_seconds=30))
    until(lambda: node.containers.instance(replica.name))
    started = time.monotonic()
    node.containers.stop(replica.name)
    assert time.monotonic() - started < 15


def test_the_network_stays_until_the_last_replica_is_stopped(node: ContainerNode) -> None:
    spec = node.container_spec()
    first, second = (node.ready_replica(spec, index) for index in range(2))
    node.containers.stop(first.name)
    assert len(node.networks()) == 1
    assert node.containers.names(spec.owner) == [second.name]
    assert node.ask(second, "POST", INFER, BODY).status == 200
    node.containers.stop(second.name)
    assert node.nothing_left()


def test_another_node_s_container_of_the_same_name_is_left_alone(
    node: ContainerNode, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spec = node.container_spec()
    replica = node.ready_replica(spec)
    other = ContainerRuntime(Node(tmp_path_factory.mktemp("other")))
    assert other.names(spec.owner) == []
    other.stop(replica.name)
    assert node.ask(replica, "POST", INFER, BODY).status == 200


def test_versions_whose_names_are_alike_are_told_apart(node: ContainerNode) -> None:
    dotted, dashed = (node.container_spec(version=version) for version in ("1.0.0-rc.1", "1.0.0-rc-1"))
    replica = node.ready_replica(dashed)
    node.containers.stop(f"{dotted.owner}_test_0")
    assert node.containers.instance(f"{dotted.owner}_test_0") is None
    assert node.containers.names(dotted.owner) == []
    assert node.ask(replica, "POST", INFER, BODY).status == 200


def test_a_start_that_was_interrupted_is_found_and_taken_away(node: ContainerNode) -> None:
    spec = node.container_spec()
    # What is left is what a kill between the container's creation and its start leaves.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        name = f"{spec.owner}_test_0"
        with pytest.raises(NodeError, match=r"the Docker Engine refused: .*in use"):
            node.containers.start(spec, Replica(name, {"http": taken.getsockname()[1]}, []))
    assert node.containers.names(spec.owner) == [name]
    assert node.containers.instance(name) is None
    node.containers.stop(name)
    assert node.nothing_left()


def test_a_model_folder_that_is_not_there_is_refused(node: ContainerNode) -> None:
    with pytest.raises(NodeError, match=r"the Docker Engine refused: .*no-such-folder"):
        node.create_replica(replace(node.container_spec(), model_dir=str(node.model_dir / "no-such-folder")))
    assert node.nothing_left()


# -- what is not there


def test_an_engine_that_is_not_there_is_named_with_the_setting_and_the_remedy(node: ContainerNode) -> None:
    address = "tcp://127.0.0.1:9"
    spec = node.container_spec()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", address)
        with pytest.raises(NodeError) as refused:
            node.create_replica(spec)
    for part in ("lepton:version.runtime", "lepton:platform.node.runtime", "'docker'", address, "DOCKER_HOST"):
        assert part in str(refused.value)


def test_an_image_that_can_not_be_had_is_named_with_the_setting_and_the_remedy(node: ContainerNode) -> None:
    image = "127.0.0.1:9/no-such-image:1.0"
    with pytest.raises(NodeError) as refused:
        node.create_replica(replace(node.container_spec(), image=image))
    for part in ("lepton:version.image", image, "connection refused", "docker load"):
        assert part in str(refused.value)
    assert node.nothing_left()


def test_a_version_without_an_image_is_refused(node: ContainerNode) -> None:
    with pytest.raises(NodeError, match=r"lepton:version\.image"):
        node.create_replica(replace(node.container_spec(), image=None))
    assert node.nothing_left()


def test_a_limit_that_the_machine_can_not_give_is_refused_in_the_engine_s_words(node: ContainerNode) -> None:
    with pytest.raises(NodeError, match=r"the Docker Engine refused: .*CPUs"):
        node.create_replica(node.container_spec(limits=Limits(cpu=100_000)))
    assert node.nothing_left()


def test_networks_without_addresses_are_explained(node: ContainerNode) -> None:
    if not node.engine.is_own:
        pytest.skip("uses up all of the engine's networks: not on one that others use")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(docker.errors.APIError):
            for number in range(1000):
                network = node.engine.client.networks.create(f"filler-{number}", driver="bridge")
                stack.callback(network.remove)
        with pytest.raises(NodeError, match=r"no addresses for one more network.*default-address-pools"):
            node.create_replica(node.container_spec())


# -- inside


@contextlib.contextmanager
def _asking(node: ContainerNode, replica: Replica) -> Iterator[list[int | None]]:
    """Has one inference in flight; on leaving, its status is in the list, None for a broken one."""
    answers: list[int | None] = []

    def ask() -> None:
        try:
            answers.append(node.ask(replica, "POST", INFER, BODY).status)
        except OSError:
            answers.append(None)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: node.counts(replica)["in_flight"] == 1, what="the request is in flight")
    try:
        yield answers
    finally:
        thread.join(30)


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def _environment(node: ContainerNode, replica: Replica) -> dict[str, str]:
    variables = node.container(replica).attrs["Config"]["Env"]
    return dict(variable.split("=", 1) for variable in variables)


def _address(node: ContainerNode, replica: Replica) -> str:
    return _endpoint(node, replica)["IPAddress"]


def _gateway(node: ContainerNode, replica: Replica) -> str:
    return _endpoint(node, replica)["Gateway"]


def _endpoint(node: ContainerNode, replica: Replica) -> dict[str, str]:
    (endpoint,) = node.container(replica).attrs["NetworkSettings"]["Networks"].values()
    return endpoint
