"""Renders settings into Envoy's clusters and routes (v3 API). Pure: no file and no socket is touched here.

A version is a cluster of its replicas. An endpoint is a virtual host for its own host name, and routes for its path
prefix in the virtual host that all endpoints share; both hold the same rules, in this order:

1. a request pinned to a version goes there and nowhere else;
2. a request pinned to a version that the endpoint doesn't have is told so;
3. every other request goes to a variant by weight, and a copy of some to the shadow.

Reference: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/route/v3/route_components.proto
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from infra.names import VERSION_HEADER, endpoint_id
from infra.settings.endpoint import Cookie, EndpointSettings
from infra.settings.version import Health, Protocol
from infra.single_node.machine.stats import FAILOVER, METADATA, SHADOW, VARIANT, cluster_metadata, cluster_name

Json = dict[str, Any]

_REQUEST_ID = "x-request-id"
_CONNECT_TIMEOUT = "1s"
_UNLIMITED = 1_000_000
_LONGEST_ANSWER_BYTES = 1_000_000
# Below the 5 s after which servers such as uvicorn close a connection that nobody uses: never send on a closing one.
_UPSTREAM_IDLE_TIMEOUT = "4s"
# Failures in which no server has seen the request, so that sending it again is safe whatever it does.
_SAFE_TO_RETRY = "connect-failure,refused-stream,reset-before-request"


class ReplicaAddress(TypedDict):
    host: str
    http_port: int
    grpc_port: int | None


class RouteFragment(TypedDict):
    """One endpoint's part of the route table."""

    virtual_host: Json
    path_routes: list[Json]


@dataclass(frozen=True)
class Backend:
    """What an endpoint must know of a version behind it."""

    protocol: Protocol
    grpc: bool


def version_clusters(
    team: str,
    model: str,
    version: str,
    replicas: Sequence[ReplicaAddress],
    health: Health,
    ready_path: str,
    *,
    grpc: bool,
) -> list[Json]:
    """The cluster of a version's replicas, and one more for gRPC if they speak it."""
    protocols = ["http", "grpc"] if grpc else ["http"]
    return [_cluster(team, model, version, replicas, health, ready_path, protocol) for protocol in protocols]


def endpoint_clusters(team: str, settings: EndpointSettings, backends: Mapping[str, Backend]) -> list[Json]:
    """What an endpoint adds to its versions' clusters.

    For each variant but the baseline, a cluster that is the variant while it lives and else the baseline; and for the
    shadow one that is just the version, but whose requests are counted as copies.
    """
    clusters: list[Json] = []
    for protocol in _protocols(backends):
        baseline = settings.baseline_version
        if settings.failover:
            others = [version for version in settings.weights if version != baseline]
            clusters += [
                _aggregate(FAILOVER, team, settings.model, [version, baseline], protocol) for version in others
            ]
        if settings.shadow:
            clusters.append(_aggregate(SHADOW, team, settings.model, [settings.shadow.version], protocol))
    return clusters


def endpoint_routes(team: str, settings: EndpointSettings, backends: Mapping[str, Backend]) -> RouteFragment:
    """The endpoint's virtual host, and its routes under `/TEAM/MODEL/`."""
    prefix = f"/{team}/{settings.model}/"
    host = f"{settings.model}.{team}"
    return {
        "virtual_host": {
            "name": endpoint_id(team, settings.model),
            # `127.0.*` is no host name of an endpoint's: it would take every request to 127.0.0.1.
            "domains": [host] if host.replace(".", "").isdigit() else [host, f"{host}.*"],
            "routes": [*_routes(team, settings, backends, prefix="/")],
        },
        "path_routes": [*_routes(team, settings, backends, prefix=prefix)],
    }


