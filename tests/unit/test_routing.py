"""Properties of the rendered clusters and routes, whatever the settings."""

from __future__ import annotations

import json
import re
from typing import Any, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from infra.settings.endpoint import EndpointSettings
from infra.settings.version import Health
from infra.single_node.machine.stats import LABELS, SHADOW, VARIANT, cluster_name
from infra.single_node.routing import (
    Backend,
    ReplicaAddress,
    endpoint_clusters,
    endpoint_routes,
    route_table,
    version_clusters,
    weights_in,
    with_weights,
)

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
NUMBERS = st.integers(0, 30)
VERSIONS = st.builds(
    lambda numbers, pre: ".".join(map(str, numbers)) + pre,
    st.tuples(NUMBERS, NUMBERS, NUMBERS),
    st.sampled_from(["", "-rc.1", "-alpha-2", "-0"]),
)
DURATIONS = st.sampled_from(["1ms", "250ms", "1.5s", "90s", "5m", "365d"])
TOKENS = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}", fullmatch=True)
STICKY = st.one_of(
    st.none(),
    st.fixed_dictionaries({"header": TOKENS}),
    st.fixed_dictionaries({"cookie": st.fixed_dictionaries({"name": TOKENS, "ttl": DURATIONS})}),
)


@st.composite
def endpoints(draw: st.DrawFn) -> EndpointSettings:
    versions = draw(st.lists(VERSIONS, min_size=1, max_size=6, unique=True))
    weights = draw(st.lists(st.integers(0, 1_000_000), min_size=len(versions), max_size=len(versions)))
    assume(any(weights))
    shadow = draw(
        st.none()
        | st.fixed_dictionaries({"version": VERSIONS, "percent": st.integers(1, 1_000_000).map(lambda n: n / 10_000)})
    )
    return EndpointSettings.model_validate(
        {
            "environment": "dev",
            "model": draw(NAMES),
            "variants": [
                {"version": version, "weight": weight} for version, weight in zip(versions, weights, strict=True)
            ],
            "baseline": draw(st.none() | st.sampled_from(versions)),
            "shadow": shadow,
            "sticky": draw(STICKY),
            "failover": draw(st.booleans()),
            "timeouts": {"per_try": draw(DURATIONS), "total": draw(DURATIONS), "idle": draw(DURATIONS)},
            "retries": draw(st.integers(0, 10)),
        }
    )


def backends_of(settings: EndpointSettings, protocol: Any = "oip-v2", *, grpc: bool = False) -> dict[str, Backend]:
    return {version: Backend(protocol, grpc) for version in settings.versions}


def clusters_named_in(value: Any) -> set[str]:
    """Every cluster that a request can be sent to, or copied to."""
    if isinstance(value, list):
        return {name for item in cast("list[Any]", value) for name in clusters_named_in(item)}
    if not isinstance(value, dict):
        return set()
    fields = cast("dict[str, Any]", value)
    names = {fields["cluster"]} if isinstance(fields.get("cluster"), str) else set[str]()
    if "weighted_clusters" in fields:
        names |= {cluster["name"] for cluster in fields["weighted_clusters"]["clusters"]}
    return names.union(*(clusters_named_in(item) for item in fields.values()))


def replica(port: int, grpc_port: int | None = None) -> ReplicaAddress:
    return {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc_port}


@given(NAMES, endpoints(), st.booleans())
def test_weights_and_shadow_are_read_back_as_they_were_set(team: str, settings: EndpointSettings, grpc: bool) -> None:
    host = endpoint_routes(team, settings, backends_of(settings, grpc=grpc))["virtual_host"]
    weights, shadow = weights_in(json.loads(json.dumps(host)))
    assert weights == settings.weights
    assert shadow == ({settings.shadow.version: pytest.approx(settings.shadow.percent)} if settings.shadow else {})


@given(NAMES, endpoints(), st.booleans(), st.data())
def test_other_weights_put_into_a_fragment_are_those_that_settings_would_render(
    team: str, settings: EndpointSettings, grpc: bool, data: st.DataObject
) -> None:
    weights = {version: data.draw(st.integers(0, 1_000_000)) for version in settings.weights}
    assume(any(weights.values()))
    backends = backends_of(settings, grpc=grpc)
    fragment = endpoint_routes(team, settings, backends)

    changed = with_weights(json.loads(json.dumps(fragment)), weights)

    variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
    document = settings.model_dump(mode="json") | {"variants": variants, "baseline": settings.baseline_version}
    wanted = endpoint_routes(team, EndpointSettings.model_validate(document), backends)
    assert changed == json.loads(json.dumps(wanted))
    assert weights_in(changed["virtual_host"]) == (weights, weights_in(fragment["virtual_host"])[1])


