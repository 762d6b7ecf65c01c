"""An endpoint as routes of the Gateway API: what it splits by weight, what it copies, and what a client may pin.

The HTTPRoute `MODEL` holds, in this order:

1. a rule for each version: a request pinned to it (`x-model-version`) goes there and nowhere else;
2. where the class can match patterns, a rule without a backend: a request pinned to any other version is an error;
3. where there is a time limit, a rule for answers that stream, which has none;
4. the split: every other request goes to a variant by weight, and a copy of some to the shadow.

Versions that find no room there are pinned by further routes, `MODEL.pins-2` and so on. Where all versions speak gRPC,
a GRPCRoute `MODEL.grpc` does the same for the host name `MODEL.TEAM`. Why so: docs/decisions/gateway.md.

Reference: https://gateway-api.sigs.k8s.io/reference/spec/ (1.4)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from infra.cluster.features import Abilities, UnsupportedError, abilities, refuse_unsupported
from infra.cluster.internals import GatewayFacts
from infra.cluster.manifests import Manifest
from infra.cluster.names import (
    ENVIRONMENT_LABEL,
    GRPC_PORT,
    HTTP_PORT,
    MANAGED_BY,
    MODEL_LABEL,
    SERVER,
    TEAM_LABEL,
    VARIANTS_ANNOTATION,
    route_name,
    team_namespace,
)
from infra.contracts import Traffic
from infra.names import VERSION_HEADER
from infra.settings.endpoint import EndpointSettings, Shadow
from infra.settings.version import Protocol

Json = dict[str, Any]

API_VERSION = "gateway.networking.k8s.io/v1"
HTTP_ROUTE = "HTTPRoute"
GRPC_ROUTE = "GRPCRoute"
SESSIONS = "sessionPersistence"
"""Of a rule: that it keeps clients at a version."""
SHADOW_ANNOTATION = "lepton/shadow"
"""On a route: JSON, as VARIANTS_ANNOTATION, of the version that gets copies."""

_MOST_RULES = 16
_MOST_BACKENDS = 16
_MILLION = 1_000_000
_UNBOUNDED: Json = {"timeouts": {"request": "0s"}}
"""Where a rule doesn't say so, classes have a limit of their own: Envoy Gateway 15 s."""
_UNITS = (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


class Backend(TypedDict):
    """What a version exports for its endpoint."""

    namespace: str
    protocol: Protocol
    grpc: bool


@dataclass(frozen=True)
class _Endpoint:
    team: str
    environment: str
    gateway: GatewayFacts
    settings: EndpointSettings
    backends: Mapping[str, Backend]
    can: Abilities

    @property
    def streams_always(self) -> bool:
        """Whether an answer streams stands in the body of a request to OpenAI's API, where no route looks."""
        return any(backend["protocol"] == "openai" for backend in self.backends.values())


def endpoint_routes(
    team: str, gateway: GatewayFacts, settings: EndpointSettings, backends: Mapping[str, Backend]
) -> list[Manifest]:
    """The routes of an endpoint, the one that splits its traffic first.

    `backends`: by version, of every version that the settings name.

    Raises:
        UnsupportedError: for a setting that the GatewayClass can't do, or more variants than weights hold for.
    """
    refuse_unsupported(settings, gateway)
    _refuse_too_many(settings)
    endpoint = _Endpoint(team, settings.environment, gateway, settings, backends, abilities(gateway))
    if endpoint.streams_always and "per_try" in settings.timeouts.model_fields_set:
        raise UnsupportedError(
            "lepton:endpoint.timeouts.per_try: the Gateway API bounds an attempt until its answer has ended, and "
            "answers of OpenAI's API may stream; leave it out"
        )
    return [*_http_routes(endpoint), *(_grpc_routes(endpoint) if speaks_grpc(team, gateway, backends) else [])]


def speaks_grpc(team: str, gateway: GatewayFacts, backends: Mapping[str, Backend]) -> bool:
    """Whether the endpoint has a GRPCRoute.

    A share of the requests must not meet a version that can't answer; and on a listener that is for one host name,
    that name's requests are the HTTPRoutes' already, and no listener takes both kinds for one name.
    """
    return _all_speak_grpc(backends) and why_no_grpc(team, gateway, backends) is None


def why_no_grpc(team: str, gateway: GatewayFacts, backends: Mapping[str, Backend]) -> str | None:
    """What keeps an endpoint from gRPC whose versions all speak it: a phrase; None where nothing does."""
    if not _all_speak_grpc(backends):
        return None
    if team in gateway["hostnames"]:
        return (
            f"its Gateway's listener is for the host name {gateway['hostnames'][team]} (the platform's `domain`), "
            "which HTTP has, and a GRPCRoute may not share; leave `domain` out, or `grpc` of the versions"
        )
    if not abilities(gateway).grpc:
        return f"GatewayClass {gateway['class_name']} doesn't say that it can do it ({GRPC_ROUTE})"
    return None


def is_split(rule: Mapping[str, Any]) -> bool:
    """Whether a rule of these routes draws a variant by weight: no pin is asked for."""
    headers = [header for match in rule.get("matches", []) for header in match.get("headers", [])]
    return all(header["name"].lower() != VERSION_HEADER for header in headers)


def split_backends(
    weights: Mapping[str, int],
    namespaces: Mapping[str, str],
    gateway: GatewayFacts,
    *,
    grpc: bool = False,
    sticky: bool = False,
) -> list[Json]:
    """The `backendRefs` of a rule that draws a variant; those of weight 0 are none.

    `sticky`: the rule keeps sessions. Its answers then name no version: Envoy Gateway makes a cluster of each backend
    with filters, draws one for each request, and keeps a session in there alone.
    """
    names = abilities(gateway).names_version_in_split and not sticky
    return [
        _backend(namespaces[version], grpc=grpc)
        | {"weight": weight}
        | ({"filters": [_names(version)]} if names else {})
        for version, weight in weights.items()
        if weight
    ]


def traffic_in(route: Manifest) -> Traffic:
    """Reads weights and the shadow's percentage back from a route that `endpoint_routes` made, as it is now.

    Backends that no variant has go by their namespace.
    """
    annotations = route["metadata"].get("annotations", {})
    variants: dict[str, str] = json.loads(annotations.get(VARIANTS_ANNOTATION, "{}"))
    shadows: dict[str, str] = json.loads(annotations.get(SHADOW_ANNOTATION, "{}"))
    weights = dict.fromkeys(variants.values(), 0)
    shadow: dict[str, float] = {}
    for rule in cast("list[Json]", route["spec"].get("rules", [])):
        if not is_split(rule):
            continue
        for backend in rule.get("backendRefs", []):
            namespace: str = backend.get("namespace", route["metadata"]["namespace"])
            weights[variants.get(namespace, namespace)] = backend.get("weight", 1)
        for mirror in (f["requestMirror"] for f in rule.get("filters", []) if f["type"] == "RequestMirror"):
            copied: str = mirror["backendRef"].get("namespace", route["metadata"]["namespace"])
            shadow[shadows.get(copied, copied)] = _percent_in(mirror)
    return {"weights": weights, "shadow": shadow}


def duration(seconds: float) -> str:
    """As the Gateway API writes it, to the millisecond. https://gateway-api.sigs.k8s.io/geps/gep-2257/"""
    left = max(1, round(seconds * 1000))
    parts: list[str] = []
    for unit, milliseconds in _UNITS:
        count, left = divmod(left, milliseconds)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


# -- HTTP


def _http_routes(endpoint: _Endpoint) -> list[Manifest]:
    versions = endpoint.settings.versions
    limited = endpoint.can.total_timeout and not endpoint.streams_always
    refusal, streams = endpoint.can.matches_patterns, limited
    room = _MOST_RULES - 1 - refusal - streams
    # Rules of several routes that match alike go by the routes' age, so only in one route do pins surely come first.
    if len(versions) > room:
        refusal = streams = False
        limited = limited and "total" in endpoint.settings.timeouts.model_fields_set
        room = _MOST_RULES - 1
    here, *others = _chunks(versions, room, _MOST_RULES)
    timeouts = _timeouts(endpoint, limited=limited)
    rules = [_pin(endpoint, version, timeouts) for version in here]
    if refusal:
        rules.append(
            {"matches": [_match(endpoint, {"type": "RegularExpression", "name": VERSION_HEADER, "value": ".+"})]}
        )
    if streams:
        # Envoy Gateway takes exact values before patterns, so as one this would come before the refusal.
        kind = "RegularExpression" if refusal else "Exact"
        events: Json = {"type": kind, "name": "accept", "value": "text/event-stream"}
        rules.append(_split(endpoint, _match(endpoint, events), _UNBOUNDED))
    rules.append(_split(endpoint, _match(endpoint), timeouts))
    name = route_name(endpoint.settings.model)
    main = _route(endpoint, HTTP_ROUTE, name, rules)
    further = [
        _route(endpoint, HTTP_ROUTE, f"{name}.pins-{number}", [_pin(endpoint, version, timeouts) for version in chunk])
        for number, chunk in enumerate(others, start=2)
    ]
    return [main, *further]


def _split(endpoint: _Endpoint, match: Json, timeouts: Json) -> Json:
    settings, can = endpoint.settings, endpoint.can
    cookie = settings.sticky and settings.sticky.cookie if can.sessions else None
    namespaces = _namespaces(endpoint)
    rule: Json = {
        "matches": [match],
        "filters": [_rewrite(), *_mirrors(endpoint, grpc=False)],
        "backendRefs": split_backends(settings.weights, namespaces, endpoint.gateway, sticky=bool(cookie)),
        **timeouts,
    }
    if can.retries and settings.retries:
        # Without codes, only requests of which no answer came are sent again.
        rule["retry"] = {"attempts": settings.retries}
    if cookie:
        rule[SESSIONS] = {
            "sessionName": cookie.name,
            "type": "Cookie",
            "absoluteTimeout": duration(cookie.ttl),
            "cookieConfig": {"lifetimeType": "Permanent"},
        }
    return rule


def _pin(endpoint: _Endpoint, version: str, timeouts: Json) -> Json:
    names = [_names(version)] if endpoint.can.names_version_of_pins else []
    return {
        "matches": [_match(endpoint, _exactly(version))],
        "filters": [_rewrite(), *names],
        "backendRefs": [_backend(endpoint.backends[version]["namespace"], grpc=False)],
        **timeouts,
    }


def _timeouts(endpoint: _Endpoint, *, limited: bool) -> Json:
    given = endpoint.settings.timeouts
    found: dict[str, str] = {}
    if limited:
        found["request"] = duration(given.total)
    elif endpoint.can.total_timeout:
        found |= _UNBOUNDED["timeouts"]
    # By default an attempt is bounded until its answer starts; this bounds it until its answer ends.
    if endpoint.can.attempt_timeout and "per_try" in given.model_fields_set:
        found["backendRequest"] = duration(min(given.per_try, given.total) if limited else given.per_try)
    return {"timeouts": found} if found else {}


def _match(endpoint: _Endpoint, *headers: Json) -> Json:
    path = {"type": "PathPrefix", "value": f"/{endpoint.team}/{endpoint.settings.model}"}
    return {"path": path} | ({"headers": list(headers)} if headers else {})


def _rewrite() -> Json:
    return {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}


# -- gRPC


def _all_speak_grpc(backends: Mapping[str, Backend]) -> bool:
    return all(backend["grpc"] for backend in backends.values())


def _grpc_routes(endpoint: _Endpoint) -> Iterable[Manifest]:
    here, *others = _chunks(endpoint.settings.versions, _MOST_RULES - 1, _MOST_RULES)
    split: Json = {
        "backendRefs": split_backends(endpoint.settings.weights, _namespaces(endpoint), endpoint.gateway, grpc=True)
    }
    mirrors = _mirrors(endpoint, grpc=True)
    if mirrors:
        split["filters"] = mirrors
    name = f"{route_name(endpoint.settings.model)}.grpc"
    yield _route(endpoint, GRPC_ROUTE, name, [*(_grpc_pin(endpoint, version) for version in here), split])
    for number, chunk in enumerate(others, start=2):
        rules = [_grpc_pin(endpoint, version) for version in chunk]
        yield _route(endpoint, GRPC_ROUTE, f"{name}-{number}", rules)


def _grpc_pin(endpoint: _Endpoint, version: str) -> Json:
    rule: Json = {
        "matches": [{"headers": [_exactly(version)]}],
        "backendRefs": [_backend(endpoint.backends[version]["namespace"], grpc=True)],
    }
    # Header filters of GRPCRoutes have no feature name; who can do them for each backend can do them for a rule.
    return rule | ({"filters": [_names(version)]} if endpoint.can.names_version_in_split else {})


# -- both


def _route(endpoint: _Endpoint, kind: str, name: str, rules: Sequence[Json]) -> Manifest:
    team, settings, gateway = endpoint.team, endpoint.settings, endpoint.gateway
    hostname = gateway["hostnames"].get(team)
    hostnames = [f"{settings.model}.{team}"] if kind == GRPC_ROUTE else [hostname] if hostname else []
    variants = {endpoint.backends[version]["namespace"]: version for version in settings.weights}
    shadow = settings.shadow and {endpoint.backends[settings.shadow.version]["namespace"]: settings.shadow.version}
    spec: Json = {
        "parentRefs": [
            {"name": gateway["name"], "namespace": gateway["namespace"], "sectionName": gateway["listeners"][team]}
        ]
    }
    if hostnames:
        spec["hostnames"] = hostnames
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": team_namespace(endpoint.environment, team),
            "labels": {
                **MANAGED_BY,
                ENVIRONMENT_LABEL: endpoint.environment,
                TEAM_LABEL: team,
                MODEL_LABEL: settings.model,
            },
            "annotations": {
                VARIANTS_ANNOTATION: json.dumps(variants),
                **({SHADOW_ANNOTATION: json.dumps(shadow)} if shadow else {}),
            },
        },
        "spec": spec | {"rules": list(rules)},
    }


