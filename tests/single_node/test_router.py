"""Changes of the router's configuration: atomic, one owner's at a time, and whole again after a death."""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import threading
import time
from pathlib import Path

import psutil
import pytest

from infra.settings.endpoint import EndpointSettings
from infra.single_node.machine import envoy
from infra.single_node.machine.claims import ports_of
from infra.single_node.machine.node import Node
from infra.single_node.machine.router import Router, RouterRejectedError, RouterUnreachableError
from infra.single_node.routing import Backend, RouteFragment, endpoint_routes
from tests.deadline import until
from tests.single_node.running_node import BODY, TEAM, RunningNode, infer_path, new_model


def fragment(model: str, weights: dict[str, int]) -> RouteFragment:
    variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
    settings = EndpointSettings.model_validate(
        {"environment": "dev", "model": model, "variants": variants, "failover": False}
    )
    return endpoint_routes(TEAM, settings, dict.fromkeys(weights, Backend("oip-v2", grpc=False)))


def with_invalid_expression(model: str) -> RouteFragment:
    broken = fragment(model, {"1.0.0": 1})
    broken["path_routes"][0]["match"] = {"safe_regex": {"regex": "(unclosed"}}
    return broken


def with_the_domain_of(other: str, model: str) -> RouteFragment:
    broken = fragment(model, {"1.0.0": 1})
    broken["virtual_host"]["domains"] = [f"{other}.{TEAM}"]
    return broken


def test_a_rejected_change_is_told_in_envoys_words_and_the_last_good_routes_serve(own_node: RunningNode) -> None:
    model, other = new_model(), new_model()
    own_node.serve(model, "1.0.0", "1.1.0")
    own_node.serve(other, "1.0.0")
    own_node.route(model, {"1.0.0": 0, "1.1.0": 1})
    own_node.route(other, {"1.0.0": 1})
    for broken, words in (
        (with_invalid_expression(model), "missing ): (unclosed"),
        (with_the_domain_of(other, model), f"{other}.{TEAM}"),
    ):
        with pytest.raises(RouterRejectedError) as error:
            own_node.router.put_routes(f"{TEAM}.{model}", broken)
        assert words in str(error.value)
        assert own_node.count(model, 10) == {"1.1.0": 10}
        assert own_node.count(other, 10) == {"1.0.0": 10}
    own_node.kill(envoy.PROGRAM)
    until(own_node.router.is_live, what="the router is back")
    assert own_node.count(model, 10) == {"1.1.0": 10}
    assert own_node.count(other, 10) == {"1.0.0": 10}


def test_a_rejected_cluster_leaves_the_versions_own_and_others_serving(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1})
    owner = f"{TEAM}.{model}-1.0.0"
    before = node.router.clusters(owner)
    assert before is not None
    broken = json.loads(json.dumps(before))
    broken[0]["connect_timeout"] = "-1s"
    with pytest.raises(RouterRejectedError, match="Invalid duration"):
        node.router.put_clusters(owner, broken)
    assert node.router.clusters(owner) == before
    assert node.count(model, 20) == {"1.0.0": 20}


def test_after_a_rejection_the_next_change_is_taken(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 1, "1.1.0": 0})
    with pytest.raises(RouterRejectedError):
        node.router.put_routes(f"{TEAM}.{model}", with_invalid_expression(model))
    node.route(model, {"1.0.0": 0, "1.1.0": 1})
    assert node.count(model, 20) == {"1.1.0": 20}


def test_a_change_whose_writer_was_killed_is_undone_by_the_next(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1})
    # What a writer that died while Envoy was reading leaves: the file that Envoy watches, and no part.
    file = envoy.routes_file(node.node)
    document = json.loads(file.read_text())
    document["resources"][0]["virtual_hosts"][0]["domains"] = ["a", "a"]
    document["version_info"] = "abandoned"
    file.write_text(json.dumps(document))
    other = new_model()
    node.serve(other, "1.0.0")
    node.route(other, {"1.0.0": 1})
    assert node.count(other, 10) == {"1.0.0": 10}
    assert node.count(model, 10) == {"1.0.0": 10}


def test_fifty_weight_changes_under_load_lose_no_request(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 50, "1.1.0": 50})
    with node.load(model, per_second=200) as load:
        for step in range(50):
            node.route(model, {"1.0.0": 100 - 2 * step, "1.1.0": 2 * step + 1}, baseline="1.0.0")
        load.wait_for(20)
    assert load.failures == 0, f"{load.statuses}, {load.broken}"
    assert set(load.statuses) == {200}


def test_the_router_is_back_within_5_s_of_its_death_with_the_same_weights(own_node: RunningNode) -> None:
    model = new_model()
    own_node.serve(model, "1.0.0", "1.1.0")
    own_node.route(model, {"1.0.0": 30, "1.1.0": 70})
    before = own_node.router.traffic(f"{TEAM}.{model}")
    own_node.kill(envoy.PROGRAM)
    died = time.monotonic()
    until(lambda: answers(own_node, model), 5, what="the router answers again")
    assert time.monotonic() - died < 5
    assert own_node.router.traffic(f"{TEAM}.{model}") == before == ({"1.0.0": 30, "1.1.0": 70}, {})
    assert set(own_node.count(model, 100)) == {"1.0.0", "1.1.0"}


def test_a_change_while_the_router_is_restarted_waits_and_succeeds(own_node: RunningNode) -> None:
    model = new_model()
    own_node.serve(model, "1.0.0", "1.1.0")
    own_node.route(model, {"1.0.0": 1, "1.1.0": 0})
    for weights in ({"1.0.0": 0, "1.1.0": 1}, {"1.0.0": 1, "1.1.0": 0}):
        own_node.kill(envoy.PROGRAM)
        own_node.route(model, weights)
        assert own_node.router.traffic(f"{TEAM}.{model}")[0] == weights
        until(lambda: answers(own_node, model))
        assert own_node.count(model, 20) == {version: 20 for version, weight in weights.items() if weight}


