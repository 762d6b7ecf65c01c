"""kube-state-metrics, with just what the rules ask of it: whose Services, Deployments and Pods are.

https://github.com/kubernetes/kube-state-metrics/blob/main/docs/developer/cli-arguments.md
"""

from __future__ import annotations

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.monitoring.errors import image
from infra.cluster.manifests.monitoring.workload import Part, PodSpec
from infra.monitoring.data_planes.kubernetes import ANNOTATIONS, STATE_METRICS
from infra.settings.cluster import ClusterSettings

KUBE_STATE_METRICS = "kube-state-metrics"
PORT = 8080

ARGUMENTS = (
    "--resources=deployments,pods,services,statefulsets",
    f"--metric-annotations-allowlist=services=[{','.join(ANNOTATIONS)}]",
    f"--metric-allowlist={','.join(STATE_METRICS)}",
)
"""A thousand versions make some thousand series with them."""

_TELEMETRY_PORT = 8081
_READ = ["list", "watch"]


def kube_state_metrics(settings: ClusterSettings, environment: str) -> list[Manifest]:
    part = Part.of(settings, environment, KUBE_STATE_METRICS)
    rules = [
        {"apiGroups": [""], "resources": ["pods", "services"], "verbs": _READ},
        {"apiGroups": ["apps"], "resources": ["deployments", "statefulsets"], "verbs": _READ},
    ]
    pod = PodSpec(
        image=image(settings, "kube_state_metrics"),
        args=[*ARGUMENTS, f"--port={PORT}", f"--telemetry-port={_TELEMETRY_PORT}"],
        port=PORT,
        ready_path="/healthz",
        live_path="/livez",
        cpu="50m",
        memory="512Mi",
    )
    clients = None if settings.monitoring.kind == "operator" else ["prometheus"]
    return [
        *part.account(rules),
        part.deployment(pod),
        part.service(pod),
        part.disruption_budget(),
        part.network_policy(PORT, clients),
    ]
