"""An endpoint's routes: what their rules say, and that the API server takes each as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from infra.cluster.features import UnsupportedError
from infra.cluster.internals import GatewayFacts
from infra.cluster.live.routes import route_problem
from infra.cluster.manifests.claims import claim, deletion_policy
from infra.cluster.manifests.routes import Backend, duration, endpoint_routes, is_split, traffic_in, why_no_grpc
from infra.cluster.names import VARIANTS_ANNOTATION
from infra.settings.version import Protocol
from tests.cluster.control_plane import ControlPlane
from tests.cluster.endpoint_world import endpoint_settings
from tests.cluster.gateway import GatewayClass
from tests.cluster.test_features import EVERYTHING, TRAEFIK, facts
from tests.plugins.kubernetes.api import ApiError

Json = dict[str, Any]

ENVOY_GATEWAY = "gateway.envoyproxy.io/gatewayclass-controller"
TRAEFIK_CONTROLLER = "traefik.io/gateway-controller"
SHADOW = {"version": "3.0.0", "percent": 2.5}


def routes(
    weights: Mapping[str, int],
    gateway: GatewayFacts,
    *,
    protocol: Protocol = "oip-v2",
    grpc: bool = False,
    **settings: Any,
) -> list[Json]:
    document = endpoint_settings(weights, **settings)
    backends: dict[str, Backend] = {
        version: {"namespace": f"tumour-{version.replace('.', '-')}", "protocol": protocol, "grpc": grpc}
        for version in document.versions
    }
    return endpoint_routes("diagnostics", gateway, document, backends)


def rules(route: Json) -> list[Json]:
    return route["spec"]["rules"]


def split(route: Json) -> Json:
    return rules(route)[-1]


def pins(found: list[Json]) -> dict[str, str]:
    """The namespace by pinned version."""
    return {
        match["headers"][0]["value"]: rule["backendRefs"][0]["namespace"]
        for route in found
        for rule in rules(route)
        for match in rule.get("matches", [])
        if not is_split(rule) and match["headers"][0]["type"] == "Exact"
    }


def versions(count: int) -> list[str]:
    return [f"1.0.{number}" for number in range(count)]


# -- the split


def test_weights_are_relative_weights_of_backends_in_the_versions_namespaces() -> None:
    (route,) = routes({"1.0.0": 90, "2.0.0": 10}, facts(*TRAEFIK))
    assert split(route)["backendRefs"] == [
        {"name": "server", "namespace": "tumour-1-0-0", "port": 8080, "weight": 90},
        {"name": "server", "namespace": "tumour-2-0-0", "port": 8080, "weight": 10},
    ]


def test_a_variant_without_weight_is_no_backend_of_the_split_and_can_be_pinned() -> None:
    found = routes({"1.0.0": 1, "2.0.0": 0}, facts(*TRAEFIK))
    assert [backend["namespace"] for backend in split(found[0])["backendRefs"]] == ["tumour-1-0-0"]
    assert pins(found) == {"1.0.0": "tumour-1-0-0", "2.0.0": "tumour-2-0-0"}


def test_the_endpoints_own_path_is_rewritten_away() -> None:
    (route,) = routes({"1.0.0": 1}, facts(*TRAEFIK))
    for rule in rules(route):
        assert rule["matches"][0]["path"] == {"type": "PathPrefix", "value": "/diagnostics/tumour"}
        assert rule["filters"][0]["urlRewrite"]["path"]["replacePrefixMatch"] == "/"


def test_a_route_is_of_its_teams_listener_and_host_name() -> None:
    (route,) = routes({"1.0.0": 1}, facts(*TRAEFIK, hostname="diagnostics.example.com"))
    assert route["spec"]["parentRefs"] == [{"name": "lepton", "namespace": "lepton-dev", "sectionName": "http"}]
    assert route["spec"]["hostnames"] == ["diagnostics.example.com"]
    assert "hostnames" not in routes({"1.0.0": 1}, facts(*TRAEFIK))[0]["spec"]


def test_answers_name_their_version_where_the_class_filters_headers_of_backends() -> None:
    (route,) = routes({"1.0.0": 1, "2.0.0": 1}, facts(*EVERYTHING))
    named = [backend["filters"][0]["responseHeaderModifier"]["set"] for backend in split(route)["backendRefs"]]
    assert named == [[{"name": "x-model-version", "value": version}] for version in ("1.0.0", "2.0.0")]


def test_what_was_written_is_read_back() -> None:
    (route,) = routes({"1.0.0": 9, "2.0.0": 0}, facts(*EVERYTHING), shadow=SHADOW)
    assert traffic_in(route) == {"weights": {"1.0.0": 9, "2.0.0": 0}, "shadow": {"3.0.0": 2.5}}
    assert json.loads(route["metadata"]["annotations"][VARIANTS_ANNOTATION]) == {
        "tumour-1-0-0": "1.0.0",
        "tumour-2-0-0": "2.0.0",
    }


def test_a_backend_that_is_no_variant_is_read_back_by_its_namespace() -> None:
    (route,) = routes({"1.0.0": 9}, facts(*TRAEFIK))
    split(route)["backendRefs"].append({"name": "server", "namespace": "somebody-elses", "port": 8080, "weight": 1})
    assert traffic_in(route)["weights"] == {"1.0.0": 9, "somebody-elses": 1}


@pytest.mark.parametrize(
    ("percent", "written"),
    [(100, {}), (5, {"percent": 5}), (2.5, {"fraction": {"numerator": 25_000, "denominator": 1_000_000}})],
)
def test_a_share_of_the_requests_is_mirrored_to_the_shadow(percent: float, written: Json) -> None:
    (route,) = routes({"1.0.0": 1}, facts(*EVERYTHING), shadow={"version": "3.0.0", "percent": percent})
    mirror = split(route)["filters"][1]["requestMirror"]
    assert mirror == {"backendRef": {"name": "server", "namespace": "tumour-3-0-0", "port": 8080}, **written}
    assert traffic_in(route)["shadow"] == {"3.0.0": percent}


# -- many variants


def test_seventeen_weights_are_refused_as_no_rule_can_hold_them() -> None:
    with pytest.raises(UnsupportedError, match=r"17 variants have weight.*at most 16 .*give 1 of them weight 0"):
        routes(dict.fromkeys(versions(17), 1), facts(*TRAEFIK))


def test_many_variants_are_pinned_by_further_routes_and_none_is_lost() -> None:
    weights = {version: int(number < 16) for number, version in enumerate(versions(50))}
    found = routes(weights, facts(*EVERYTHING, controller=TRAEFIK_CONTROLLER))
    assert [route["metadata"]["name"] for route in found] == [
        "tumour",
        "tumour.pins-2",
        "tumour.pins-3",
        "tumour.pins-4",
    ]
    assert max(len(rules(route)) for route in found) == 16
    assert pins(found).keys() == set(weights)
    assert len(split(found[0])["backendRefs"]) == 16
    # Of rules in several routes that match alike the older one wins, so none but pins may ask for the header.
    assert all(
        is_split(rule) or rule["matches"][0]["headers"][0]["type"] == "Exact" for r in found for rule in rules(r)
    )


def test_a_pin_of_another_version_is_answered_by_nobody_where_the_class_matches_patterns() -> None:
    (route,) = routes({"1.0.0": 1}, facts(*EVERYTHING, controller=TRAEFIK_CONTROLLER))
    pin, refusal, streams, rest = rules(route)
    assert pin["matches"][0]["headers"][0]["value"] == "1.0.0"
    assert refusal["matches"][0]["headers"] == [{"type": "RegularExpression", "name": "x-model-version", "value": ".+"}]
    assert "backendRefs" not in refusal
    assert is_split(streams)
    assert is_split(rest)


# -- timeouts, retries, sessions


def test_requests_for_streams_meet_the_refusal_of_unknown_pins_first_where_exact_values_go_before_patterns() -> None:
    (route,) = routes({"1.0.0": 1}, facts(*EVERYTHING, controller=ENVOY_GATEWAY))
    _, refusal, streams, _ = rules(route)
    kinds = [rule["matches"][0]["headers"][0]["type"] for rule in (refusal, streams)]
    assert kinds == ["RegularExpression", "RegularExpression"]


def test_a_request_is_bounded_but_where_its_answer_streams() -> None:
    (route,) = routes({"1.0.0": 3, "2.0.0": 1}, facts(*EVERYTHING), timeouts={"total": "90s"})
    *_, streams, rest = rules(route)
    assert rest["timeouts"] == {"request": "1m30s"}
    assert streams["matches"][0]["headers"] == [{"type": "Exact", "name": "accept", "value": "text/event-stream"}]
    # A class may bound what says nothing.
    assert streams["timeouts"] == {"request": "0s"}
    assert streams["backendRefs"] == rest["backendRefs"]


def test_an_attempt_is_bounded_when_that_was_asked_for_and_never_beyond_the_whole() -> None:
    assert "backendRequest" not in split(routes({"1.0.0": 1}, facts(*EVERYTHING))[0])["timeouts"]
    (route,) = routes({"1.0.0": 1}, facts(*EVERYTHING), timeouts={"total": "10s", "per_try": "20s"})
    assert split(route)["timeouts"] == {"request": "10s", "backendRequest": "10s"}


def test_answers_of_openai_servers_may_stream_and_are_not_bounded() -> None:
    (route,) = routes({"1.0.0": 1}, facts(*EVERYTHING), protocol="openai", timeouts={"total": "10s"})
    assert all(rule["timeouts"] == {"request": "0s"} for rule in rules(route))
    assert "timeouts" not in split(routes({"1.0.0": 1}, facts(*TRAEFIK), protocol="openai")[0])
    with pytest.raises(UnsupportedError, match=r"timeouts\.per_try.*may stream"):
        routes({"1.0.0": 1}, facts(*EVERYTHING), protocol="openai", timeouts={"per_try": "10s"})


def test_requests_that_no_server_has_seen_are_sent_again() -> None:
    assert split(routes({"1.0.0": 1}, facts(*EVERYTHING), retries=3)[0])["retry"] == {"attempts": 3}
    assert "retry" not in split(routes({"1.0.0": 1}, facts(*EVERYTHING), retries=0)[0])
    assert "retry" not in split(routes({"1.0.0": 1}, facts(*TRAEFIK))[0])


def test_a_client_with_the_cookie_stays_where_it_was() -> None:
    gateway = facts(*EVERYTHING, controller=ENVOY_GATEWAY)
    (route,) = routes({"1.0.0": 1}, gateway, sticky={"cookie": {"name": "client", "ttl": "2h"}})
    assert split(route)["sessionPersistence"] == {
        "sessionName": "client",
        "type": "Cookie",
        "absoluteTimeout": "2h",
        "cookieConfig": {"lifetimeType": "Permanent"},
    }


def test_backends_that_keep_sessions_have_no_filters_as_a_session_would_end_with_them() -> None:
    gateway = facts(*EVERYTHING, controller=ENVOY_GATEWAY)
    settings: dict[str, Any] = {"sticky": {"cookie": {"name": "client"}}}
    http, grpc = routes({"1.0.0": 1, "2.0.0": 1}, gateway, grpc=True, **settings)
    pin, *_, streams, rest = rules(http)
    assert not any("filters" in backend for rule in (streams, rest) for backend in rule["backendRefs"])
    assert pin["filters"][1]["type"] == "ResponseHeaderModifier"
    # Sessions are HTTP's alone.
    assert all("filters" in backend for backend in split(grpc)["backendRefs"])


@pytest.mark.parametrize(
    ("seconds", "written"), [(60, "1m"), (90.5, "1m30s500ms"), (0.25, "250ms"), (86400, "24h"), (0.0001, "1ms")]
)
def test_durations_are_written_as_the_gateway_api_reads_them(seconds: float, written: str) -> None:
    assert duration(seconds) == written


# -- gRPC


def test_versions_that_all_speak_grpc_have_a_route_for_it_at_the_endpoints_host_name() -> None:
    http, grpc = routes({"1.0.0": 9, "2.0.0": 1}, facts(*TRAEFIK), grpc=True)
    assert (http["kind"], grpc["kind"]) == ("HTTPRoute", "GRPCRoute")
    assert grpc["spec"]["hostnames"] == ["tumour.diagnostics"]
    assert [(b["port"], b["weight"]) for b in split(grpc)["backendRefs"]] == [(8081, 9), (8081, 1)]
    assert traffic_in(grpc) == traffic_in(http)
    assert pins([grpc]) == {"1.0.0": "tumour-1-0-0", "2.0.0": "tumour-2-0-0"}


def test_there_is_no_route_for_grpc_where_http_has_the_host_name_already_and_it_is_said() -> None:
    of_a_domain, without_grpc = facts(*TRAEFIK, hostname="diagnostics.example.com"), facts("HTTPRoutePathRewrite")
    assert len(routes({"1.0.0": 1}, of_a_domain, grpc=True)) == 1
    assert len(routes({"1.0.0": 1}, without_grpc, grpc=True)) == 1
    speaks: dict[str, Backend] = {"1.0.0": {"namespace": "tumour-1", "protocol": "oip-v2", "grpc": True}}
    mute: dict[str, Backend] = {"1.0.0": {"namespace": "tumour-1", "protocol": "oip-v2", "grpc": False}}
    assert "is for the host name diagnostics.example.com" in (why_no_grpc("diagnostics", of_a_domain, speaks) or "")
    assert "doesn't say that it can" in (why_no_grpc("diagnostics", without_grpc, speaks) or "")
    assert why_no_grpc("diagnostics", facts(*TRAEFIK), speaks) is None
    assert why_no_grpc("diagnostics", of_a_domain, mute) is None


# -- what a Gateway says


def status(route: Json, *conditions: tuple[str, str, int]) -> Json:
    parent = {
        "controllerName": "example.com/controller",
        "parentRef": route["spec"]["parentRefs"][0],
        "conditions": [
            {"type": kind, "status": value, "observedGeneration": generation, "reason": "Because", "message": "so"}
            for kind, value, generation in conditions
        ],
    }
    metadata = route["metadata"] | {"generation": 2}
    return route | {"metadata": metadata, "status": {"parents": [parent]}}


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ([("Accepted", "True", 2), ("ResolvedRefs", "True", 2)], None),
        ([("Accepted", "True", 1), ("ResolvedRefs", "True", 1)], "has not taken on generation 2 of HTTPRoute"),
        ([("Accepted", "True", 2)], "has not taken on generation 2 of HTTPRoute"),
        ([("Accepted", "True", 2), ("ResolvedRefs", "False", 2)], "is not ResolvedRefs: Because: so"),
        ([("Accepted", "False", 2), ("ResolvedRefs", "True", 2)], "is not Accepted: Because: so"),
    ],
)
def test_a_route_is_in_force_by_conditions_of_its_generation(
    conditions: list[tuple[str, str, int]], said: str | None
) -> None:
    gateway = facts(*TRAEFIK)
    problem = route_problem(status(routes({"1.0.0": 1}, gateway)[0], *conditions), gateway)
    assert (problem is None) == (said is None)
    assert said is None or said in str(problem)


def test_another_gateways_word_is_not_asked_for() -> None:
    gateway = facts(*TRAEFIK)
    route = status(routes({"1.0.0": 1}, gateway)[0], ("Accepted", "True", 2), ("ResolvedRefs", "True", 2))
    route["status"]["parents"][0]["parentRef"] = {"name": "other", "namespace": "lepton-dev"}
    assert "has not said anything" in str(route_problem(route, gateway))


# -- the API server


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shadow": SHADOW, "timeouts": {"total": "90s", "per_try": "20s"}},
        {"shadow": {"version": "3.0.0", "percent": 5}},
    ],
)
@pytest.mark.parametrize("count", [1, 3, 16, 50])
def test_the_api_server_takes_every_route_as_it_is(
    control_plane: ControlPlane, gateway_class: GatewayClass, count: int, settings: Json
) -> None:
    weights = {version: int(number < 16) for number, version in enumerate(versions(count))}
    # In the standard channel there are no retries.
    features = [feature for feature in EVERYTHING if "Retry" not in feature]
    for route in routes(weights, facts(*features, controller=TRAEFIK_CONTROLLER), grpc=True, **settings):
        control_plane.namespace(route["metadata"]["namespace"])
        control_plane.apply(route, dry_run=True)


def test_fields_of_another_channel_are_refused_and_not_dropped(
    control_plane: ControlPlane, gateway_class: GatewayClass
) -> None:
    (route,) = routes({"1.0.0": 1}, facts(*EVERYTHING), retries=3)
    control_plane.namespace(route["metadata"]["namespace"])
    with pytest.raises(ApiError, match="retry"):
        control_plane.apply(route, dry_run=True)


def test_the_api_server_takes_claims_and_their_policy(control_plane: ControlPlane, gateway_class: GatewayClass) -> None:
    control_plane.namespace("claimed")
    control_plane.apply(claim("dev", "diagnostics", "tumour", "claimed"), dry_run=True)
    for manifest in deletion_policy("dev", "lepton-dev"):
        control_plane.apply(manifest, dry_run=True)
