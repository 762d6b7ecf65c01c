"""Which settings of an endpoint a GatewayClass can do: by what its status says, else by which controller it is. Pure.

Feature names: https://gateway-api.sigs.k8s.io/geps/gep-2162/ and `pkg/features` of the Gateway API.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from infra.cluster.controllers import CILIUM, ENVOY_GATEWAY, ISTIO, KGATEWAY, TRAEFIK
from infra.cluster.internals import GatewayFacts
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.gateway import supported_features
from infra.errors import UserError
from infra.settings.endpoint import EndpointSettings

_PATH_REWRITE = "HTTPRoutePathRewrite"
_RESPONSE_HEADERS = "HTTPRouteResponseHeaderModification"
_BACKEND_HEADERS = "HTTPRouteBackendRequestHeaderModification"
_MIRROR = "HTTPRouteRequestMirror"
_MIRROR_SHARE = "HTTPRouteRequestPercentageMirror"
_REQUEST_TIMEOUT = "HTTPRouteRequestTimeout"
_BACKEND_TIMEOUT = "HTTPRouteBackendTimeout"
_RETRY = ("HTTPRouteRetry", "HTTPRouteRetryConnectionError")
_GRPC = "GRPCRoute"
_SESSIONS = "sessionPersistence"

_FIELDS = {
    "retry": _RETRY,
    _SESSIONS: (),
    "timeouts": (_REQUEST_TIMEOUT, _BACKEND_TIMEOUT),
    "filters.requestMirror.percent": (_MIRROR_SHARE,),
    "filters.requestMirror.fraction": (_MIRROR_SHARE,),
}
"""Fields of an HTTPRoute's rule that not each release and channel of the Gateway API has, and what needs them."""

_MATCHES_PATTERNS = frozenset({CILIUM, ENVOY_GATEWAY, ISTIO, KGATEWAY, TRAEFIK})
"""Controllers that match headers by regular expressions, which the API leaves to them and has no feature name for."""

_UNSAID = {
    ENVOY_GATEWAY: (
        _BACKEND_HEADERS,
        _BACKEND_TIMEOUT,
        _GRPC,
        _MIRROR,
        _MIRROR_SHARE,
        _PATH_REWRITE,
        _REQUEST_TIMEOUT,
        _RESPONSE_HEADERS,
        *_RETRY,
    )
}
"""What controllers can do that never fill `status.supportedFeatures`."""

_KEEPS_SESSIONS = frozenset({ENVOY_GATEWAY})
"""Controllers that do `sessionPersistence`, an experimental field without a feature name."""


class UnsupportedError(UserError):
    """The environment's GatewayClass can't do what an endpoint's config asks for."""


@dataclass(frozen=True)
class Abilities:
    """What routes may use of the Gateway API with one GatewayClass."""

    names_version_in_split: bool
    """Whether an answer of the split can name its version: a header filter for each backend."""
    names_version_of_pins: bool
    matches_patterns: bool
    """Whether a header can be matched by a regular expression."""
    total_timeout: bool
    attempt_timeout: bool
    retries: bool
    sessions: bool
    grpc: bool


def class_features(found: Manifest) -> list[str]:
    """What a GatewayClass can do: what its status says; where that says nothing, what its controller is known for."""
    return supported_features(found) or list(_UNSAID.get(found["spec"]["controllerName"], ()))


def lacking(routes: Manifest) -> list[str]:
    """Fields that HTTPRoutes don't have in a cluster, by their CustomResourceDefinition.

    A controller's status says what it can do, of which the API server may refuse each use: retries and session
    persistence are in the experimental channel alone. https://gateway-api.sigs.k8s.io/concepts/versioning/
    """
    served = next((version for version in routes["spec"]["versions"] if version["name"] == "v1"), None)
    rule = _at((served or {}).get("schema", {}).get("openAPIV3Schema", {}), "spec.rules")
    # A schema that doesn't describe rules refuses none of their fields.
    return [field for field in _FIELDS if rule and _at(rule, field) is None]


def _at(schema: dict[str, Any] | None, path: str) -> dict[str, Any] | None:
    """The schema of a field; of its items where it is a list. None: there is no such field."""
    for name in path.split("."):
        schema = schema and schema.get("properties", {}).get(name)
        schema = schema and schema.get("items", schema)
    return schema


def _features(gateway: GatewayFacts) -> frozenset[str]:
    """What the class says that it can do, and the cluster's routes have the fields for."""
    unusable = {feature for field in gateway.get("lacks", []) for feature in _FIELDS.get(field, ())}
    return frozenset(gateway["features"]) - unusable


