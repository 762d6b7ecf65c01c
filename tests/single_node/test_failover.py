"""What clients notice of model servers that die, hang up, or are not ready."""

from __future__ import annotations

import time

import pytest

from infra.settings.version import Health
from tests.deadline import until
from tests.single_node.running_node import QUICK, RunningNode, new_model

CLIENTS = 4


def test_a_killed_variants_share_is_served_by_the_baseline_until_it_is_back(own_node: RunningNode) -> None:
    model = new_model()
    replicas = own_node.serve(model, "1.0.0", "1.1.0", health=Health())
    own_node.route(model, {"1.0.0": 50, "1.1.0": 50})
    with own_node.load(model, CLIENTS) as load:
        load.wait_for(100)
        killed = time.monotonic()
        own_node.kill(replicas["1.1.0"][0].name)
        until(lambda: load.versions_since(killed)["1.1.0"] >= 20, 30, what="the variant has its share again")
    assert load.failures <= CLIENTS, f"{load.statuses}, {load.broken}"
    late = [when - killed for when, status, _ in load.answers if when > killed + 2 and status != 200]
    assert not late, f"failures {late} s after the death"


def test_an_answer_after_failover_names_the_version_that_gave_it(own_node: RunningNode) -> None:
    model = new_model()
    servers = own_node.serve(model, "1.0.0", "1.1.0")
    own_node.route(model, {"1.0.0": 1, "1.1.0": 99}, baseline="1.0.0")
    own_node.faults(servers["1.1.0"][0], ready=False)
    until(lambda: own_node.healthy(model, "1.1.0") == 0)
    # count() compares the header with what the server says of itself.
    assert own_node.count(model, 100) == {"1.0.0": 100}


def test_without_failover_a_dead_variants_share_is_errors(node: RunningNode, model: str) -> None:
    replicas = node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 50, "1.1.0": 50}, failover=False)
    node.faults(replicas["1.1.0"][0], ready=False)
    until(lambda: node.healthy(model, "1.1.0") == 0)
    with node.client() as client:
        statuses = [client.infer(model).status for _ in range(200)]
    assert set(statuses) == {200, 503}
    assert 50 < statuses.count(503) < 150


def test_a_pinned_request_does_not_fail_over(node: RunningNode, model: str) -> None:
    replicas = node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 50, "1.1.0": 50}, baseline="1.0.0")
    node.faults(replicas["1.1.0"][0], ready=False)
    until(lambda: node.healthy(model, "1.1.0") == 0)
    with node.client() as client:
        assert client.infer(model, {"x-model-version": "1.1.0"}).status == 503


def test_a_replica_that_is_not_ready_gets_no_requests_until_it_is(node: RunningNode, model: str) -> None:
    idle, busy = node.serve(model, "1.0.0", replicas=2)["1.0.0"]
    node.route(model, {"1.0.0": 1})
    node.faults(idle, ready=False)
    until(lambda: node.healthy(model, "1.0.0") == 1)
    before = node.counts(idle)["received"]
    node.count(model, 100)
    assert node.counts(idle)["received"] == before
    assert node.counts(busy)["received"] >= 100
    node.faults(idle, ready=True)
    until(lambda: node.healthy(model, "1.0.0") == 2)
    node.count(model, 100)
    assert node.counts(idle)["received"] > before


def test_a_replica_that_resets_connections_is_ejected_and_stays_out_though_it_is_ready(
    node: RunningNode, model: str
) -> None:
    health = QUICK.model_copy(update={"eject_after": 3, "eject_for": 60.0})
    broken, _ = node.serve(model, "1.0.0", replicas=2, health=health)["1.0.0"]
    node.route(model, {"1.0.0": 1})
    node.faults(broken, reset_ratio=1.0)
    with node.client() as client:
        until(lambda: client.infer(model).status == 503 and node.counts(broken)["received"] >= 3)
        ejected = node.counts(broken)["received"]
        # Health checks come every 200 ms, and say that it is ready.
        until(lambda: node.router._get("/stats?filter=health_check.success") and client.infer(model).status == 200)
    began = time.monotonic()
    while time.monotonic() < began + 1:
        node.count(model, 20)
    assert node.counts(broken)["received"] == ejected


def test_an_ejected_replica_is_tried_again_after_its_time(node: RunningNode, model: str) -> None:
    health = QUICK.model_copy(update={"eject_after": 3, "eject_for": 1.0})
    broken, _ = node.serve(model, "1.0.0", replicas=2, health=health)["1.0.0"]
    node.route(model, {"1.0.0": 1})
    node.faults(broken, reset_ratio=1.0)
    with node.client() as client:
        until(lambda: client.infer(model).status == 503 and node.healthy(model, "1.0.0") == 1)
    node.faults(broken, reset_ratio=0.0)
    until(lambda: node.healthy(model, "1.0.0") == 2, 10)


def test_errors_that_a_version_answers_are_passed_on_and_eject_nobody(node: RunningNode, model: str) -> None:
    replicas = node.serve(model, "1.0.0")["1.0.0"]
    node.route(model, {"1.0.0": 1})
    node.faults(replicas[0], error_ratio=1.0)
    with node.client() as client:
        answers = [client.infer(model) for _ in range(50)]
    assert {(answer.status, answer.version) for answer in answers} == {(500, "1.0.0")}
    assert node.counts(replicas[0])["received"] == 50, "an answer is never asked for again"


def test_a_request_that_a_server_has_seen_is_not_sent_twice(node: RunningNode, model: str) -> None:
    replicas = node.serve(model, "1.0.0", "1.1.0", health=QUICK.model_copy(update={"eject_after": 0}))
    node.route(model, {"1.0.0": 1, "1.1.0": 99}, baseline="1.0.0", retries=3)
    node.faults(replicas["1.1.0"][0], reset_ratio=1.0)
    with node.client() as client:
        answers = [client.infer(model) for _ in range(50)]
    reset = sum(answer.status == 503 for answer in answers)
    assert reset == node.counts(replicas["1.1.0"][0])["received"]
    assert 50 - reset == node.counts(replicas["1.0.0"][0])["received"]


def test_a_refused_connection_is_retried_elsewhere(own_node: RunningNode) -> None:
    model = new_model()
    # Health checks that come too late to tell: only a retry can save a request.
    health = Health.model_validate({"interval": "60s", "eject_after": 0})
    dead, _ = own_node.serve(model, "1.0.0", replicas=2, health=health)["1.0.0"]
    own_node.route(model, {"1.0.0": 1})
    own_node.supervisor._call("stopProcess", dead.name)
    assert own_node.count(model, 100) == {"1.0.0": 100}


@pytest.mark.parametrize("replicas", [2])
def test_a_killed_replica_costs_only_what_it_had(own_node: RunningNode, replicas: int) -> None:
    model = new_model()
    first = own_node.serve(model, "1.0.0", replicas=replicas, health=Health())["1.0.0"][0]
    own_node.route(model, {"1.0.0": 1})
    with own_node.load(model, CLIENTS) as load:
        load.wait_for(50)
        own_node.kill(first.name)
        load.wait_for(300)
    assert load.failures <= CLIENTS, f"{load.statuses}, {load.broken}"