def route_table(name: str, fragments: Iterable[RouteFragment]) -> Json:
    """The whole route configuration of the node: every endpoint's fragment."""
    fragments = list(fragments)
    shared = {
        "name": "by-path",
        "domains": ["*"],
        "routes": [
            *(route for fragment in fragments for route in fragment["path_routes"]),
            _answer({"prefix": "/"}, 404, "no endpoint has this path: an endpoint's URL is /TEAM/MODEL/"),
        ],
    }
    return {
        "name": name,
        "virtual_hosts": [*(fragment["virtual_host"] for fragment in fragments), shared],
        "ignore_port_in_host_matching": True,
        # An endpoint says which versions it has, however many.
        "max_direct_response_body_size_bytes": _LONGEST_ANSWER_BYTES,
    }


def weights_in(virtual_host: Json) -> tuple[dict[str, int], dict[str, float]]:
    """Reads weights and shadow percentages back from a virtual host that `endpoint_routes` made."""
    for route, versions in _weighted_routes(virtual_host["routes"]):
        weights = {
            versions[cluster["name"]]: int(cluster.get("weight", 0))
            for cluster in route["route"]["weighted_clusters"]["clusters"]
        }
        shadow = {
            versions[policy["cluster"]]: policy["runtime_fraction"]["default_value"].get("numerator", 0) / 10_000
            for policy in route["route"].get("request_mirror_policies", [])
        }
        return weights, shadow
    return {}, {}


def with_weights(fragment: RouteFragment, weights: Mapping[str, int]) -> RouteFragment:
    """The fragment with these weights of its variants, all of them, and nothing else changed."""
    changed = copy.deepcopy(fragment)
    for routes in (changed["virtual_host"]["routes"], changed["path_routes"]):
        for route, versions in _weighted_routes(routes):
            for cluster in route["route"]["weighted_clusters"]["clusters"]:
                cluster["weight"] = weights[versions[cluster["name"]]]
    return changed


def _weighted_routes(routes: Iterable[Json]) -> Iterable[tuple[Json, dict[str, str]]]:
    """The routes that draw a variant, each with the versions of the clusters that it names."""
    for route in routes:
        facts = route.get("metadata", {}).get("filter_metadata", {}).get(METADATA, {})
        if facts.get("rule") == "weighted":
            yield route, facts["versions"]


# -- clusters


def _cluster(
    team: str,
    model: str,
    version: str,
    replicas: Sequence[ReplicaAddress],
    health: Health,
    ready_path: str,
    protocol: str,
) -> Json:
    name = cluster_name(VARIANT, team, model, version, protocol)
    grpc = protocol == "grpc"
    return {
        "name": name,
        "metadata": cluster_metadata(team, model, version),
        "type": "STATIC",
        "connect_timeout": _CONNECT_TIMEOUT,
        "lb_policy": "LEAST_REQUEST",
        # A version whose every replica is dead gets nothing, instead of a share for each of the dead.
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            # By default Envoy acts on a change of health up to 1 s late.
            "update_merge_window": "0s",
        },
        "ignore_health_on_host_removal": True,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_endpoint(replica, version, grpc=grpc) for replica in replicas]}],
        },
        "health_checks": [
            {
                "interval": _seconds(health.interval),
                # Else a version without traffic, or one behind a failover cluster, is looked at once a minute.
                "no_traffic_interval": _seconds(health.interval),
                "timeout": _seconds(health.timeout),
                "unhealthy_threshold": health.unhealthy_after,
                "healthy_threshold": health.healthy_after,
                # Envoy's own choice of host is the cluster's name, which strict servers refuse.
                "http_health_check": {"path": ready_path, "host": f"{model}.{team}", "codec_client_type": "HTTP1"},
            }
        ],
        "outlier_detection": {
            # Answers 5xx are the version's own and a gate's to judge; a replica that gives none is broken.
            "consecutive_gateway_failure": health.eject_after or 1,
            "enforcing_consecutive_gateway_failure": 100 if health.eject_after else 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_success_rate": 0,
            "base_ejection_time": _seconds(health.eject_for),
            "interval": _seconds(min(health.eject_for, 1.0)),
            # One that breaks off every answer may well say that it is ready.
            "successful_active_health_check_uneject_host": False,
            "max_ejection_percent": 100,
        },
        "circuit_breakers": _no_limits(),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": _UPSTREAM_IDLE_TIMEOUT},
                "explicit_http_config": {"http2_protocol_options" if grpc else "http_protocol_options": {}},
            }
        },
    }


