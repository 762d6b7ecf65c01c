"""Reads a cluster's data plane: its routes and their Gateway for traffic, its API server for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

import httpx

from infra.addresses import reached_at
from infra.cluster.internals import internals_of
from infra.cluster.live.api import Api, NotFoundError
from infra.cluster.live.endpoints import endpoint_url, ready_replicas
from infra.cluster.live.nodes import holder_of, inventory, matches, room
from infra.cluster.live.probing import versions_seen
from infra.cluster.live.routes import LiveRoutes
from infra.cluster.live.symptoms import unready_because
from infra.cluster.manifests import Manifest
from infra.cluster.names import ENVIRONMENT_LABEL, MANAGED_BY, MODEL_LABEL, version_namespace
from infra.contracts import NodeInventory, ObservationError, PlatformExports, QueryError, Room, Traffic
from infra.monitoring import querying

_QUERY_SECONDS = 10.0


class Observer:
    """`infra.contracts.Observer` of a cluster."""

    def __init__(self, platform: PlatformExports) -> None:
        self._platform = platform
        self._internals = internals_of(platform)
        self._api = Api(self._internals["connection"])
        self._environment = self._internals["environment"]

    def confirm(self) -> None:
        self._api.refuse_other_cluster()

    def traffic(self, team: str, model: str) -> Traffic:
        """What the endpoint's routes say, once its Gateway has taken on just this."""
        return LiveRoutes(self._api, self._internals, team, model).traffic_taken_on()

    def ready(self, team: str, model: str, versions: list[str]) -> dict[str, int]:
        return {
            version: ready_replicas(self._api, version_namespace(self._environment, team, model, version))
            for version in versions
        }

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        status, body = self._ask_prometheus(promql)
        try:
            return querying.instant_vector(promql, status, body)
        except querying.BadExpressionError as error:
            raise QueryError(str(error)) from None
        except querying.RefusedError as error:
            raise ObservationError(f"{self._platform['metrics_url']}: {error}") from None

    def room(self) -> Room:
        """What ready nodes have and others than this environment's versions don't hold."""
        namespaces = self._namespaces()
        return room(self._inventory(self._nodes(), namespaces), frozenset(map(holder_of, namespaces)))

    def inventory(self) -> list[NodeInventory]:
        return self._inventory(self._nodes(), self._namespaces())

    def why_not_ready(self, team: str, model: str, version: str) -> list[str]:
        namespace = version_namespace(self._environment, team, model, version)
        try:
            self._api.get(f"/api/v1/namespaces/{namespace}")
        except NotFoundError:
            return [f"namespace {namespace} is not there; `lepton deploy` makes it"]
        pods = self._api.items(f"/api/v1/namespaces/{namespace}/pods")
        unplaced = [pod for pod in pods if not pod["spec"].get("nodeName")]
        nodes = self._inventory(_usable(self._nodes(), unplaced), self._namespaces()) if unplaced else []
        workloads = [
            workload
            for plural in ("deployments", "replicasets")
            for workload in self._api.items(f"/apis/apps/v1/namespaces/{namespace}/{plural}")
        ]
        # Of the StatefulSets behind a LeaderWorkerSet nothing but an event says why they make no Pod.
        events = self._api.items(f"/api/v1/namespaces/{namespace}/events", fieldSelector="reason=FailedCreate")
        of_sets = [event for event in events if event["involvedObject"]["kind"] == "StatefulSet"]
        # Only a cluster with Dynamic Resource Allocation has this kind.
        claiming = any(pod["spec"].get("resourceClaims") for pod in unplaced)
        templates = f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaimtemplates"
        return unready_because(workloads, pods, nodes, of_sets, self._api.items(templates) if claiming else [])

    def split(self, team: str, model: str, requests: int) -> dict[str, int] | None:
        """See `infra.cluster.live.probing.versions_seen`: what tells these requests from clients' is said there.

        None, too, where the platform's `gateway.probe` is false.
        """
        if not self._internals["gateway"].get("probe", True):
            return None
        url, base = endpoint_url(self._platform, team, model), self._platform["endpoint_base_url"]
        return versions_seen(url, model, requests, at=reached_at(url, base))

    def _ask_prometheus(self, promql: str) -> tuple[int, bytes]:
        """The status and the body of its answer, whatever they are."""
        url = urlsplit(self._platform["metrics_url"])
        if url.scheme == "kubernetes":
            service, _, port = url.path.strip("/").partition(":")
            return self._api.service(url.netloc, service, port, querying.PATH, query=promql)
        try:
            answer = httpx.get(f"{url.geturl()}{querying.PATH}", params={"query": promql}, timeout=_QUERY_SECONDS)
        except httpx.HTTPError as error:
            raise ObservationError(f"Prometheus at {url.geturl()} does not answer: {error}") from None
        return answer.status_code, answer.content

    def _inventory(self, nodes: list[Manifest], namespaces: list[Manifest]) -> list[NodeInventory]:
        return inventory(
            nodes,
            self._api.items("/api/v1/pods", fieldSelector="status.phase!=Succeeded,status.phase!=Failed"),
            namespaces,
            self._internals["pools"],
            self._internals["namespace"],
        )

    def _nodes(self) -> list[Manifest]:
        return self._api.items("/api/v1/nodes")

    def _namespaces(self) -> list[Manifest]:
        """Those of the environment's versions."""
        wanted = {**MANAGED_BY, ENVIRONMENT_LABEL: self._environment}
        selector = ",".join([*(f"{label}={value}" for label, value in wanted.items()), MODEL_LABEL])
        return self._api.items("/api/v1/namespaces", labelSelector=selector)


def _usable(nodes: Iterable[Manifest], pods: Iterable[Manifest]) -> list[Manifest]:
    """Nodes that one of the Pods may be on, by its selector."""
    selectors = [pod["spec"].get("nodeSelector", {}) for pod in pods]
    return [node for node in nodes if any(matches(node, selector) for selector in selectors)]
