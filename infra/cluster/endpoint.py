"""An endpoint in a Kubernetes cluster: the routes of the Gateway API that carry its traffic."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import pulumi

from infra.cluster.internals import ClusterInternals, internals_of
from infra.cluster.live.api import Api
from infra.cluster.live.endpoints import endpoint_url
from infra.cluster.live.guarding import put_back_claims, refuse_unready
from infra.cluster.live.routes import LiveRoutes
from infra.cluster.manifests.claims import claim
from infra.cluster.manifests.routes import Backend, endpoint_routes, why_no_grpc
from infra.cluster.resource import Object, provider
from infra.contracts import ObservationError, PlatformExports, Stack, VersionExports
from infra.errors import UserError
from infra.monitoring.dashboards import dashboard_path
from infra.settings import EndpointSettings

_TAKEN_ON_SECONDS = 10.0
_POLL_SECONDS = 0.05


class UnknownTeamError(UserError):
    """The environment's platform has no place for the team's endpoints."""


class Endpoint(pulumi.ComponentResource):
    """The durable address of a model, and the weights of the versions behind it."""

    def __init__(
        self,
        stack: Stack,
        settings: EndpointSettings,
        platform: PlatformExports,
        versions: Mapping[str, VersionExports],
    ) -> None:
        super().__init__("lepton:cluster:Endpoint", stack.name)
        internals = internals_of(platform)
        _refuse_unknown_team(internals, stack.team)
        backends = {version: cast("Backend", exports["backend"]) for version, exports in versions.items()}
        routes = endpoint_routes(stack.team, internals["gateway"], settings, backends)
        no_grpc = why_no_grpc(stack.team, internals["gateway"], backends)
        if no_grpc:
            pulumi.log.warn(
                f"{stack.team}/{stack.name} is not reached by gRPC, though its versions speak it: {no_grpc}"
            )
        if not pulumi.runtime.is_dry_run():
            _look_at_cluster(internals, stack.team, settings, backends)

        cluster = provider(f"{stack.name}-cluster", internals["connection"], pulumi.ResourceOptions(parent=self))

        def options(*before: pulumi.Resource) -> pulumi.ResourceOptions:
            return pulumi.ResourceOptions(parent=self, provider=cluster, depends_on=list(before))

        claims = [
            Object(
                f"{stack.name}-claims-{version}",
                claim(settings.environment, stack.team, settings.model, backend["namespace"]),
                options(),
            )
            for version, backend in backends.items()
        ]
        main = Object(f"{stack.name}-route", routes[0], options(*claims))
        for manifest in routes[1:]:
            # Where a Gateway takes one route of two, the older one it is.
            Object(f"{stack.name}-{manifest['kind']}-{manifest['metadata']['name']}", manifest, options(*claims, main))
        grafana = internals.get("grafana_url")
        self.exports: Mapping[str, pulumi.Input[Any]] = {
            "url": endpoint_url(platform, stack.team, settings.model),
            "weights": settings.weights,
            "baseline": settings.baseline_version,
            "shadow": settings.shadow.model_dump() if settings.shadow else None,
            "dashboard_url": f"{grafana}{dashboard_path(stack.team, settings.model)}" if grafana else None,
        }
        self.register_outputs(dict(self.exports))


class Shifter:
    """`infra.contracts.Shifter` of a cluster: patches the weights in the endpoint's routes as they are."""

    def __init__(
        self,
        platform: PlatformExports,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._internals = internals_of(platform)
        self._api = Api(self._internals["connection"])
        self._clock, self._sleep = clock, sleep

    def shift(self, team: str, model: str, weights: Mapping[str, int]) -> None:
        wanted = dict(weights)
        _refuse_unusable(wanted)
        routes = LiveRoutes(self._api, self._internals, team, model)
        before = routes.traffic()["weights"]
        refuse_unready(self._api, before, wanted, routes.namespaces(wanted))
        try:
            routes.put_weights(wanted)
            self._wait(routes, wanted)
        except ObservationError as error:
            left = routes.take_back()
            if left:
                raise ObservationError("; ".join([str(error), *left])) from error
            raise

    def _wait(self, routes: LiveRoutes, wanted: Mapping[str, int]) -> None:
        deadline = self._clock() + _TAKEN_ON_SECONDS
        while True:
            try:
                if routes.traffic_taken_on()["weights"] == wanted:
                    return
                problem = "somebody else has changed the weights"
            except ObservationError as error:
                problem = str(error)
            if self._clock() > deadline:
                raise ObservationError(problem)
            self._sleep(_POLL_SECONDS)


def _refuse_unknown_team(internals: ClusterInternals, team: str) -> None:
    known = internals["gateway"]["listeners"]
    if team not in known:
        raise UnknownTeamError(
            f"team {team} is not among the teams of {internals['environment']} ({', '.join(sorted(known))}); add it "
            "to the platform's `cluster.teams`, and bring that up first"
        )


def _look_at_cluster(
    internals: ClusterInternals, team: str, settings: EndpointSettings, backends: Mapping[str, Backend]
) -> None:
    """Refuses weight for a version that can't answer, and puts back guards that have gone with a namespace."""
    api = Api(internals["connection"])
    before = LiveRoutes(api, internals, team, settings.model).traffic()
    namespaces = {version: backend["namespace"] for version, backend in backends.items()}
    refuse_unready(api, before["weights"], settings.weights, namespaces)
    # Those of others are made by this update.
    served = [v for v in namespaces if v in before["weights"] or v in before["shadow"]]
    for problem in put_back_claims(
        api, [claim(settings.environment, team, settings.model, namespaces[version]) for version in served]
    ):
        pulumi.log.warn(problem)


def _refuse_unusable(weights: Mapping[str, int]) -> None:
    if not any(weights.values()) or any(weight < 0 for weight in weights.values()):
        said = " ".join(f"{version}={weight}" for version, weight in weights.items()) or "none"
        raise ObservationError(f"given {said}: weights are integers from 0, and one of them is at least 1")
