"""What all that runs for monitoring has in common: a place, labels, and Pods that may do nothing but their work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.cluster.manifests import Manifest
from infra.cluster.names import ENVIRONMENT_LABEL, MANAGED_BY
from infra.settings.cluster import ClusterSettings

NOBODY = 65534
_CHECKSUM = "lepton/config-checksum"
_RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Part:
    """One of monitoring's parts, by the name of all its objects."""

    name: str
    namespace: str
    environment: str
    pull_secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: ClusterSettings, environment: str, name: str) -> Part:
        return cls(name, settings.namespace, environment, settings.images.pull_secrets)

    @property
    def selector(self) -> dict[str, str]:
        return {"app.kubernetes.io/name": self.name}

    @property
    def labels(self) -> dict[str, str]:
        return {**MANAGED_BY, ENVIRONMENT_LABEL: self.environment, **self.selector}

    def object(self, api_version: str, kind: str, name: str | None = None, **fields: Any) -> Manifest:
        metadata = {"name": name or self.name, "namespace": self.namespace, "labels": self.labels}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}

    # -- who may read what of the API server

    def account(self, rules: Sequence[dict[str, Any]] = ()) -> list[Manifest]:
        """A ServiceAccount, and what it may read in the whole cluster: nothing, and it has no token."""
        account = self.object("v1", "ServiceAccount", automountServiceAccountToken=bool(rules))
        if not rules:
            return [account]
        # In no namespace, so that the name says whose it is.
        metadata = {"name": f"{self.namespace}-{self.name}", "labels": self.labels}
        role = {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": list(rules)}
        binding = {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": metadata["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": self.name, "namespace": self.namespace}],
        }
        return [account, role, binding]

    # -- what runs

    def config_map(self, data: Mapping[str, str], name: str | None = None) -> Manifest:
        return self.object("v1", "ConfigMap", name, data=dict(data))

    def service(self, pod: PodSpec) -> Manifest:
        ports = [{"name": "http", "port": pod.port, "targetPort": "http", "protocol": "TCP"}]
        spec = {"type": "ClusterIP", "selector": self.selector, "ports": ports}
        # pulumi-kubernetes waits for a Service's endpoints as well.
        return self._awaited(self.object("v1", "Service", spec=spec), pod)

    def deployment(self, pod: PodSpec) -> Manifest:
        spec = {
            "replicas": 1,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": self.selector},
            "template": self._template(pod),
        }
        return self._awaited(self.object("apps/v1", "Deployment", spec=spec), pod)

    def stateful_set(self, pod: PodSpec, storage: str, storage_class: str | None) -> Manifest:
        """With one volume a replica, `data`, which outlives the StatefulSet, and goes with the namespace.

        Another size or class is another StatefulSet of the same name, which takes over the claim as it is.
        """
        claim: dict[str, Any] = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": storage}},
        }
        if storage_class is not None:
            claim["storageClassName"] = storage_class
        spec = {
            "replicas": 1,
            "serviceName": self.name,
            "podManagementPolicy": "Parallel",
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": self.selector},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "template": self._template(pod),
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": self.labels}, "spec": claim}],
        }
        return self._awaited(self.object("apps/v1", "StatefulSet", spec=spec), pod)

    def disruption_budget(self) -> Manifest:
        """One of one may go, or no node could be drained; one that doesn't work never stands in the way."""
        spec = {
            "maxUnavailable": 1,
            "selector": {"matchLabels": self.selector},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        }
        return self.object("policy/v1", "PodDisruptionBudget", spec=spec)

    def network_policy(self, port: int, clients: Sequence[str] | None = None) -> Manifest:
        """Lets only these other parts in, or, where they are None, whoever can reach it, on one port.

        Who comes through the API server's proxy comes from an address that no policy can name.
        """
        rule: dict[str, Any] = {"ports": [{"protocol": "TCP", "port": port}]}
        if clients is not None:
            rule["from"] = [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}} for name in clients]
        spec = {"podSelector": {"matchLabels": self.selector}, "policyTypes": ["Ingress"], "ingress": [rule]}
        return self.object("networking.k8s.io/v1", "NetworkPolicy", spec=spec)

    @staticmethod
    def _awaited(manifest: Manifest, pod: PodSpec) -> Manifest:
        if pod.waits_for_secrets:
            # They can be made only when the namespace is there, which the same update makes.
            manifest["metadata"]["annotations"] = {"pulumi.com/skipAwait": "true"}
        return manifest

    def _template(self, pod: PodSpec) -> dict[str, Any]:
        container: dict[str, Any] = {
            "name": self.name,
            "image": pod.image,
            "args": list(pod.args),
            "ports": [{"name": "http", "containerPort": pod.port, "protocol": "TCP"}],
            "env": list(pod.env),
            "startupProbe": _probe(pod.ready_path) | {"periodSeconds": 5, "failureThreshold": 120},
            "readinessProbe": _probe(pod.ready_path) | {"periodSeconds": 5, "failureThreshold": 3},
            "livenessProbe": _probe(pod.live_path) | {"periodSeconds": 10, "failureThreshold": 6},
            "resources": {
                "requests": {"cpu": pod.cpu, "memory": pod.memory},
                "limits": {"memory": pod.memory},
            },
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
            "volumeMounts": list(pod.mounts),
        }
        spec: dict[str, Any] = {
            "serviceAccountName": self.name,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": pod.grace_seconds,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": pod.user,
                "runAsGroup": pod.user,
                "fsGroup": pod.user,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_without_empty_lists(container)],
            "volumes": list(pod.volumes),
        }
        if self.pull_secrets:
            spec["imagePullSecrets"] = [{"name": secret} for secret in self.pull_secrets]
        # A config is read when a program starts, so another config is another Pod.
        annotations = {_CHECKSUM: _checksum(pod.config)}
        return {"metadata": {"labels": self.labels, "annotations": annotations}, "spec": _without_empty_lists(spec)}


@dataclass(frozen=True)
class PodSpec:
    """What the Pods of the parts differ in."""

    image: str
    args: Sequence[str]
    port: int
    ready_path: str
    live_path: str
    cpu: str
    memory: str
    user: int = NOBODY
    env: Sequence[dict[str, Any]] = ()
    mounts: Sequence[dict[str, Any]] = ()
    volumes: Sequence[dict[str, Any]] = ()
    config: Sequence[Manifest] = field(default_factory=list[Manifest])
    """The ConfigMaps whose change makes new Pods."""
    grace_seconds: int = 30
    waits_for_secrets: bool = False
    """Whether it can't start before somebody has made a secret."""


def mount(name: str, path: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 3}


def _without_empty_lists(fields: dict[str, Any]) -> dict[str, Any]:
    """As the API server keeps them: what is given and not kept would differ for ever."""
    return {key: value for key, value in fields.items() if value != []}


def _checksum(config: Sequence[Manifest]) -> str:
    data = [one["data"] for one in config]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