@given(NAMES, endpoints(), st.booleans())
def test_every_cluster_that_routes_name_is_there(team: str, settings: EndpointSettings, grpc: bool) -> None:
    backends = backends_of(settings, grpc=grpc)
    there = {
        cluster["name"]
        for version in settings.versions
        for cluster in version_clusters(team, settings.model, version, [replica(1, 2)], Health(), "/ready", grpc=grpc)
    }
    own = endpoint_clusters(team, settings, backends)
    behind = {name for cluster in own for name in cluster["cluster_type"]["typed_config"]["clusters"]}
    assert behind <= there
    names = [cluster["name"] for cluster in own]
    assert len(names) == len(set(names))
    fragment = endpoint_routes(team, settings, backends)
    assert clusters_named_in([fragment["virtual_host"], fragment["path_routes"]]) <= there | set(names)


@given(NAMES, NAMES, endpoints(), endpoints())
def test_no_endpoints_routes_match_anothers_requests(
    team: str, other_team: str, settings: EndpointSettings, other: EndpointSettings
) -> None:
    assume((team, settings.model) != (other_team, other.model))
    ours = endpoint_routes(team, settings, backends_of(settings))
    theirs = f"/{other_team}/{other.model}/v2/models/{other.model}/infer"
    assert not [route for route in ours["path_routes"] if theirs.startswith(route["match"]["prefix"])]
    for host in (f"{other.model}.{other_team}", f"{other.model}.{other_team}.localhost"):
        for domain in ours["virtual_host"]["domains"]:
            assert host != domain
            assert not (domain.endswith("*") and host.startswith(domain[:-1]))


@given(NAMES, endpoints())
def test_no_host_name_is_an_address(team: str, settings: EndpointSettings) -> None:
    for domain in endpoint_routes(team, settings, backends_of(settings))["virtual_host"]["domains"]:
        assert not re.match(r"\d+\.\d+\.\*", domain)
        assert "*" not in domain[:-1]


@given(NAMES, endpoints(), st.sampled_from(["oip-v2", "openai"]))
def test_path_and_host_name_lead_to_the_same_rules(team: str, settings: EndpointSettings, protocol: str) -> None:
    fragment = endpoint_routes(team, settings, backends_of(settings, protocol))
    prefix = f"/{team}/{settings.model}/"

    def rules(routes: list[dict[str, Any]]) -> Any:
        return json.loads(json.dumps(routes).replace(json.dumps(prefix), '"/"').replace(f"Path={prefix}", "Path=/"))

    assert rules(fragment["path_routes"]) == rules(fragment["virtual_host"]["routes"])


@given(NAMES, endpoints(), st.booleans())
def test_a_request_that_is_not_weighed_is_pinned_or_refused(team: str, settings: EndpointSettings, grpc: bool) -> None:
    routes = endpoint_routes(team, settings, backends_of(settings, grpc=grpc))["path_routes"]
    refusal = next(index for index, route in enumerate(routes) if "direct_response" in route)

    def pins(route: dict[str, Any]) -> list[Any]:
        return [header for header in route["match"]["headers"] if header["name"] == "x-model-version"]

    pinned = {header["string_match"]["exact"] for route in routes[:refusal] for header in pins(route)}
    assert pinned == set(settings.versions)
    assert pins(routes[refusal]) == [{"name": "x-model-version", "present_match": True}]
    assert not any(pins(route) for route in routes[refusal + 1 :])
    assert all(version in routes[refusal]["direct_response"]["body"]["inline_string"] for version in settings.versions)


@given(NAMES, endpoints(), st.booleans())
def test_only_requests_that_no_server_has_seen_are_retried(team: str, settings: EndpointSettings, grpc: bool) -> None:
    fragment = endpoint_routes(team, settings, backends_of(settings, grpc=grpc))
    policies = [route["route"]["retry_policy"] for route in fragment["path_routes"] if "route" in route]
    safe = {"connect-failure", "refused-stream", "reset-before-request"}
    assert policies
    assert all(set(policy["retry_on"].split(",")) <= safe for policy in policies)
    assert {policy["num_retries"] for policy in policies} == {settings.retries}


