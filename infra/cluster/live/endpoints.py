"""Where an endpoint of a cluster is reached, and which of a version's replicas its Service sends requests to."""

from __future__ import annotations

from urllib.parse import urlsplit

from infra.cluster.internals import internals_of
from infra.cluster.live.api import Api
from infra.cluster.names import SERVER
from infra.contracts import PlatformExports


def endpoint_url(platform: PlatformExports, team: str, model: str) -> str:
    """An endpoint's URL: by its team's host name where the Gateway has a listener for each."""
    hostname = internals_of(platform)["gateway"]["hostnames"].get(team)
    base = urlsplit(platform["endpoint_base_url"])
    if hostname:
        base = base._replace(netloc=hostname + (f":{base.port}" if base.port else ""))
    return f"{base.geturl()}/{team}/{model}"


def ready_replicas(api: Api, namespace: str) -> int:
    """Endpoints of the version's Service that are ready and don't end.

    Raises:
        ObservationError: when the API server can't be asked.
    """
    slices = api.items(
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        labelSelector=f"kubernetes.io/service-name={SERVER}",
    )
    # One that moves between slices, or has an address of each family, is in two of them for a while.
    found: set[object] = set()
    for part in slices:
        ports = tuple(port.get("port") for port in part.get("ports") or [])
        for endpoint in part.get("endpoints") or []:
            conditions = endpoint.get("conditions", {})
            if conditions.get("ready", True) and not conditions.get("terminating", False):
                pod = endpoint.get("targetRef", {}).get("uid")
                found |= {pod} if pod else {(address, ports) for address in endpoint["addresses"]}
    return len(found)
