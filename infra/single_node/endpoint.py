"""An endpoint on a single node: the routes of the node's Envoy that carry its traffic."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi

from infra.contracts import ObservationError, PlatformExports, Stack, VersionExports
from infra.names import endpoint_id
from infra.settings import EndpointSettings
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.router import Router, RouterUnreachableError
from infra.single_node.machine.stats import VARIANT, cluster_name
from infra.single_node.resource import Driver, MachineResource, Properties, with_drift
from infra.single_node.routing import Backend, RouteFragment, endpoint_clusters, endpoint_routes, weights_in


class Endpoint(pulumi.ComponentResource):
    """The durable address of a model, and the weights of the versions behind it."""

    def __init__(
        self,
        stack: Stack,
        settings: EndpointSettings,
        platform: PlatformExports,
        versions: Mapping[str, VersionExports],
    ) -> None:
        super().__init__("lepton:single-node:Endpoint", stack.name)
        EndpointRoutes(
            f"{stack.name}-routes",
            {
                "directory": platform["internals"]["directory"],
                "team": stack.team,
                "endpoint": settings.model_dump(mode="json", exclude={"rollout", "guard"}),
                "backends": {version: exports["backend"] for version, exports in versions.items()},
            },
            pulumi.ResourceOptions(parent=self),
        )
        self.exports: Mapping[str, pulumi.Input[Any]] = {
            "url": f"{platform['endpoint_base_url']}/{stack.team}/{settings.model}",
            "weights": settings.weights,
            "baseline": settings.baseline_version,
            "shadow": settings.shadow.model_dump() if settings.shadow else None,
            "dashboard_url": None,
        }
        self.register_outputs(dict(self.exports))


class _EndpointRoutesDriver(Driver):
    def identity(self, props: Properties) -> str:
        return f"{endpoint_id(props['team'], props['endpoint']['model'])}@{props['directory']}"

    def create(self, props: Properties) -> Properties:
        owner = endpoint_id(props["team"], props["endpoint"]["model"])
        settings = _settings(props)
        router = Router(Node(Path(props["directory"])))
        _refuse_dead_variants(router, props["team"], settings.model, settings.weights)
        router.put_endpoint(owner, *_rendered(props))
        return props

    def read(self, props: Properties) -> Properties | None:
        owner = endpoint_id(props["team"], props["endpoint"]["model"])
        router = Router(Node(Path(props["directory"])))
        if router.routes(owner) is None:
            return None
        clusters, fragment = _rendered(props)
        drift = router.drift(owner, clusters, fragment)
        with contextlib.suppress(RouterUnreachableError):  # which is among the drift then
            for what, wanted, found in zip(
                ("weights", "shadow"), weights_in(fragment["virtual_host"]), router.traffic(owner), strict=True
            ):
                if found != wanted:
                    drift.append(f"{what} in Envoy: {_words(found)}; configured: {_words(wanted)}")
        return with_drift(props, drift)

    def delete(self, props: Properties) -> None:
        owner = endpoint_id(props["team"], props["endpoint"]["model"])
        router = Router(Node(Path(props["directory"])))
        router.remove_routes(owner)
        router.remove_clusters(owner)


class EndpointRoutes(MachineResource, module="single-node", name="EndpointRoutes"):
    """The routes of one endpoint, and the clusters of its own that they lead to."""

    driver = _EndpointRoutesDriver()


class Shifter:
    """`infra.contracts.Shifter` of a single node: edits the endpoint's routes, as its stack last rendered them."""

    def __init__(self, platform: PlatformExports) -> None:
        self._router = Router(Node(Path(platform["internals"]["directory"])))

    def shift(self, team: str, model: str, weights: Mapping[str, int]) -> None:
        owner = endpoint_id(team, model)
        try:
            _refuse_unusable(weights)
            self._router.routes_of(owner, weights)
            _refuse_dead_variants(self._router, team, model, weights)
            self._router.put_weights(owner, weights)
        except NodeError as error:
            raise ObservationError(str(error)) from None


def _refuse_unusable(weights: Mapping[str, int]) -> None:
    if not any(weights.values()) or any(weight < 0 for weight in weights.values()):
        raise NodeError(f"given {_words(weights)}: weights are integers from 0, and one of them is at least 1")


def _refuse_dead_variants(router: Router, team: str, model: str, weights: Mapping[str, int]) -> None:
    """A version that can't answer never gains weight; one that has it may lose it."""
    before, _ = router.traffic(endpoint_id(team, model))
    healthy = router.healthy_replicas()
    for version, weight in weights.items():
        if weight > before.get(version, 0) and not healthy.get(cluster_name(VARIANT, team, model, version)):
            raise NodeError(
                f"{version} has no healthy replica, so it can't be given weight {weight}; nothing was changed. "
                "Its config may say `replicas: 0`, as after a rollout that scaled it down: raise that and "
                f"`lepton deploy` it, or `lepton rollout start --to {version}` brings it back; see `lepton status`"
            )


def _settings(props: Properties) -> EndpointSettings:
    return EndpointSettings.model_validate(props["endpoint"])


def _rendered(props: Properties) -> tuple[list[dict[str, Any]], RouteFragment]:
    """The endpoint's clusters and routes."""
    settings = _settings(props)
    backends = {version: Backend(**backend) for version, backend in props["backends"].items()}
    return (
        endpoint_clusters(props["team"], settings, backends),
        endpoint_routes(props["team"], settings, backends),
    )


def _words(shares: Mapping[str, float]) -> str:
    return " ".join(f"{version}={share}" for version, share in shares.items()) or "none"
