"""The Pods that serve a version, what keeps so many of them, and the Service before them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.identity import ENVIRONMENT, fingerprint
from infra.cluster.manifests.model_volume import MODEL_FOLDER, REGISTRIES, model_mount, model_volumes, puller
from infra.cluster.manifests.scheduling import container_resources, queue_labels, scheduling
from infra.cluster.manifests.version import SELECTOR, SURGE, Version
from infra.cluster.names import GRPC_PORT, HTTP_PORT, METRICS_PORT, SERVER

DEPLOYMENT = ("apps/v1", "Deployment")
LEADER_WORKER_SET = ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")

WITHDRAWAL_SECONDS = 5
"""How long a replica that is taken away serves on: so long its endpoint may still be known to a Gateway."""

_ROLLING: Mapping[str, Any] = {"maxSurge": f"{float(SURGE):.0%}", "maxUnavailable": 0}
_USER = 65532
"""Nobody's, and of no rights: as distroless images have it."""
_TMP_SIZE = "10Gi"
_REVISIONS = 3
_LIVE_PATHS = {"oip-v2": "/v2/health/live", "openai": "/health"}
_FINGERPRINT_ANNOTATION = "lepton/environment-fingerprint"
_ENVIRONMENT_LOCALS = {"HOME": "/tmp"}  # noqa: S108 - the container's own, and the one place that it may write


def server_command(version: Version) -> tuple[list[str], dict[str, str]]:
    """The server's command and environment, placeholders filled in, for its Pod."""
    server, settings = version.server, version.settings
    values = {
        "model_dir": MODEL_FOLDER,
        "model": settings.model,
        "version": settings.version,
        "host": "0.0.0.0",
        "http_port": HTTP_PORT,
        "grpc_port": GRPC_PORT,
        "metrics_port": METRICS_PORT,
    }
    command = [part.format(**values) for part in server.command]
    env = _ENVIRONMENT_LOCALS | {name: value.format(**values) for name, value in server.env.items()} | settings.env
    if settings.resources.cpu is not None:
        # Numeric libraries start a thread a core of the machine, whatever share of it they are given.
        env.setdefault("OMP_NUM_THREADS", str(math.ceil(settings.resources.cpu)))
    return command, env


def workload(version: Version) -> Manifest:
    """A Deployment, or a LeaderWorkerSet where a replica spans several nodes.

    An update first makes a quarter of the replicas anew and then takes as many away, with GPUs too: where there is no
    room for one more, it fails in bounded time, and what serves goes on serving.
    """
    return _leader_worker_set(version) if version.spans_nodes else _deployment(version)


def going_seconds(version: Version) -> int:
    """How long a replica may be there yet once it is to go."""
    return WITHDRAWAL_SECONDS + math.ceil(version.drain_seconds)


def service(version: Version) -> Manifest:
    """The version's address in the cluster. https://kubernetes.io/docs/concepts/services-networking/service/"""
    ports = [_service_port("http", HTTP_PORT, "http")]
    if version.server.grpc:
        # So that Gateways speak HTTP/2 with it: https://gateway-api.sigs.k8s.io/guides/grpc-routing/
        ports.append(_service_port("grpc", GRPC_PORT, "kubernetes.io/h2c"))
    if version.server.metrics_path:
        ports.append(_service_port("metrics", METRICS_PORT, "http"))
    manifest = version.object("v1", "Service", spec={"type": "ClusterIP", "selector": version.serving, "ports": ports})
    # pulumi-kubernetes would wait for endpoints, which a version without replicas has none of.
    manifest["metadata"]["annotations"]["pulumi.com/skipAwait"] = "true"
    return manifest


