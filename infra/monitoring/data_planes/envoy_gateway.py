"""Envoy Gateway: its Envoys count by endpoint, which is a Pod's address, where `EnvoyProxy` asks for it.

A cluster's name says route, rule and position of a backend, and no Service; the addresses of its endpoints say whose
Pods they are. So requests are counted by Pod, and a cluster's times are those of the version whose Pods alone it has:
every backend has a cluster of its own where it has filters, and else all backends of a rule share one, whose times
nobody can tell apart.

What it can't count: requests for which a version had no Pod at all, those that a client gave up, and by method, so that
the control's own probes are among the clients' requests. A request that is tried again counts as two.

References:
https://gateway.envoyproxy.io/docs/api/extension_types/#proxymetrics (enablePerEndpointStats; clusterStatName is unset)
https://www.envoyproxy.io/docs/envoy/latest/configuration/upstream/cluster_manager/cluster_stats#per-endpoint-statistics
"""

from __future__ import annotations

from infra.monitoring.data_plane import Copies, DataPlane
from infra.monitoring.data_planes.kubernetes import of_endpoints, of_versions, resources

_ENDPOINT = "envoy_cluster_endpoint"
_CLIENTS = 'envoy_cluster_name=~"(?:http|grpc)route/.+/rule/[0-9]+(?:/backend/[0-9]+)?"'
_COPIES = 'envoy_cluster_name=~"(?:http|grpc)route/.+/rule/[0-9]+-mirror-[0-9]+.*"'
_BUCKETS = "envoy_cluster_upstream_rq_time_bucket"

# An address may have been another Pod's before: the youngest has it.
_PODS = (
    'group by (namespace, pod_ip) (topk by (pod_ip) (1, kube_pod_info{pod_ip!=""} '
    "* on (namespace, pod, uid) group_left () max by (namespace, pod, uid) (kube_pod_created)))"
)


def _located(vector: str) -> str:
    """With the namespace of the Pod at an endpoint's address."""
    addressed = f'label_replace({vector}, "pod_ip", "$1", "envoy_endpoint_address", "\\\\[?(.+?)\\\\]?:[0-9]+")'
    return f"({addressed}) * on (pod_ip) group_left (namespace) {_PODS}"


def _counted(environment: str, metric: str, clusters: str) -> str:
    # By endpoint and cluster, as both come and go.
    located = _located(f"{_ENDPOINT}_{metric}{{{clusters}}}")
    return of_versions(environment, located, "instance", "envoy_cluster_name", "envoy_endpoint_address")


def _requests(environment: str, clusters: str) -> str:
    # `rq_total` leaves out those that no connection was had for.
    return f"{_counted(environment, 'rq_success', clusters)} + {_counted(environment, 'rq_error', clusters)}"


def _timed(environment: str, clusters: str) -> str:
    located = _located(f"{_ENDPOINT}_healthy{{{clusters}}}")
    whose = f"group by (instance, envoy_cluster_name, namespace) ({located})"
    alone = f"count by (instance, envoy_cluster_name) ({whose}) == 1"
    owned = f"({whose} and on (instance, envoy_cluster_name) ({alone}))"
    buckets = f"{_BUCKETS}{{{clusters}}} * on (instance, envoy_cluster_name) group_left (namespace) {owned}"
    return of_versions(environment, buckets, "instance", "envoy_cluster_name", "le")


def envoy_gateway(environment: str) -> DataPlane:
    """With `spec.telemetry.metrics.enablePerEndpointStats: true` in its EnvoyProxy."""
    errors = _counted(environment, "rq_error", _CLIENTS)
    return DataPlane(
        requests=_requests(environment, _CLIENTS),
        errors=errors,
        endpoint_errors=of_endpoints(errors),
        buckets=_timed(environment, _CLIENTS),
        in_flight=_counted(environment, "rq_active", _CLIENTS),
        copies=Copies(
            requests=_requests(environment, _COPIES),
            errors=_counted(environment, "rq_error", _COPIES),
            buckets=_timed(environment, _COPIES),
        ),
        resources=resources(environment),
    )
