"""Which settings of an endpoint a GatewayClass can do, and what is said of those that it can't."""

from __future__ import annotations

from typing import Any

import pytest

from infra.cluster.features import UnsupportedError, abilities, class_features, lacking, refuse_unsupported
from infra.cluster.internals import GatewayFacts
from tests.cluster.endpoint_world import endpoint_settings

TRAEFIK = ("HTTPRoute", "GRPCRoute", "HTTPRoutePathRewrite", "HTTPRouteResponseHeaderModification")
EVERYTHING = (
    *TRAEFIK,
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteBackendTimeout",
    "HTTPRouteRetry",
    "HTTPRouteRetryConnectionError",
)
ENVOY_GATEWAY = "gateway.envoyproxy.io/gatewayclass-controller"


def facts(*features: str, controller: str = "example.com/controller", hostname: str | None = None) -> GatewayFacts:
    return {
        "name": "lepton",
        "namespace": "lepton-dev",
        "class_name": "thin",
        "controller": controller,
        "features": sorted(features),
        "listeners": {"diagnostics": "http"},
        "hostnames": {"diagnostics": hostname} if hostname else {},
        "pods_namespace": None,
    }


def refusal(gateway: GatewayFacts, **settings: Any) -> str:
    with pytest.raises(UnsupportedError) as caught:
        refuse_unsupported(endpoint_settings({"1.0.0": 1}, **settings), gateway)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"shadow": {"version": "1.0.0", "percent": 5}},
            "lepton:endpoint.shadow: GatewayClass thin doesn't say that it can mirror a percentage of requests "
            "(HTTPRouteRequestMirror, HTTPRouteRequestPercentageMirror); leave it out, or have the platform use a "
            "class that can",
        ),
        (
            {"shadow": {"version": "1.0.0", "percent": 100}},
            "lepton:endpoint.shadow: GatewayClass thin doesn't say that it can mirror requests "
            "(HTTPRouteRequestMirror); leave it out",
        ),
        ({"sticky": {"header": "x-user"}}, "lepton:endpoint.sticky.header: the Gateway API can't choose a version"),
        ({"sticky": {"cookie": {"name": "c"}}}, "lepton:endpoint.sticky.cookie: GatewayClass thin"),
        ({"failover": True}, "lepton:endpoint.failover: the Gateway API has nothing"),
        ({"timeouts": {"total": "5s"}}, "lepton:endpoint.timeouts.total: GatewayClass thin doesn't say"),
        ({"timeouts": {"per_try": "5s"}}, "lepton:endpoint.timeouts.per_try: GatewayClass thin doesn't say"),
        ({"timeouts": {"idle": "5s"}}, "lepton:endpoint.timeouts.idle: the Gateway API has no timeout"),
        (
            {"retries": 3},
            "lepton:endpoint.retries: GatewayClass thin doesn't say that it can retry requests that no server has seen "
            "(HTTPRouteRetry, HTTPRouteRetryConnectionError)",
        ),
    ],
)
def test_a_setting_that_was_given_and_the_class_cannot_do_is_an_error(settings: dict[str, Any], said: str) -> None:
    assert refusal(facts(*TRAEFIK), **settings).startswith(said)


def test_all_of_them_are_named_at_once() -> None:
    assert len(refusal(facts(*TRAEFIK), retries=3, failover=True, timeouts={"idle": "5s"}).splitlines()) == 3


@pytest.mark.parametrize(
    "settings",
    [{}, {"failover": False}, {"retries": 0}, {"timeouts": {}}],
    ids=["defaults", "no failover", "no retries", "no timeout"],
)
def test_defaults_and_what_asks_for_nothing_are_no_error(settings: dict[str, Any]) -> None:
    refuse_unsupported(endpoint_settings({"1.0.0": 1}, **settings), facts(*TRAEFIK))