@given(NAMES, endpoints())
def test_no_total_timeout_cuts_what_may_stream(team: str, settings: EndpointSettings) -> None:
    grpc = endpoint_routes(team, settings, backends_of(settings, grpc=True))["path_routes"]
    openai = endpoint_routes(team, settings, backends_of(settings, "openai"))["path_routes"]
    streaming = [route for route in grpc if "grpc" in route["match"] or "text/event-stream" in str(route["match"])]
    streaming += [route for route in openai if "route" in route]
    assert {route["route"]["timeout"] for route in streaming} == {"0s"}


@given(endpoints())
def test_grpc_is_offered_only_where_every_version_speaks_it(settings: EndpointSettings) -> None:
    assume(len(settings.versions) > 1)
    backends = backends_of(settings, grpc=True) | {settings.versions[0]: Backend("oip-v2", grpc=False)}
    assert not [r for r in endpoint_routes("t", settings, backends)["path_routes"] if "grpc" in r["match"]]


@given(st.lists(st.tuples(NAMES, endpoints()), max_size=4, unique_by=lambda one: (one[0], one[1].model)))
def test_the_route_table_has_each_domain_once_and_refuses_the_rest(
    many: list[tuple[str, EndpointSettings]],
) -> None:
    table = route_table("routes", [endpoint_routes(team, one, backends_of(one)) for team, one in many])
    hosts = table["virtual_hosts"]
    domains = [domain for host in hosts for domain in host["domains"]]
    assert len(domains) == len(set(domains))
    assert len({host["name"] for host in hosts}) == len(hosts)
    last = hosts[-1]["routes"][-1]
    assert (last["match"], last["direct_response"]["status"]) == ({"prefix": "/"}, 404)


@given(endpoints())
def test_failover_leads_from_every_other_variant_to_the_baseline(settings: EndpointSettings) -> None:
    clusters = endpoint_clusters("t", settings, backends_of(settings))
    baseline = cluster_name(VARIANT, "t", settings.model, settings.baseline_version)
    shadow = f"{SHADOW}|"
    last = [c["cluster_type"]["typed_config"]["clusters"][-1] for c in clusters if not c["name"].startswith(shadow)]
    assert last == [baseline] * (len(settings.weights) - 1 if settings.failover else 0)


@given(NAMES, NAMES, VERSIONS, NAMES, NAMES, VERSIONS)
def test_no_two_versions_share_a_cluster(
    team: str, model: str, version: str, other_team: str, other_model: str, other_version: str
) -> None:
    assume((team, model, version) != (other_team, other_model, other_version))
    name = cluster_name(VARIANT, team, model, version)
    assert name != cluster_name(VARIANT, other_team, other_model, other_version)
    assert name.count("|") == len(LABELS)


def test_replicas_become_endpoints_and_grpc_is_checked_over_http() -> None:
    replicas = [replica(1001, 2001), replica(1002, 2002)]
    http, grpc = version_clusters("t", "m", "1.0.0", replicas, Health(), "/ready", grpc=True)

    def ports(cluster: dict[str, Any]) -> list[int]:
        endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        return [endpoint["endpoint"]["address"]["socket_address"]["port_value"] for endpoint in endpoints]

    assert (ports(http), ports(grpc)) == ([1001, 1002], [2001, 2002])
    checked = [
        e["endpoint"]["health_check_config"]["port_value"]
        for e in grpc["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ]
    assert checked == [1001, 1002]


def test_idle_connections_are_closed_before_common_servers_close_them() -> None:
    (cluster,) = version_clusters("t", "m", "1.0.0", [replica(1)], Health(), "/ready", grpc=False)
    (options,) = cluster["typed_extension_protocol_options"].values()
    # uvicorn, and with it MLServer and vLLM, closes after 5 s.
    assert float(options["common_http_protocol_options"]["idle_timeout"].removesuffix("s")) < 5


def test_a_version_without_replicas_is_a_cluster_of_none() -> None:
    (cluster,) = version_clusters("t", "m", "1.0.0", [], Health(), "/ready", grpc=False)
    assert cluster["load_assignment"]["endpoints"] == [{"lb_endpoints": []}]
    assert weights_in({"routes": []}) == ({}, {})
