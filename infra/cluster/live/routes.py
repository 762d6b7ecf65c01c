"""An endpoint's routes as they are in the cluster, and whether its Gateway has taken them on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from infra.cluster.internals import ClusterInternals, GatewayFacts
from infra.cluster.live.api import Api, ConflictError, NotFoundError
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.routes import (
    API_VERSION,
    GRPC_ROUTE,
    HTTP_ROUTE,
    SESSIONS,
    is_split,
    split_backends,
    traffic_in,
)
from infra.cluster.names import MODEL_LABEL, VARIANTS_ANNOTATION, route_name, team_namespace
from infra.contracts import ObservationError, Traffic

_PLURALS = {HTTP_ROUTE: "httproutes", GRPC_ROUTE: "grpcroutes"}
_ATTEMPTS = 5
"""To patch a route, as the API server gives up where its status is written all the time."""


class LiveRoutes:
    """The routes of one endpoint. Methods raise ObservationError when the API server can't be asked."""

    def __init__(self, api: Api, internals: ClusterInternals, team: str, model: str) -> None:
        self._api = api
        self._gateway = internals["gateway"]
        self._namespace = team_namespace(internals["environment"], team)
        self._model = model
        self._known = f"{team}/{internals['environment']}.{model}"
        self._written: list[tuple[Manifest, Manifest]] = []

    def traffic(self) -> Traffic:
        """What the routes say, whether or not the Gateway has taken them on; nothing where there are none."""
        found = self._all()
        main = self._main(found)
        return traffic_in(main) if main else {"weights": {}, "shadow": {}}

    def traffic_taken_on(self) -> Traffic:
        """What the routes say, once the Gateway says of each that it has taken on just this.

        Raises:
            ObservationError: when it hasn't, with what it says.
        """
        found = self._all()
        main = self._main(found)
        if main is None:
            return {"weights": {}, "shadow": {}}
        for route in found:
            problem = route_problem(route, self._gateway)
            if problem:
                raise ObservationError(f"{self._known}: {problem}")
        traffic = traffic_in(main)
        for route in found:
            if _splits(route) and traffic_in(route)["weights"] != traffic["weights"]:
                raise ObservationError(
                    f"{self._known}: {_named(route)} has other weights than {_named(main)}; "
                    "`lepton deploy` makes them agree"
                )
        return traffic

    def put_weights(self, weights: Mapping[str, int]) -> None:
        """Gives the variants these weights, all of them, in every route; the rest of the routes stays.

        Raises:
            ObservationError: when these aren't its variants.
            ConflictError: when somebody else changes a route at the same time: that one and those after it stay.
        """
        namespaces = self._variants(found := self._all(), weights)
        for route in found:
            if _splits(route):
                grpc = route["kind"] == GRPC_ROUTE
                backends = [
                    split_backends(weights, namespaces, self._gateway, grpc=grpc, sticky=SESSIONS in rule)
                    for rule in route["spec"]["rules"]
                ]
                after = self._patch(route, backends)
                self._written.append((route, after))

    def take_back(self) -> list[str]:
        """Undoes `put_weights` in each route that is still as it was written; a phrase for each that is left.

        Somebody who has changed a route since meant it, so that it stays.
        """
        left: list[str] = []
        while self._written:
            before, after = self._written.pop()
            try:
                self._patch(after, [rule.get("backendRefs", []) for rule in before["spec"]["rules"]])
            except (ConflictError, NotFoundError):
                left.append(f"{_named(before)} is left as somebody else has made it meanwhile")
            except ObservationError as error:
                left.append(f"{_named(before)} still has the new weights: {error}")
        return left

    def namespaces(self, weights: Mapping[str, int]) -> dict[str, str]:
        """The namespace of each variant. Raises ObservationError when there are no routes, or they have others."""
        return self._variants(self._all(), weights)

    def _variants(self, found: list[Manifest], weights: Mapping[str, int]) -> dict[str, str]:
        """Namespaces by version."""
        main = self._main(found)
        if main is None:
            raise ObservationError(f"{self._known} has no routes in this cluster; bring it up with `lepton deploy`")
        variants: dict[str, str] = json.loads(main["metadata"].get("annotations", {}).get(VARIANTS_ANNOTATION, "{}"))
        if weights.keys() != set(variants.values()):
            raise ObservationError(
                f"{self._known} has the variants {', '.join(variants.values())}, and weights were given for "
                f"{', '.join(weights) or 'none'}; give each of them one, and no other"
            )
        return {version: namespace for namespace, version in variants.items()}

    def _patch(self, route: Manifest, backends: Sequence[Any]) -> Manifest:
        """Gives the rules that split these `backendRefs`, rule by rule, and returns what the route is then.

        Only for the spec as it was read: its generation. The resource's version would change with each status.
        https://kubernetes.io/docs/reference/using-api/api-concepts/#patch-and-apply
        """
        path = f"{self._path(route['kind'])}/{quote(route['metadata']['name'])}"
        generation = route["metadata"]["generation"]
        changes = [
            {"op": "test", "path": "/metadata/generation", "value": generation},
            *(
                {"op": "replace", "path": f"/spec/rules/{number}/backendRefs", "value": backends[number]}
                for number, rule in enumerate(route["spec"]["rules"])
                if is_split(rule)
            ),
        ]
        left = _ATTEMPTS
        while True:
            left -= 1
            try:
                return self._api.patch(path, changes, "application/json-patch+json")
            except ConflictError:
                if self._api.get(path)["metadata"]["generation"] != generation:
                    raise ConflictError(
                        f"{self._known}: somebody else has changed {_named(route)} at the same time, and it stays as "
                        "they made it; look at `lepton status`, and shift again if that is still wanted"
                    ) from None
                if not left:
                    raise

    def _all(self) -> list[Manifest]:
        kinds = [HTTP_ROUTE, *([GRPC_ROUTE] if GRPC_ROUTE in self._gateway["features"] else [])]
        return [
            # An object in a list doesn't say its kind.
            {"kind": kind, **found}
            for kind in kinds
            for found in self._api.items(self._path(kind), labelSelector=f"{MODEL_LABEL}={self._model}")
        ]

    def _path(self, kind: str) -> str:
        return f"/apis/{API_VERSION}/namespaces/{self._namespace}/{_PLURALS[kind]}"

    def _main(self, found: list[Manifest]) -> Manifest | None:
        name = route_name(self._model)
        return next((r for r in found if r["kind"] == HTTP_ROUTE and r["metadata"]["name"] == name), None)