def _mirrors(endpoint: _Endpoint, *, grpc: bool) -> list[Json]:
    shadow = endpoint.settings.shadow
    if shadow is None:
        return []
    backend = _backend(endpoint.backends[shadow.version]["namespace"], grpc=grpc)
    return [{"type": "RequestMirror", "requestMirror": {"backendRef": backend, **_share(shadow)}}]


def _share(shadow: Shadow) -> Json:
    if shadow.percent == 100:
        return {}
    if shadow.percent.is_integer():
        return {"percent": int(shadow.percent)}
    return {"fraction": {"numerator": max(1, round(shadow.percent * _MILLION / 100)), "denominator": _MILLION}}


def _percent_in(mirror: Json) -> float:
    if "fraction" in mirror:
        return 100 * mirror["fraction"]["numerator"] / mirror["fraction"].get("denominator", 100)
    return float(mirror.get("percent", 100))


def _namespaces(endpoint: _Endpoint) -> dict[str, str]:
    return {version: backend["namespace"] for version, backend in endpoint.backends.items()}


def _backend(namespace: str, *, grpc: bool) -> Json:
    return {"name": SERVER, "namespace": namespace, "port": GRPC_PORT if grpc else HTTP_PORT}


def _names(version: str) -> Json:
    """The filter that has an answer name the version that gave it."""
    return {
        "type": "ResponseHeaderModifier",
        "responseHeaderModifier": {"set": [{"name": VERSION_HEADER, "value": version}]},
    }


def _exactly(version: str) -> Json:
    return {"type": "Exact", "name": VERSION_HEADER, "value": version}


def _chunks(versions: Sequence[str], first: int, others: int) -> list[Sequence[str]]:
    rest = range(first, len(versions), others)
    return [versions[:first], *(versions[start : start + others] for start in rest)]


def _refuse_too_many(settings: EndpointSettings) -> None:
    weighted = [version for version, weight in settings.weights.items() if weight]
    if len(weighted) > _MOST_BACKENDS:
        raise UnsupportedError(
            f"lepton:endpoint.variants: {len(weighted)} variants have weight, and a route's rule draws among at most "
            f"{_MOST_BACKENDS} (a request meets one rule alone, so several would not hold the weights); give "
            f"{len(weighted) - _MOST_BACKENDS} of them weight 0"
        )