def _aggregate(role: str, team: str, model: str, versions: list[str], protocol: str) -> Json:
    """A cluster of the first version, and of the next where that has no healthy replica."""
    return {
        "name": cluster_name(role, team, model, versions[0], protocol),
        "metadata": cluster_metadata(team, model, versions[0]),
        "connect_timeout": _CONNECT_TIMEOUT,
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig",
                "clusters": [cluster_name(VARIANT, team, model, version, protocol) for version in versions],
            },
        },
        "circuit_breakers": _no_limits(),
    }


def _endpoint(replica: ReplicaAddress, version: str, *, grpc: bool) -> Json:
    def address(port: int | None) -> Json:
        return {"socket_address": {"address": replica["host"], "port_value": port}}

    endpoint = {"address": address(replica["grpc_port"] if grpc else replica["http_port"])}
    if grpc:
        endpoint["health_check_config"] = {"port_value": replica["http_port"]}
    return {"endpoint": endpoint, "metadata": {"filter_metadata": {METADATA: {"version": version}}}}


def _no_limits() -> Json:
    """Envoy's defaults stop at 1,024 requests and 3 retries at a time; what a version bears is not theirs to say."""
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [dict.fromkeys(names, _UNLIMITED)]}


def _protocols(backends: Mapping[str, Backend]) -> list[str]:
    """gRPC only where every version speaks it: a share of the requests must not meet a version that can't answer."""
    return ["http", "grpc"] if backends and all(backend.grpc for backend in backends.values()) else ["http"]


# -- routes


@dataclass(frozen=True)
class _Kind:
    """A kind of request: how it is told from others, what it is spoken in, and whether its answer may stream."""

    match: Json
    protocol: str
    streams: bool


def _kinds(backends: Mapping[str, Backend]) -> list[_Kind]:
    accepts_events = {"name": "accept", "string_match": {"contains": "text/event-stream"}}
    # Whether OpenAI's API streams stands in the request's body, where no route looks.
    always = any(backend.protocol == "openai" for backend in backends.values())
    kinds = [_Kind({"headers": [accepts_events]}, "http", streams=True), _Kind({}, "http", streams=always)]
    if "grpc" in _protocols(backends):
        kinds.insert(0, _Kind({"grpc": {}}, "grpc", streams=True))
    return kinds


def _routes(team: str, settings: EndpointSettings, backends: Mapping[str, Backend], *, prefix: str) -> Iterable[Json]:
    kinds = _kinds(backends)
    for version in settings.versions:
        for kind in kinds:
            pinned = {"cluster": cluster_name(VARIANT, team, settings.model, version, kind.protocol)}
            yield _route(prefix, kind, settings, pinned, pin={"exact": version}, facts={"rule": "pinned"})
    yield _answer(
        _match(prefix, {}, [{"name": VERSION_HEADER, "present_match": True}]),
        404,
        f"{VERSION_HEADER} names a version that {team}/{settings.model} does not have; "
        f"it has {', '.join(settings.versions)}",
    )
    for kind in kinds:
        if settings.sticky is None:
            yield _weighted_route(team, settings, kind, prefix)
        elif settings.sticky.cookie is None:
            by_header = {"header": {"header_name": settings.sticky.header}}
            yield _weighted_route(team, settings, kind, prefix, by_header)
        else:
            yield from _cookie_routes(team, settings, kind, prefix, settings.sticky.cookie)