def route_problem(route: Manifest, gateway: GatewayFacts) -> str | None:
    """Why a route isn't in force as it is; None where the Gateway says that it is.

    A condition of an older generation says nothing of this one.
    https://gateway-api.sigs.k8s.io/reference/spec/#routeparentstatus
    """
    generation = route["metadata"]["generation"]
    parents = [
        parent
        for parent in route.get("status", {}).get("parents", [])
        if parent["controllerName"] == gateway["controller"]
        and parent["parentRef"]["name"] == gateway["name"]
        and parent["parentRef"].get("namespace") == gateway["namespace"]
    ]
    if not parents:
        return f"Gateway {gateway['namespace']}/{gateway['name']} has not said anything of {_named(route)} yet"
    for parent in parents:
        conditions = {condition["type"]: condition for condition in parent.get("conditions", [])}
        for wanted in ("Accepted", "ResolvedRefs"):
            found = conditions.get(wanted)
            if found is None or found.get("observedGeneration", 0) < generation:
                return (
                    f"Gateway {gateway['namespace']}/{gateway['name']} has not taken on generation {generation} of "
                    f"{_named(route)} yet"
                )
            if found["status"] != "True":
                return f"{_named(route)} is not {wanted}: {found['reason']}: {found.get('message', '')}".rstrip(": ")
    return None


def _splits(route: Manifest) -> bool:
    return any(is_split(rule) for rule in route["spec"].get("rules", []))


def _named(route: Manifest) -> str:
    return f"{route['kind']} {route['metadata']['namespace']}/{route['metadata']['name']}"
