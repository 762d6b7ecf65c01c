"""The Gateway that all endpoints of an environment share: its listeners, and what its status says of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infra.cluster.manifests import Manifest
from infra.cluster.names import ENVIRONMENT_LABEL, GATEWAY, MANAGED_BY, TEAM_LABEL
from infra.settings.cluster import GatewaySettings

_ISSUER_ANNOTATION = "cert-manager.io/cluster-issuer"
"""https://cert-manager.io/docs/usage/gateway/"""


def gateway(environment: str, namespace: str, teams: Iterable[str], settings: GatewaySettings) -> Manifest:
    """The Gateway, with one listener for all teams, or with a domain one for each.

    https://gateway-api.sigs.k8s.io/reference/spec/#gateway
    """
    if settings.domain is None:
        selector = {
            "matchLabels": {ENVIRONMENT_LABEL: environment},
            "matchExpressions": [{"key": TEAM_LABEL, "operator": "Exists"}],
        }
        listeners = [_listener(settings.scheme, settings, selector, certificate=None)]
    else:
        names, hostnames = listener_names(teams, settings), listener_hostnames(teams, settings)
        listeners = [
            _listener(
                names[team],
                settings,
                {"matchLabels": {ENVIRONMENT_LABEL: environment, TEAM_LABEL: team}},
                # What cert-manager makes, one for each name.
                certificate=f"{GATEWAY}-{team}-tls",
            )
            | {"hostname": hostnames[team]}
            for team in names
        ]
    metadata: dict[str, Any] = {
        "name": GATEWAY,
        "namespace": namespace,
        "labels": {**MANAGED_BY, ENVIRONMENT_LABEL: environment},
    }
    if settings.tls is not None and settings.tls.issuer is not None:
        metadata["annotations"] = {_ISSUER_ANNOTATION: settings.tls.issuer}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": metadata,
        "spec": {"gatewayClassName": settings.class_name, "listeners": listeners},
    }


def listener_names(teams: Iterable[str], settings: GatewaySettings) -> dict[str, str]:
    """The name of the listener that a team's routes attach to, by team."""
    return {team: team if settings.domain else settings.scheme for team in sorted(teams)}


def listener_hostnames(teams: Iterable[str], settings: GatewaySettings) -> dict[str, str]:
    """The host name of a team's listener, by team; empty where listeners have none."""
    return {team: f"{team}.{settings.domain}" for team in sorted(teams)} if settings.domain else {}


def base_url(settings: GatewaySettings, address: str | None) -> str | None:
    """Where the Gateway is reached: as the config says, by its domain, or at its address; None while it has none."""
    if settings.url is not None:
        return settings.url
    host = settings.domain or address
    if host is None:
        return None
    host = f"[{host}]" if ":" in host else host
    default = 443 if settings.tls else 80
    return f"{settings.scheme}://{host}" + ("" if settings.listener_port == default else f":{settings.listener_port}")


def status_address(found: Manifest) -> str | None:
    """The first address that the Gateway's status has."""
    addresses = found.get("status", {}).get("addresses", [])
    return addresses[0]["value"] if addresses else None


def status_problems(found: Manifest) -> list[str]:
    """What keeps the Gateway, as it is now, from serving: a line for each condition that isn't as it has to be.

    A condition of an older generation says nothing of this one.
    https://gateway-api.sigs.k8s.io/reference/spec/#gatewaystatus
    """
    generation = found["metadata"]["generation"]
    status = found.get("status", {})
    unmet = _unmet("Gateway", status, ("Accepted", "Programmed"), generation)
    for listener in status.get("listeners", []):
        unmet += _unmet(
            f"listener {listener['name']}", listener, ("Accepted", "ResolvedRefs", "Programmed"), generation
        )
    # Where something is known to be wrong, a controller need not say the rest.
    return [problem.text for problem in unmet if problem.is_said] or [problem.text for problem in unmet]


def class_problem(found: Manifest) -> str | None:
    """Why a GatewayClass can't be used; None where it can."""
    unmet = _unmet("GatewayClass", found.get("status", {}), ("Accepted",), found["metadata"]["generation"])
    return unmet[0].text if unmet else None


def supported_features(found: Manifest) -> list[str]:
    """What a GatewayClass says that it can do: names, which were plain strings before Gateway API 1.3."""
    features = found.get("status", {}).get("supportedFeatures", [])
    return [feature if isinstance(feature, str) else feature["name"] for feature in features]


@dataclass(frozen=True)
class _Unmet:
    """A condition that isn't True."""

    text: str
    is_said: bool
    """Whether a controller has said so of this generation; else nobody has said anything."""


def _unmet(what: str, status: dict[str, Any], types: tuple[str, ...], generation: int) -> list[_Unmet]:
    found = {condition["type"]: condition for condition in status.get("conditions", [])}
    unmet: list[_Unmet] = []
    for type_ in types:
        condition = found.get(type_)
        if condition is None or condition.get("observedGeneration", 0) < generation:
            unmet.append(
                _Unmet(f"{what}: nobody has said yet whether it is {type_}; is its controller running?", is_said=False)
            )
        elif condition["status"] != "True":
            text = f"{what}: not {type_}: {condition['reason']}: {condition.get('message', '')}".rstrip(": ")
            unmet.append(_Unmet(text, is_said=True))
    return unmet


def _listener(name: str, settings: GatewaySettings, selector: dict[str, Any], certificate: str | None) -> Manifest:
    listener: Manifest = {
        "name": name,
        "port": settings.listener_port,
        "protocol": settings.scheme.upper(),
        "allowedRoutes": {"namespaces": {"from": "Selector", "selector": selector}},
    }
    if settings.tls is not None:
        references = [{"kind": "Secret", "name": settings.tls.secret or certificate}]
        listener["tls"] = {"mode": "Terminate", "certificateRefs": references}
    return listener
