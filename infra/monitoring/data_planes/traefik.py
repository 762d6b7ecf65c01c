"""Traefik 3 as the Gateway: it counts by Service, which it names `NAMESPACE-SERVICE-http-PORT@kubernetesgateway`.

What it can't count: requests for which a version had no server at all (it answers these itself, 503, and names no
Service), answers that break off halfway, and requests in flight, so that their mean is told from how long those that
ended took. It sends no copies to shadows. Inference and gRPC are POST; the control's own probes are not.

References:
https://doc.traefik.io/traefik/v3.6/observability/metrics/overview/
https://github.com/traefik/traefik/blob/v3.6.7/pkg/provider/kubernetes/gateway/httproute.go (loadService)
"""

from __future__ import annotations

from infra.cluster.names import SERVER
from infra.monitoring.data_plane import DataPlane
from infra.monitoring.data_planes.kubernetes import GRPC_ERRORS, of_endpoints, of_versions, resources
from infra.monitoring.promql import fresh_rate, milliseconds

_SERVICE = f"-{SERVER}-(?:http-[0-9]+|[0-9]+-grpc)@kubernetesgateway"
_CLIENTS = f'service=~".+{_SERVICE}",method="POST"'
_DURATION = "traefik_service_request_duration_seconds"
_REQUESTS = "traefik_service_requests_total"
# 499: the client did not wait any longer. The code of a gRPC request is its gRPC status.
_FAILED = (
    f'{_REQUESTS}{{{_CLIENTS},protocol!~"grpc.*",code=~"5..|499"}} '
    f'or {_REQUESTS}{{{_CLIENTS},protocol=~"grpc.*",code=~"{GRPC_ERRORS}"}}'
)


def traefik(environment: str) -> DataPlane:
    """With `--metrics.prometheus` and labels for Services, both of which it has by default."""

    def counted(vector: str, *labels: str) -> str:
        named = f'label_replace({vector}, "namespace", "$1", "service", "(.+){_SERVICE}")'
        return of_versions(environment, named, *labels)

    errors = counted(_FAILED, "instance")
    return DataPlane(
        requests=counted(f"{_REQUESTS}{{{_CLIENTS}}}", "instance"),
        errors=errors,
        endpoint_errors=of_endpoints(errors),
        buckets=milliseconds(counted(f"{_DURATION}_bucket{{{_CLIENTS}}}", "instance", "le")),
        # Little's law: seconds spent in a second.
        in_flight=counted(fresh_rate(f"{_DURATION}_sum{{{_CLIENTS}}}", "1m")),
        resources=resources(environment),
    )
