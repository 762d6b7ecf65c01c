"""Istio's gateway: its standard metrics name the namespace of the Service that it has sent a request to.

What it can't count: copies of requests that shadows get, and requests in flight, so that their mean is told from how
long those that ended took.

Reference: https://istio.io/latest/docs/reference/config/metrics/
"""

from __future__ import annotations

from infra.cluster.names import SERVER
from infra.monitoring.data_plane import DataPlane
from infra.monitoring.data_planes.kubernetes import GRPC_ERRORS, of_endpoints, of_versions, resources
from infra.monitoring.promql import fresh_rate

# Where versions are in the mesh too, their own proxies count the same requests as `destination`; and what one version
# asks of another comes from no gateway.
_FROM_GATEWAY = f'reporter="source",destination_service_name="{SERVER}"'
_DURATION = "istio_request_duration_milliseconds"
# 0: the client did not wait any longer.
_FAILED = (
    f'istio_requests_total{{{_FROM_GATEWAY},response_code=~"5..|0"}} '
    f'or istio_requests_total{{{_FROM_GATEWAY},grpc_response_status=~"{GRPC_ERRORS}"}}'
)


def istio(environment: str) -> DataPlane:
    """Scraped at the gateway's own Pods."""

    def counted(vector: str, *labels: str) -> str:
        named = f'label_replace({vector}, "namespace", "$1", "destination_service_namespace", "(.+)")'
        return of_versions(environment, named, *labels)

    errors = counted(_FAILED, "instance")
    return DataPlane(
        requests=counted(f"istio_requests_total{{{_FROM_GATEWAY}}}", "instance"),
        errors=errors,
        endpoint_errors=of_endpoints(errors),
        buckets=counted(f"{_DURATION}_bucket{{{_FROM_GATEWAY}}}", "instance", "le"),
        # Little's law: seconds spent in a second.
        in_flight=counted(fresh_rate(f"{_DURATION}_sum{{{_FROM_GATEWAY}}}", "1m") + " / 1000"),
        resources=resources(environment),
    )
