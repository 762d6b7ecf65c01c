"""A version whose servers are containers, behind the router: brought up, scaled, swapped, and refused when broken."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from infra.settings.version import ServerSettings
from infra.single_node.machine.claims import ports_of
from infra.single_node.machine.node import NodeError
from infra.single_node.machine.servers import NotReadyError
from tests.deadline import until
from tests.docker.container_node import ContainerNode
from tests.single_node.running_node import QUICK, TEAM

READY_SECONDS = 30


def test_a_version_of_containers_is_scaled_and_swapped_without_a_failed_request(
    running_node: ContainerNode, model: str
) -> None:
    node = running_node
    spec, servers = node.container_spec(model), node.servers()
    (first,) = servers.converge(spec, 1, QUICK, READY_SECONDS)
    node.route(model, {"1.0.0": 100})
    with node.load(model) as load:
        both = servers.converge(spec, 2, QUICK, READY_SECONDS)
        assert first in both
        assert (len(both), node.healthy(model, "1.0.0")) == (2, 2)
        load.wait_for(40)
        assert all(node.counts(replica)["served"] for replica in both)

        (left,) = servers.converge(spec, 1, QUICK, READY_SECONDS)
        assert (left, node.containers.names(spec.owner)) == (first, [first.name])
        load.wait_for(20)

        changed = replace(spec, env={"LEVEL": "2"})
        (swapped,) = servers.converge(changed, 1, QUICK, READY_SECONDS)
        assert node.containers.names(spec.owner) == [swapped.name]
        assert swapped.name != first.name
        load.wait_for(20)
    assert load.failures == 0, (load.statuses, load.broken)
    assert servers.ready_replicas(TEAM, model, "1.0.0", "/v2/health/ready") == 1


def test_a_version_that_is_there_already_is_left_as_it_is(running_node: ContainerNode, model: str) -> None:
    spec, servers = running_node.container_spec(model), running_node.servers()
    before = servers.converge(spec, 1, QUICK, READY_SECONDS)
    instance = running_node.containers.instance(before[0].name)
    assert servers.converge(spec, 1, QUICK, READY_SECONDS) == before
    assert running_node.containers.instance(before[0].name) == instance


def test_a_version_that_is_taken_down_leaves_nothing(running_node: ContainerNode, model: str) -> None:
    spec, servers = running_node.container_spec(model), running_node.servers()
    replicas = servers.converge(spec, 2, QUICK, READY_SECONDS)
    servers.remove(TEAM, model, "1.0.0")
    assert running_node.nothing_left(spec.owner)
    assert not any(ports_of(running_node.node, replica.name) for replica in replicas)
    assert not servers.is_known(TEAM, model, "1.0.0")


def test_a_killed_container_gets_its_share_again(running_node: ContainerNode, model: str) -> None:
    node = running_node
    (replica,) = node.servers().converge(node.container_spec(model), 1, QUICK, READY_SECONDS)
    node.route(model, {"1.0.0": 100})
    before = node.containers.instance(replica.name)
    assert node.inside(replica, "kill", "oip-server")[0] in {0, 137}
    node.wait_until_ready(replica)
    assert node.containers.instance(replica.name) != before
    with node.client() as client:
        until(lambda: client.infer(model).status == 200, what="the router sends it requests")


def test_a_container_that_never_becomes_ready_fails_in_bounded_time_and_leaves_nothing(
    running_node: ContainerNode, model: str
) -> None:
    spec = running_node.container_spec(model, flags=["--never-ready"])
    started = time.monotonic()
    with pytest.raises(NotReadyError, match=r"not ready within 2 s(?s:.*)never becoming ready, as --never-ready asks"):
        running_node.servers().converge(spec, 1, QUICK, 2)
    assert time.monotonic() - started < 12
    assert running_node.nothing_left(spec.owner)


def test_a_container_that_keeps_exiting_fails_before_its_time_is_over_and_leaves_nothing(
    running_node: ContainerNode, model: str
) -> None:
    spec = replace(running_node.container_spec(model), server=ServerSettings(command=["/no-such-program"]))
    with pytest.raises(NotReadyError, match=r"exited 3 times before it was ready(?s:.*)/no-such-program"):
        running_node.servers().converge(spec, 1, QUICK, 60)
    assert running_node.nothing_left(spec.owner)


def test_a_broken_spec_leaves_the_containers_that_serve(running_node: ContainerNode, model: str) -> None:
    node = running_node
    spec = node.container_spec(model)
    before = node.servers().converge(spec, 1, QUICK, READY_SECONDS)
    node.route(model, {"1.0.0": 100})
    with pytest.raises(NotReadyError):
        node.servers().converge(node.container_spec(model, flags=["--never-ready"]), 1, QUICK, 1)
    assert node.containers.names(spec.owner) == [replica.name for replica in before]
    assert node.count(model, 20) == {"1.0.0": 20}


def test_gpus_that_the_engine_can_not_give_are_refused_and_free_again(running_node: ContainerNode, model: str) -> None:
    if "nvidia" in running_node.engine.client.info()["Runtimes"]:
        pytest.skip("this engine has a driver for GPUs")
    spec, servers = running_node.container_spec(model, gpus=1), running_node.servers(gpus=["0"])
    for _ in range(2):
        with pytest.raises(NodeError, match="NVIDIA Container Toolkit"):
            servers.converge(spec, 1, QUICK, READY_SECONDS)
        assert running_node.nothing_left(spec.owner)