def _cookie_routes(team: str, settings: EndpointSettings, kind: _Kind, prefix: str, cookie: Cookie) -> Iterable[Json]:
    """One route for clients that have the cookie, and one that gives it to those that don't.

    Envoy makes cookies only where they choose a replica. So a new client's version is drawn by the request's id, and
    that becomes its cookie: both hash alike, and the client stays where it was.
    """
    has_cookie = {
        "name": "cookie",
        "string_match": {"safe_regex": {"regex": rf"(.*[;,]\s*)?{re.escape(cookie.name)}=.*"}},
    }
    match = kind.match | {"headers": [*kind.match.get("headers", []), has_cookie]}
    by_cookie = {"cookie": {"name": cookie.name}}
    yield _weighted_route(team, settings, replace(kind, match=match), prefix, by_cookie)

    route = _weighted_route(team, settings, kind, prefix, {"header": {"header_name": _REQUEST_ID}})
    attributes = f"Max-Age={max(1, round(cookie.ttl))}; Path={prefix}; HttpOnly"
    value = f"{cookie.name.replace('%', '%%')}=%REQ({_REQUEST_ID})%; {attributes}"
    route["response_headers_to_add"].append({"header": {"key": "set-cookie", "value": value}})
    yield route


def _weighted_route(
    team: str, settings: EndpointSettings, kind: _Kind, prefix: str, hash_policy: Json | None = None
) -> Json:
    def target(version: str) -> str:
        fails_over = settings.failover and version != settings.baseline_version
        return cluster_name(FAILOVER if fails_over else VARIANT, team, settings.model, version, kind.protocol)

    versions = {target(version): version for version in settings.weights}
    action: Json = {
        "weighted_clusters": {
            "clusters": [{"name": target(version), "weight": weight} for version, weight in settings.weights.items()]
        }
    }
    if hash_policy:
        # The variant is drawn by the client's hash, so that the weights hold over clients.
        action["weighted_clusters"]["use_hash_policy"] = True
        action["hash_policy"] = [hash_policy]
    if settings.shadow:
        shadow = cluster_name(SHADOW, team, settings.model, settings.shadow.version, kind.protocol)
        versions[shadow] = settings.shadow.version
        action["request_mirror_policies"] = [
            {
                "cluster": shadow,
                "runtime_fraction": {
                    "default_value": {"numerator": round(settings.shadow.percent * 10_000), "denominator": "MILLION"}
                },
                "disable_shadow_host_suffix_append": True,
            }
        ]
    return _route(prefix, kind, settings, action, pin=None, facts={"rule": "weighted", "versions": versions})


def _route(
    prefix: str, kind: _Kind, settings: EndpointSettings, action: Json, *, pin: Json | None, facts: Json
) -> Json:
    pins = [{"name": VERSION_HEADER, "string_match": pin}] if pin else []
    timeouts = settings.timeouts
    return {
        "match": _match(prefix, kind.match, pins),
        "metadata": {"filter_metadata": {METADATA: facts}},
        "route": action
        | {
            "prefix_rewrite": "/",
            # An attempt's time ends where its answer starts, so it cuts no stream; the whole's time would.
            "timeout": "0s" if kind.streams else _seconds(timeouts.total),
            "idle_timeout": _seconds(timeouts.idle),
            "retry_policy": {
                "retry_on": _SAFE_TO_RETRY,
                "num_retries": settings.retries,
                "per_try_timeout": _seconds(timeouts.per_try),
                # A retry leaves the dead for the next priority of a failover cluster: the baseline.
                "retry_priority": {
                    "name": "envoy.retry_priorities.previous_priorities",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3"
                        ".PreviousPrioritiesConfig",
                        "update_frequency": 1,
                    },
                },
                # And the dead replica for another one of its version.
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3"
                            ".PreviousHostsPredicate"
                        },
                    }
                ],
                "host_selection_retry_max_attempts": 10,
            },
        },
        "response_headers_to_add": [
            {
                # Of the replica that answered: behind a failover that is not the variant that was drawn.
                "header": {"key": VERSION_HEADER, "value": f"%UPSTREAM_METADATA({METADATA}:version)%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }


def _match(prefix: str, kind: Json, pins: list[Json]) -> Json:
    return {"prefix": prefix, **kind, "headers": [*kind.get("headers", []), *pins]}


def _answer(match: Json, status: int, error: str) -> Json:
    body = json.dumps({"error": error}) + "\n"
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": body}},
        "response_headers_to_add": [{"header": {"key": "content-type", "value": "application/json"}}],
    }


def _seconds(value: float) -> str:
    """A protobuf Duration in its JSON form."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