def _deployment(version: Version) -> Manifest:
    """https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/deployment-v1/"""
    spec: dict[str, Any] = {
        **_replicas(version),
        "selector": {"matchLabels": dict(SELECTOR)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": dict(_ROLLING)},
        "revisionHistoryLimit": _REVISIONS,
        "progressDeadlineSeconds": math.ceil(version.settings.ready_timeout),
        "template": _template(version, serves=True),
    }
    return _owned(version, version.object(*DEPLOYMENT, spec=spec))


def _leader_worker_set(version: Version) -> Manifest:
    """A replica is a leader, which is asked, and workers, which only it knows; they come and go together.

    All run the server's command, which tells them apart by LWS_WORKER_INDEX, and finds the leader by
    LWS_LEADER_ADDRESS. https://lws.sigs.k8s.io/docs/concepts/
    """
    template = {
        "size": version.settings.nodes_per_replica,
        "restartPolicy": "RecreateGroupOnPodRestart",
        "leaderTemplate": _template(version, serves=True),
        "workerTemplate": _template(version, serves=False),
    }
    spec: dict[str, Any] = {
        **_replicas(version),
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": dict(_ROLLING)},
        "leaderWorkerTemplate": template,
    }
    manifest = _owned(version, version.object(*LEADER_WORKER_SET, spec=spec))
    # pulumi-kubernetes knows by itself when a Deployment is ready, and of other kinds has to be told.
    manifest["metadata"]["annotations"]["pulumi.com/waitFor"] = "condition=Available"
    return manifest


def _replicas(version: Version) -> dict[str, int]:
    """Nothing where an autoscaler owns the number: each update would take its work back."""
    return {} if version.scales else {"replicas": version.settings.replicas}


def _owned(version: Version, manifest: Manifest) -> Manifest:
    manifest["metadata"]["labels"] |= queue_labels(version)
    manifest["metadata"]["annotations"] |= version.provenance
    return manifest


def _template(version: Version, *, serves: bool) -> dict[str, Any]:
    settings = version.settings
    scratch = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {"sizeLimit": _TMP_SIZE}}, *model_volumes(version)]
    mounts = [scratch, model_mount()]
    if settings.resources.gpu:
        # Processes on several GPUs speak through it, and 64 MiB are all that there is by default.
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108
    command, env = server_command(version)
    container: dict[str, Any] = {
        "name": SERVER,
        "image": version.image,
        "imagePullPolicy": "IfNotPresent",
        # Kubernetes would fill in what looks like a variable: $(NAME).
        "command": [_literal(part) for part in command],
        "resources": container_resources(version),
        "securityContext": _security(),
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **(_environment(version, env)),
        **(_serving(version) if serves else {}),
    }
    spec: dict[str, Any] = {
        "serviceAccountName": SERVER,
        "automountServiceAccountToken": settings.api_access,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": going_seconds(version),
        **scheduling(version),
        "containers": [container],
        "volumes": volumes,
    }
    if pulling := puller(version, _security(), scratch):
        spec["initContainers"] = pulling
    if version.internals["images"]["pull_secrets"]:
        spec["imagePullSecrets"] = [{"name": REGISTRIES}]
    annotations = dict(version.annotations)
    if version.secret:
        annotations[_FINGERPRINT_ANNOTATION] = fingerprint(version, env)
    if version.server.metrics_path:
        annotations["lepton/metrics-path"] = version.server.metrics_path
    metadata = {"labels": version.labels | SELECTOR | queue_labels(version), "annotations": annotations}
    return {"metadata": metadata, "spec": spec}


def _environment(version: Version, env: dict[str, str]) -> dict[str, Any]:
    if version.secret:
        return {"envFrom": [{"secretRef": {"name": ENVIRONMENT}}]}
    return {"env": [{"name": name, "value": _literal(value)} for name, value in env.items()]}


def _serving(version: Version) -> dict[str, Any]:
    """Ports, probes and the way out.

    Ready and alive are asked apart: a replica that is ready no longer, as it is full or waits for something, gets no
    requests for a while; only one that doesn't even answer whether it lives is started again, and not before a minute,
    as a busy one may be slow to answer. OIP V2 has a path for that of its own, and OpenAI's servers have /health.
    Sources: https://github.com/kserve/open-inference-protocol (health), vLLM's and SGLang's `/health`.
    """
    server, settings = version.server, version.settings
    ready = {"httpGet": {"path": server.ready_path, "port": "http"}}
    live = {"httpGet": {"path": _LIVE_PATHS[server.protocol], "port": "http"}}
    ports = [_port("http", HTTP_PORT)]
    if server.grpc:
        ports.append(_port("grpc", GRPC_PORT))
    if server.metrics_path:
        ports.append(_port("metrics", METRICS_PORT))
    return {
        "ports": ports,
        "startupProbe": {
            **ready,
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": math.ceil(settings.ready_timeout / 2),
        },
        "readinessProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 2},
        "livenessProbe": {**live, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": WITHDRAWAL_SECONDS}}},
    }


def _security() -> dict[str, Any]:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/: more than `restricted` asks for."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _service_port(name: str, number: int, protocol: str) -> dict[str, Any]:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP", "appProtocol": protocol}


def _literal(text: str) -> str:
    return text.replace("$", "$$")
