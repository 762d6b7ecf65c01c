"""How an endpoint splits its requests over versions, told by real requests."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tests.deadline import until
from tests.single_node.running_node import BODY, TEAM, RunningNode

# A right split misses these bounds once in a million runs.
_NORMAL_BOUND = 4.9
_CHI2_BOUND_2_DEGREES = -2 * math.log(1e-6)


def assert_share(count: int, total: int, share: float) -> None:
    allowed = _NORMAL_BOUND * math.sqrt(total * share * (1 - share)) + 1
    assert abs(count - total * share) <= allowed, f"{count} of {total} is no share of {share:g}"


def test_two_variants_share_requests_by_weight(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 90, "1.1.0": 10})
    assert_share(node.count(model, 2000)["1.1.0"], 2000, 0.1)


def test_three_variants_share_requests_by_weights_of_any_sum(node: RunningNode, model: str) -> None:
    weights = {"1.0.0": 5, "1.1.0": 3, "2.0.0-rc.1": 2}
    node.serve(model, *weights)
    node.route(model, weights)
    found = node.count(model, 2000)
    expected = {version: 2000 * weight / sum(weights.values()) for version, weight in weights.items()}
    chi2 = sum((found[version] - number) ** 2 / number for version, number in expected.items())
    assert chi2 < _CHI2_BOUND_2_DEGREES, found


def test_a_weight_change_moves_the_split(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 100, "1.1.0": 0})
    assert node.count(model, 200) == {"1.0.0": 200}
    node.route(model, {"1.0.0": 0, "1.1.0": 100})
    assert node.count(model, 200) == {"1.1.0": 200}


def test_the_weights_read_back_are_those_that_run(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0", "1.2.0")
    node.route(model, {"1.0.0": 70, "1.1.0": 30}, shadow={"version": "1.2.0", "percent": 12.5})
    assert node.router.traffic(f"{TEAM}.{model}") == ({"1.0.0": 70, "1.1.0": 30}, {"1.2.0": 12.5})


def test_a_variant_of_weight_0_is_reached_by_its_version_header(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 100, "1.1.0": 0})
    assert node.count(model, 50, {"x-model-version": "1.1.0"}) == {"1.1.0": 50}


def test_a_pinned_request_goes_to_its_version_whatever_the_weights(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 50, "1.1.0": 50})
    assert node.count(model, 100, {"X-Model-Version": "1.0.0"}) == {"1.0.0": 100}


def test_a_pin_to_an_unknown_version_is_told_which_there_are(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0", "1.2.0")
    node.route(model, {"1.0.0": 50, "1.1.0": 50}, shadow={"version": "1.2.0", "percent": 1})
    with node.client() as client:
        answer = client.infer(model, {"x-model-version": "9.9.9"})
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert all(version in answer.json["error"] for version in ("1.0.0", "1.1.0", "1.2.0", f"{TEAM}/{model}"))


def test_a_client_with_the_sticky_header_stays_and_weights_hold_over_clients(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 80, "1.1.0": 20}, sticky={"header": "x-user"})
    versions: Counter[str | None] = Counter()
    with node.client() as client:
        for user in range(800):
            seen = {client.infer(model, {"x-user": f"user-{user}"}).version for _ in range(2)}
            assert len(seen) == 1, f"user {user} was moved between {seen}"
            versions.update(seen)
    assert_share(versions["1.1.0"], 800, 0.2)


def test_a_client_with_the_sticky_cookie_stays_and_weights_hold_over_clients(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 80, "1.1.0": 20}, sticky={"cookie": {"name": "session", "ttl": "1h"}})
    versions: Counter[str | None] = Counter()
    with node.client() as client:
        for _ in range(800):
            first = client.infer(model)
            cookie = first.headers["set-cookie"].split(";")[0]
            assert cookie.startswith("session=")
            again = client.infer(model, {"cookie": f"a=b; {cookie}"})
            assert again.version == first.version
            assert "set-cookie" not in again.headers
            versions[first.version] += 1
    assert_share(versions["1.1.0"], 800, 0.2)


def test_a_shadow_gets_its_share_of_copies_and_answers_nobody(node: RunningNode, model: str) -> None:
    replicas = node.serve(model, "1.0.0", "2.0.0")
    node.route(model, {"1.0.0": 1}, shadow={"version": "2.0.0", "percent": 30})
    assert node.count(model, 1000) == {"1.0.0": 1000}
    shadow = replicas["2.0.0"][0]
    until(lambda: node.counts(shadow)["received"] == node.counts(shadow)["served"], what="the copies are answered")
    assert_share(node.counts(shadow)["received"], 1000, 0.3)


@pytest.mark.parametrize("fault", [{"error_ratio": 1.0}, {"reset_ratio": 1.0}, {"hang": True}])
def test_a_broken_shadow_does_not_touch_the_client(node: RunningNode, model: str, fault: dict[str, object]) -> None:
    replicas = node.serve(model, "1.0.0", "2.0.0")
    node.route(model, {"1.0.0": 1}, shadow={"version": "2.0.0", "percent": 100})
    node.faults(replicas["2.0.0"][0], **fault)
    with node.client(timeout=5) as client:
        assert {client.infer(model).status for _ in range(100)} == {200}
    until(lambda: node.counts(replicas["2.0.0"][0])["received"] > 0, what="the shadow got copies")


def test_the_path_prefix_does_not_reach_the_server(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1})
    with node.client() as client:
        answer = client.request("GET", f"/{TEAM}/{model}/echo/a/b?c=d")
    assert (answer.json["path"], answer.json["query"]) == ("/echo/a/b", "c=d")


@pytest.mark.parametrize("host", ["{model}.{team}", "{model}.{team}.localhost:7080", "{model}.{team}.example.com"])
def test_an_endpoint_is_reached_by_its_host_name(node: RunningNode, model: str, host: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1})
    with node.client() as client:
        answer = client.request(
            "POST", f"/v2/models/{model}/infer", {"host": host.format(model=model, team=TEAM)}, BODY
        )
    assert (answer.status, answer.version) == (200, "1.0.0")


def test_an_endpoint_named_like_an_address_takes_no_requests_of_others(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1})
    node.serve("127", "1.0.0", team="0")
    node.route("127", {"1.0.0": 1}, team="0")
    with node.client() as client:
        assert client.infer(model, {"host": f"127.0.0.1:{node.port}"}).status == 200
        assert client.request("POST", "/0/127/v2/models/127/infer", body=BODY).status == 200


def test_an_unknown_path_is_answered_404_in_json(node: RunningNode) -> None:
    with node.client() as client:
        answer = client.request("GET", "/nobody/nothing/v2/health/ready")
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert "/TEAM/MODEL/" in answer.json["error"]


def test_a_request_larger_than_the_routers_buffers_passes(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 1}, shadow={"version": "1.1.0", "percent": 100})
    with node.client() as client:
        body = BODY[:-1] + b', "padding": "' + b"x" * 16_000_000 + b'"}'
        assert client.request("POST", f"/{TEAM}/{model}/v2/models/{model}/infer", body=body).status == 200