@pytest.mark.parametrize(
    "settings",
    [
        {"shadow": {"version": "1.0.0", "percent": 5}},
        {"timeouts": {"total": "5s", "per_try": "5s"}},
        {"retries": 3},
        {"sticky": {"cookie": {"name": "c"}}},
    ],
)
def test_what_the_class_can_do_is_no_error(settings: dict[str, Any]) -> None:
    refuse_unsupported(endpoint_settings({"1.0.0": 1}, **settings), facts(*EVERYTHING, controller=ENVOY_GATEWAY))


def test_a_mirror_of_every_request_needs_no_percentage() -> None:
    settings = endpoint_settings({"1.0.0": 1}, shadow={"version": "1.0.0", "percent": 100})
    refuse_unsupported(settings, facts(*TRAEFIK, "HTTPRouteRequestMirror"))


def test_a_class_that_cannot_rewrite_paths_can_serve_no_endpoint() -> None:
    assert "rewrite paths (HTTPRoutePathRewrite), which every endpoint needs" in refusal(facts("HTTPRoute"))
    assert "names no features at all: upgrade its controller" in refusal(facts())


def test_a_class_that_filters_headers_of_backends_names_versions_in_the_split() -> None:
    assert abilities(facts(*EVERYTHING)).names_version_in_split
    assert not abilities(facts(*TRAEFIK)).names_version_in_split
    assert abilities(facts(*TRAEFIK)).names_version_of_pins


def test_a_class_of_a_known_controller_that_never_says_what_it_can_do_is_taken_to_do_it() -> None:
    found: dict[str, Any] = {"spec": {"controllerName": ENVOY_GATEWAY}, "status": {}}
    known = class_features(found)
    settings = {
        "retries": 3,
        "shadow": {"version": "1.0.0", "percent": 5},
        "timeouts": {"total": "5s", "per_try": "1s"},
    }
    refuse_unsupported(
        endpoint_settings({"1.0.0": 1}, **settings, sticky={"cookie": {"name": "c"}}),
        facts(*known, controller=ENVOY_GATEWAY),
    )
    assert abilities(facts(*known)).grpc
    found["status"] = {"supportedFeatures": [{"name": "HTTPRoute"}]}
    assert class_features(found) == ["HTTPRoute"]
    assert class_features({"spec": {"controllerName": "example.com/controller"}}) == []


def lacks(gateway: GatewayFacts, *fields: str) -> GatewayFacts:
    return {**gateway, "lacks": list(fields)}


def test_what_the_clusters_routes_have_no_field_for_is_no_ability_whatever_the_class_says() -> None:
    envoy = facts(*EVERYTHING, controller=ENVOY_GATEWAY)
    assert abilities(envoy).retries
    assert abilities(envoy).sessions
    standard = abilities(lacks(envoy, "retry", "sessionPersistence"))
    assert (standard.retries, standard.sessions, standard.total_timeout) == (False, False, True)
    old = abilities(lacks(envoy, "timeouts"))
    assert (old.total_timeout, old.attempt_timeout, old.retries) == (False, False, True)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"retries": 3}, "retry"),
        ({"sticky": {"cookie": {"name": "c"}}}, "sessionPersistence"),
        ({"timeouts": {"total": "5s"}}, "timeouts"),
        ({"shadow": {"version": "1.0.0", "percent": 2.5}}, "filters.requestMirror.fraction"),
    ],
)
def test_a_setting_without_a_field_is_told_the_crds_that_have_it(settings: dict[str, Any], field: str) -> None:
    said = refusal(lacks(facts(*EVERYTHING, controller=ENVOY_GATEWAY), field), **settings)
    assert f"the cluster's HTTPRoutes have no rules.{field}; leave it out, or install CRDs" in said


def test_defaults_without_a_field_are_no_error() -> None:
    refuse_unsupported(endpoint_settings({"1.0.0": 1}), lacks(facts(*EVERYTHING), "retry", "timeouts"))


def test_a_schema_that_describes_no_rules_refuses_none_of_their_fields() -> None:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    assert lacking({"spec": {"versions": [{"name": "v1", "schema": schema}]}}) == []