def test_a_change_with_no_router_fails_in_bounded_time_and_is_not_kept(
    own_node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model()
    own_node.serve(model, "1.0.0", "1.1.0")
    own_node.route(model, {"1.0.0": 1, "1.1.0": 0})
    own_node.supervisor._call("stopProcess", envoy.PROGRAM)
    monkeypatch.setattr("infra.single_node.machine.router._APPLY_SECONDS", 1)
    with pytest.raises(RouterUnreachableError, match="did not settle within 1 s"):
        own_node.route(model, {"1.0.0": 0, "1.1.0": 1})
    own_node.supervisor._call("startProcess", envoy.PROGRAM)
    until(lambda: answers(own_node, model))
    assert own_node.count(model, 10) == {"1.0.0": 10}


def answers(node: RunningNode, model: str) -> bool:
    try:
        with node.client(timeout=2) as client:
            return client.infer(model).status == 200
    except OSError:
        return False


def _change_often(directory: str, model: str, times: int) -> None:
    router = Router(Node(Path(directory)))
    for step in range(times):
        router.put_routes(f"{TEAM}.{model}", fragment(model, {"1.0.0": step, "1.1.0": 100 - step}))


def test_two_processes_change_two_endpoints_at_once(node: RunningNode) -> None:
    models = [new_model(), new_model()]
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_change_often, args=(str(node.node.directory), model, 20)) for model in models]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    for model in models:
        assert node.router.traffic(f"{TEAM}.{model}")[0] == {"1.0.0": 19, "1.1.0": 81}
        node.router.remove_routes(f"{TEAM}.{model}")


def test_a_removed_endpoint_is_gone_and_others_stay(node: RunningNode, model: str) -> None:
    other = new_model()
    for name in (model, other):
        node.serve(name, "1.0.0")
        node.route(name, {"1.0.0": 1})
    node.router.remove_routes(f"{TEAM}.{model}")
    with node.client() as client:
        assert client.infer(model).status == 404
    assert node.count(other, 10) == {"1.0.0": 10}
    assert node.router.traffic(f"{TEAM}.{model}") == ({}, {})


def test_the_admin_interface_is_this_users_alone(node: RunningNode) -> None:
    assert envoy.admin_socket(node.node).stat().st_mode & 0o077 == 0
    assert node.node.run.stat().st_mode & 0o077 == 0


def test_the_router_listens_on_loopback_alone(node: RunningNode) -> None:
    pid = node.supervisor.pid(envoy.PROGRAM)
    assert pid
    listening = [c for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening
    assert {connection.laddr[0] for connection in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("address", ["::1", "::"])
def test_the_router_serves_at_an_ipv6_address(own_node: RunningNode, address: str) -> None:
    model = new_model()
    own_node.serve(model, "1.0.0")
    own_node.route(model, {"1.0.0": 1})
    stats = ports_of(own_node.node, "platform")["stats"]
    own_node.supervisor.put(envoy.program(own_node.node, address, own_node.port, stats, workers=2))

    def status() -> int | None:
        connection = http.client.HTTPConnection("::1", own_node.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("POST", infer_path(model), BODY)
            return connection.getresponse().status

    until(lambda: status() == 200, what="an answer at the new address")


EXTREMES: list[dict[str, object]] = [
    {"timeouts": {"per_try": "1ms", "total": "1ms", "idle": "1ms"}, "retries": 0},
    {"timeouts": {"per_try": "1ms", "total": "365d", "idle": "3650d"}, "retries": 10},
    {"sticky": {"cookie": {"name": "!#$%&'*+-.^_`|~0aZ", "ttl": "1ms"}}},
    {"sticky": {"header": "!#$%&'*+-.^_`|~0aZ"}},
    {"shadow": {"version": "3.0.0-rc.1", "percent": 0.0001}},
    {"shadow": {"version": "3.0.0-rc.1", "percent": 100}},
    {"variants": [{"version": f"1.{n}.0-{'long' * 28}.{n}", "weight": 1_000_000} for n in range(60)]},
]


@pytest.mark.parametrize("extreme", EXTREMES, ids="-".join)
def test_envoy_takes_extreme_settings(node: RunningNode, model: str, extreme: dict[str, object]) -> None:
    variants = [{"version": "1.0.0", "weight": 1_000_000}, {"version": "2.0.0", "weight": 0}]
    settings = EndpointSettings.model_validate(
        {"environment": "dev", "model": "m" * 40 + model, "variants": variants} | extreme
    )
    backends = {version: Backend("openai", grpc=True) for version in settings.versions}
    owner = f"{TEAM}.{settings.model}"
    node.router.put_routes(owner, endpoint_routes(TEAM, settings, backends))
    assert node.router.traffic(owner)[0] == settings.weights
    node.router.remove_routes(owner)


def test_changes_of_many_threads_are_all_kept(node: RunningNode) -> None:
    models = [new_model() for _ in range(8)]
    routers = [threading.Thread(target=_change_often, args=(str(node.node.directory), m, 3)) for m in models]
    for thread in routers:
        thread.start()
    for thread in routers:
        thread.join(60)
    for model in models:
        assert node.router.traffic(f"{TEAM}.{model}")[0] == {"1.0.0": 2, "1.1.0": 98}
        node.router.remove_routes(f"{TEAM}.{model}")
