"""Weights moved on the router alone, and what is spoken for of the machine."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

from infra.contracts import ObservationError, PlatformExports
from infra.single_node.endpoint import Shifter
from infra.single_node.machine.limits import Limits
from infra.single_node.observe import Observer
from tests.deadline import until
from tests.single_node.running_node import QUICK, TEAM, RunningNode


def exports(node: RunningNode, gpus: list[str] | None = None) -> PlatformExports:
    """As much of a platform's outputs as is read here."""
    internals = {"directory": str(node.node.directory), "gpus": gpus or []}
    return cast("PlatformExports", {"environment": "dev", "internals": internals, "metrics_url": "http://127.0.0.1:9"})


def weights(node: RunningNode, model: str) -> dict[str, int]:
    return Observer(exports(node)).traffic(TEAM, model)["weights"]


@pytest.mark.parametrize(
    ("more", "grpc"),
    [
        ({"shadow": {"version": "1.2.0", "percent": 12.5}, "failover": False}, True),
        ({"sticky": {"header": "x-user"}}, False),
        ({"sticky": {"cookie": {"name": "seen"}}, "baseline": "1.0.0"}, False),
    ],
    ids=["a shadow and gRPC", "a sticky header", "a sticky cookie"],
)
def test_shifted_weights_are_all_that_changes(node: RunningNode, model: str, more: dict[str, Any], grpc: bool) -> None:
    node.serve(model, "1.0.0", "1.1.0", "1.2.0")
    node.route(model, {"1.0.0": 90, "1.1.0": 10}, grpc=grpc, **more)
    owner = f"{TEAM}.{model}"
    before = copy.deepcopy(node.router.clusters(owner))

    Shifter(exports(node)).shift(TEAM, model, {"1.1.0": 50, "1.0.0": 50})

    assert weights(node, model) == {"1.0.0": 50, "1.1.0": 50}
    shifted = node.router.routes(owner)
    # Rendered anew, nothing is different.
    node.route(model, {"1.0.0": 50, "1.1.0": 50}, grpc=grpc, **more)
    assert node.router.routes(owner) == shifted
    assert node.router.clusters(owner) == before


def test_requests_follow_a_shift_at_once(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 100, "1.1.0": 0})
    assert node.count(model, 50) == {"1.0.0": 50}
    Shifter(exports(node)).shift(TEAM, model, {"1.0.0": 0, "1.1.0": 100})
    assert node.count(model, 50) == {"1.1.0": 50}


def test_no_request_is_lost_while_weights_are_shifted(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 100, "1.1.0": 0})
    with node.load(model) as load:
        for share in (10, 50, 100, 0):
            Shifter(exports(node)).shift(TEAM, model, {"1.0.0": 100 - share, "1.1.0": share})
            load.wait_for(20)
    assert load.failures == 0


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"1.0.0": 100}, "has the variants 1.0.0, 1.1.0, and weights were given for 1.0.0; "),
        ({"1.0.0": 50, "1.1.0": 0, "9.9.9": 50}, "weights were given for 1.0.0, 1.1.0, 9.9.9; "),
        ({"1.0.0": 0, "1.1.0": 0}, "one of them is at least 1"),
        ({"1.0.0": 101, "1.1.0": -1}, "weights are integers from 0"),
        ({}, "one of them is at least 1"),
    ],
)
def test_weights_that_are_not_the_endpoints_are_refused(
    node: RunningNode, model: str, wanted: dict[str, int], problem: str
) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 90, "1.1.0": 10})
    with pytest.raises(ObservationError) as refused:
        Shifter(exports(node)).shift(TEAM, model, wanted)
    assert problem in str(refused.value)
    assert weights(node, model) == {"1.0.0": 90, "1.1.0": 10}


def test_an_endpoint_that_is_not_there_has_no_weights_to_shift(node: RunningNode, model: str) -> None:
    with pytest.raises(ObservationError, match=f"{TEAM}.{model} has no routes on this node"):
        Shifter(exports(node)).shift(TEAM, model, {"1.0.0": 1})


def test_a_dead_version_may_lose_weight_and_not_gain_it(node: RunningNode, model: str) -> None:
    versions = node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 50, "1.1.0": 50})
    node.servers().converge(node.spec(model, "1.1.0"), 0, QUICK, 20)
    until(lambda: node.healthy(model, "1.1.0") == 0, what=f"the router has let go of {versions['1.1.0'][0].name}")

    with pytest.raises(ObservationError, match=r"1\.1\.0 has no healthy replica.*`replicas: 0`"):
        Shifter(exports(node)).shift(TEAM, model, {"1.0.0": 40, "1.1.0": 60})
    assert weights(node, model) == {"1.0.0": 50, "1.1.0": 50}

    Shifter(exports(node)).shift(TEAM, model, {"1.0.0": 60, "1.1.0": 40})
    assert weights(node, model) == {"1.0.0": 60, "1.1.0": 40}


def test_a_router_that_does_not_run_is_an_observation_that_fails(own_node: RunningNode, model: str) -> None:
    own_node.serve(model, "1.0.0")
    own_node.route(model, {"1.0.0": 1})
    own_node.supervisor.remove("router")
    with pytest.raises(ObservationError, match="does not answer"):
        Shifter(exports(own_node)).shift(TEAM, model, {"1.0.0": 2})


def test_room_is_the_machines_less_what_replicas_are_promised(own_node: RunningNode, model: str) -> None:
    observer = Observer(exports(own_node, gpus=["0", "1", "2", "3"]))
    empty = observer.room()
    assert empty["total"]["cpu"] >= 1
    assert empty["total"]["memory"] > 2**28
    assert empty["total"]["gpu"] == 4
    assert empty["reserved"] == {"cpu": 0, "memory": 0, "gpu": 0}

    servers = own_node.servers(gpus=["0", "1", "2", "3"])
    limited = own_node.spec(model, "1.0.0", limits=Limits(cpu=1.5, memory=2**29), gpus=1)
    servers.converge(limited, 2, QUICK, 20)
    servers.converge(own_node.spec(model, "1.1.0"), 1, QUICK, 20)
    assert observer.room()["reserved"] == {"cpu": 3.0, "memory": 2**30, "gpu": 2}
    [machine] = observer.inventory()
    limited_ones = {"cpu": 3.0, "memory": 2**30, "gpus": {"nvidia.com/gpu": 2}}
    assert {each["holder"]: each["replicas"] for each in machine["held"]} == {
        f"{TEAM}/dev.{model}-1.0.0": 2,
        f"{TEAM}/dev.{model}-1.1.0": 1,
    }
    assert limited_ones.items() <= machine["held"][0].items()

    servers.converge(limited, 1, QUICK, 20)
    assert observer.room()["reserved"] == {"cpu": 1.5, "memory": 2**29, "gpu": 1}
    servers.remove(TEAM, model, "1.0.0")
    assert observer.room()["reserved"] == {"cpu": 0, "memory": 0, "gpu": 0}
