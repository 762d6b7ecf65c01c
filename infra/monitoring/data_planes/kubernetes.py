"""What every gateway's data plane has in common in a Kubernetes cluster: whose a namespace is, and what Pods use.

A version has a namespace of its own, and the Service in it says in annotations whose it is, in full. Counters are
brought to name the namespace, and are joined with those annotations as kube-state-metrics gives them, which it does
for the annotations that it is told of (`--metric-annotations-allowlist`). It shows the Services of the whole cluster,
and a gateway may serve several environments, so only those of one environment are joined.

References:
https://github.com/kubernetes/kube-state-metrics/blob/main/docs/metrics/service/service-metrics.md
https://github.com/google/cadvisor/blob/master/docs/storage/prometheus.md
https://docs.nvidia.com/datacenter/dcgm/latest/gpu-telemetry/dcgm-exporter.html
"""

from __future__ import annotations

from infra.cluster.names import ENVIRONMENT_LABEL, MODEL_LABEL, SERVER, TEAM_LABEL, VERSION_LABEL
from infra.monitoring.catalogue import ENDPOINT_LABELS, GPU_LABELS, NODE_LABELS, VERSION_LABELS
from infra.monitoring.data_plane import Resources
from infra.monitoring.promql import fresh_rate, sum_by

_BY_LABEL = dict(zip(VERSION_LABELS, (TEAM_LABEL, MODEL_LABEL, VERSION_LABEL), strict=True))

ANNOTATIONS = (ENVIRONMENT_LABEL, *_BY_LABEL.values())
"""Of a version's Service: what kube-state-metrics must be allowed to show."""

STATE_METRICS = (
    "kube_service_annotations",
    "kube_deployment_spec_replicas",
    "kube_deployment_status_replicas_ready",
    "kube_statefulset_replicas",
    "kube_statefulset_status_replicas_ready",
    "kube_pod_info",
    "kube_pod_created",
)
"""What is asked of kube-state-metrics."""

# Statuses of gRPC that google.rpc.Code maps to 5xx: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE
# and DATA_LOSS.
GRPC_ERRORS = "2|4|12|13|14|15"


def _owners(environment: str) -> str:
    """One element for each namespace of the environment's versions, with the labels of the version."""
    own = f'{_annotation(ENVIRONMENT_LABEL)}="{environment}",{_annotation(VERSION_LABEL)}!=""'
    owners = f"kube_service_annotations{{{own}}}"
    for label, annotation in _BY_LABEL.items():
        owners = f'label_replace({owners}, "{label}", "$1", "{_annotation(annotation)}", "(.+)")'
    return f"group by (namespace, {', '.join(VERSION_LABELS)}) ({owners})"


def _annotation(name: str) -> str:
    return "annotation_" + name.replace("/", "_").replace("-", "_")


def of_versions(environment: str, vector: str, *labels: str) -> str:
    """Sums a vector with a label `namespace` by team, model, version and these labels.

    Leaves out what belongs to no version of the environment.
    """
    joined = f"({vector}) * on (namespace) group_left ({', '.join(VERSION_LABELS)}) {_owners(environment)}"
    return sum_by((*VERSION_LABELS, *labels), joined)


def of_endpoints(vector: str) -> str:
    """Sums what `of_versions` makes of a counter: without failover, a version's errors are its endpoint's."""
    return sum_by((*ENDPOINT_LABELS, "instance"), vector)


# Not those of whole Pods, which are sums of their containers', nor their pause containers.
_CONTAINERS = 'container!="",container!="POD"'
_CPU_SECONDS = f"container_cpu_usage_seconds_total{{{_CONTAINERS}}}"
_WHOLE_NODE_CPU = fresh_rate('container_cpu_usage_seconds_total{id="/"}', "1m")
_WHOLE_NODE_MEMORY = 'container_memory_working_set_bytes{id="/"}'
_DISK_BYTES = 'container_fs_{}_bytes{{id="/"}}'
_GPU_MEMORY = "DCGM_FI_DEV_FB_{}"


def _replicas(environment: str, of_deployment: str, of_stateful_set: str) -> str:
    # A LeaderWorkerSet's replicas are those of the StatefulSet that has its name.
    servers = f'{of_deployment}{{deployment="{SERVER}"}} or {of_stateful_set}{{statefulset="{SERVER}"}}'
    return of_versions(environment, servers)


def resources(environment: str) -> Resources:
    """Of kubelets (cAdvisor), kube-state-metrics and NVIDIA's DCGM exporter: nodes are all environments' in common."""
    return Resources(
        # By Pod, as Pods come and go.
        version_cpu_seconds=of_versions(environment, _CPU_SECONDS, "instance", "pod"),
        version_cpu_cores=of_versions(environment, fresh_rate(_CPU_SECONDS, "1m")),
        version_memory_bytes=of_versions(environment, f"container_memory_working_set_bytes{{{_CONTAINERS}}}"),
        replicas_desired=_replicas(environment, "kube_deployment_spec_replicas", "kube_statefulset_replicas"),
        replicas_ready=_replicas(
            environment, "kube_deployment_status_replicas_ready", "kube_statefulset_status_replicas_ready"
        ),
        node_cpu_ratio=f"{sum_by(NODE_LABELS, _WHOLE_NODE_CPU)} / {sum_by(NODE_LABELS, 'machine_cpu_cores')}",
        node_memory_ratio=f"{sum_by(NODE_LABELS, _WHOLE_NODE_MEMORY)} / {sum_by(NODE_LABELS, 'machine_memory_bytes')}",
        # Of a node's file systems the fullest.
        node_disk_ratio=(
            f"max by ({', '.join(NODE_LABELS)}) ({_DISK_BYTES.format('usage')} / ({_DISK_BYTES.format('limit')} > 0))"
        ),
        # A GPU is seen once for each Pod that shares it.
        node_gpu_ratio=f"max by ({', '.join(GPU_LABELS)}) (DCGM_FI_DEV_GPU_UTIL / 100)",
        node_gpu_memory_ratio=(
            f"max by ({', '.join(GPU_LABELS)}) "
            f"({_GPU_MEMORY.format('USED')} / ({_GPU_MEMORY.format('USED')} + {_GPU_MEMORY.format('FREE')}))"
        ),
    )