def abilities(gateway: GatewayFacts) -> Abilities:
    """What the class's status says of it, as far as the cluster's routes have the fields for it."""
    features = _features(gateway)
    names_version_of_pins = _RESPONSE_HEADERS in features
    return Abilities(
        # The API has a name for request headers of backends alone; controllers that do those do answers' too.
        names_version_in_split=names_version_of_pins and _BACKEND_HEADERS in features,
        names_version_of_pins=names_version_of_pins,
        matches_patterns=gateway["controller"] in _MATCHES_PATTERNS,
        total_timeout=_REQUEST_TIMEOUT in features,
        attempt_timeout=_BACKEND_TIMEOUT in features,
        retries=features.issuperset(_RETRY),
        sessions=gateway["controller"] in _KEEPS_SESSIONS and _SESSIONS not in gateway.get("lacks", []),
        grpc=_GRPC in features,
    )


def refuse_unsupported(settings: EndpointSettings, gateway: GatewayFacts) -> None:
    """Raises UnsupportedError for all settings that were given and that the class can't do.

    Defaults that it can't do are left out of the routes.
    """
    name, features = gateway["class_name"], frozenset(gateway["features"])
    lines: list[str] = []

    def need(key: str, what: str, *needed: str) -> None:
        lines.extend(_unsupported(gateway, key, what, needed))

    def never(key: str, why: str) -> None:
        lines.append(f"{key}: {why}; {_MEND}")

    if _PATH_REWRITE not in features:
        raise UnsupportedError(
            f"GatewayClass {name} doesn't say that it can rewrite paths ({_PATH_REWRITE}), which every endpoint needs; "
            + (
                "have the platform use another class"
                if features
                else "its status names no features at all: upgrade its controller, or have the platform use another "
                "class"
            )
        )
    given = settings.model_fields_set
    if settings.shadow:
        shares = [] if settings.shadow.percent == 100 else [_MIRROR_SHARE]
        what = "mirror requests" if not shares else "mirror a percentage of requests"
        need("lepton:endpoint.shadow", what, _MIRROR, *shares)
    if settings.sticky and settings.sticky.header:
        never(
            "lepton:endpoint.sticky.header",
            "the Gateway API can't choose a version by a header that clients send (its session persistence makes "
            "tokens of its own)",
        )
    if settings.sticky and settings.sticky.cookie and gateway["controller"] not in _KEEPS_SESSIONS:
        never(
            "lepton:endpoint.sticky.cookie",
            f"GatewayClass {name} ({gateway['controller']}) is not known to do session persistence, which is in the "
            "experimental channel of the Gateway API; the controllers that are: " + ", ".join(sorted(_KEEPS_SESSIONS)),
        )
    elif settings.sticky and settings.sticky.cookie and _SESSIONS in gateway.get("lacks", []):
        lines.append(_without_field("lepton:endpoint.sticky.cookie", [_SESSIONS]))
    if "failover" in given and settings.failover:
        never("lepton:endpoint.failover", "the Gateway API has nothing that hands a dead variant's share to another")
    if "timeouts" in given:
        lines += _unsupported_timeouts(settings.timeouts.model_fields_set, gateway)
    if "retries" in given and settings.retries:
        need("lepton:endpoint.retries", "retry requests that no server has seen", *_RETRY)
    if lines:
        raise UnsupportedError("\n".join(lines))


_MEND = "leave it out, or have the platform use a class that can"


def _unsupported(gateway: GatewayFacts, key: str, what: str, needed: Collection[str]) -> Iterator[str]:
    missing = [feature for feature in needed if feature not in gateway["features"]]
    fields = [field for field in gateway.get("lacks", []) if not set(needed).isdisjoint(_FIELDS.get(field, ()))]
    if missing:
        name = gateway["class_name"]
        yield f"{key}: GatewayClass {name} doesn't say that it can {what} ({', '.join(missing)}); {_MEND}"
    elif fields:
        yield _without_field(key, fields)


def _without_field(key: str, fields: Collection[str]) -> str:
    return (
        f"{key}: the cluster's HTTPRoutes have no {' and no '.join(f'rules.{field}' for field in fields)}; leave it "
        "out, or install CRDs of the Gateway API that have it (a newer release, or the experimental channel) and bring "
        "the platform up anew"
    )


def _unsupported_timeouts(given: Collection[str], gateway: GatewayFacts) -> list[str]:
    lines: list[str] = []
    for key, what, feature in (
        ("total", "bound a request's time", _REQUEST_TIMEOUT),
        ("per_try", "bound an attempt's time", _BACKEND_TIMEOUT),
    ):
        if key in given:
            lines += _unsupported(gateway, f"lepton:endpoint.timeouts.{key}", what, [feature])
    if "idle" in given:
        lines.append(
            "lepton:endpoint.timeouts.idle: the Gateway API has no timeout of a connection without a byte; leave it "
            "out, and set it in the class's own configuration"
        )
    return lines
