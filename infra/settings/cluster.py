"""What a platform stack's config may say of a Kubernetes environment: `lepton:platform.cluster`, for mode `cluster`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from infra.settings.eks import EksSettings
from infra.settings.values import Bytes, Name, Port, Seconds, Settings, TeamName

_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
_IMAGE = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_RESOURCE = re.compile(r"nvidia\.com/[a-zA-Z0-9._-]+")


def _dns_name(value: object) -> str:
    if not isinstance(value, str) or len(value) > 253 or not _DNS_NAME.fullmatch(value):
        raise ValueError("a DNS name is lower-case labels with dots between them, such as 'models.example.com'")
    return value


def _image(value: object) -> str:
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        raise ValueError(
            "an image is given by its digest, 'REGISTRY/NAME[:TAG]@sha256:…', so that nobody can change it"
        )
    return value


def _gpu_resource(value: object) -> str:
    if not isinstance(value, str) or not _RESOURCE.fullmatch(value):
        raise ValueError(
            "a GPU resource is what the device plugin calls it: 'nvidia.com/gpu', 'nvidia.com/gpu.shared' or "
            "'nvidia.com/mig-1g.10gb'"
        )
    return value


DnsName = Annotated[str, BeforeValidator(_dns_name)]
Image = Annotated[str, BeforeValidator(_image)]
"""A container image by its digest."""
GpuResource = Annotated[str, BeforeValidator(_gpu_resource)]

Feature = Literal["image-volumes", "dynamic-resource-allocation", "leader-worker-sets", "keda", "kueue"]


class ExistingCluster(Settings):
    """A cluster that is there."""

    kubeconfig: str | None = None
    """Its file; relative paths start at the project's root, `~` is the user's home. Default: as kubectl finds it."""
    context: str | None = None
    """Default: the file's current one."""


class Pool(Settings):
    """Nodes of one kind, in a cluster that is there; one that the platform provisions knows its own."""

    name: Name
    labels: dict[str, str] = Field(min_length=1)
    """What its nodes are labelled with."""
    gpu_resource: GpuResource | None = None
    """What its GPUs, or their parts, are asked for by; None: it has none."""
    product: str | None = None
    """Its GPUs' `nvidia.com/gpu.product`."""
    tolerations: tuple[dict[str, str], ...] = ()
    """For its nodes' taints, as in a Pod."""


class Tls(Settings):
    """Where the Gateway's certificates come from."""

    secret: Name | None = None
    """A secret of type kubernetes.io/tls in the platform's namespace, for all listeners."""
    issuer: str | None = None
    """A ClusterIssuer of cert-manager, which makes one for each listener."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Tls:
        if (self.secret is None) == (self.issuer is None):
            raise ValueError("certificates come from a secret or from a cert-manager issuer: give one of the two")
        return self


class GatewaySettings(Settings):
    """The Gateway that all endpoints of the environment share."""

    class_name: Name
    """A GatewayClass that is there."""
    port: Port | None = None
    """Default: 443 with TLS, 80 without."""
    domain: DnsName | None = None
    """Team T's endpoints are at `T.DOMAIN`, on a listener of its own. Left out, all teams share one listener."""
    tls: Tls | None = None
    """Left out, plain HTTP."""
    url: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """How clients reach it, where that is not its address in the Gateway's status (a proxy or a test before it)."""
    metrics: Literal["traefik", "envoy-gateway", "istio"] | None = None
    """Whose metrics count requests. Default: told from the class's controller."""
    namespace: Name | None = None
    """Where the class's own Pods run, which are let through to versions, and scraped. Default: any namespace."""

    @model_validator(mode="after")
    def _tls_has_names(self) -> GatewaySettings:
        if self.tls is not None and self.tls.issuer is not None and self.domain is None:
            raise ValueError("a certificate is made for a name: with 'tls.issuer' give 'domain'")
        return self


class ResourceLimits(Settings):
    """Sums over Pods."""

    cpu: float | None = Field(default=None, gt=0)
    memory: Bytes | None = None
    gpus: dict[GpuResource, int] = {}


class TeamSettings(Settings):
    """A team's share of the cluster."""

    quota: ResourceLimits | None = None
    """What all its versions together may ask for."""
    default_limits: ResourceLimits | None = None
    """For its containers that say none: a LimitRange."""
    queue: Name | None = None
    """The Kueue ClusterQueue that admits its Pods."""


class ImageSettings(Settings):
    """Container images, each by its digest."""

    server: Image | None = None
    """For versions that name none: holds MLServer, or whatever the artifacts' servers are."""
    puller: Image | None = None
    """Holds this package: brings a version's artifact into its Pods, and verifies it."""
    prometheus: Image | None = None
    alertmanager: Image | None = None
    grafana: Image | None = None
    kube_state_metrics: Image | None = None
    device_plugin: Image | None = None
    dcgm_exporter: Image | None = None
    pull_secrets: tuple[Name, ...] = ()
    """Of type kubernetes.io/dockerconfigjson in the platform's namespace; copied into every version's."""


class ClusterMonitoring(Settings):
    """Prometheus, Alertmanager and Grafana in the cluster."""

    kind: Literal["manifests", "operator", "external"] = "manifests"
    """`manifests`: they are brought up here. `operator`: objects for a Prometheus Operator that is there.
    `external`: a Prometheus elsewhere, which is only asked."""
    url: str | None = Field(default=None, pattern=r"^(https?|kubernetes)://.+$")
    """Where Prometheus answers, if not here: a URL, or `kubernetes://NAMESPACE/SERVICE:PORT`, which is reached through
    the API server."""
    scrape_interval: Seconds = 15.0
    retention: Seconds = 1296000.0
    storage: Bytes = 50 * 2**30
    storage_class: str | None = None
    """Default: the cluster's default one."""
    labels: dict[str, str] = {}
    """On the operator's objects, so that its Prometheus selects them."""
    alert_receivers: tuple[dict[str, object], ...] = ()
    """Alertmanager's `receivers`; the first gets what no other does. Secrets are files to mount, never values."""

    @model_validator(mode="after")
    def _is_found(self) -> ClusterMonitoring:
        if self.kind != "manifests" and self.url is None:
            raise ValueError(f"with kind {self.kind!r} Prometheus is not ours: give its 'url'")
        return self


class GpuSupport(Settings):
    """What makes the cluster's GPUs schedulable."""

    device_plugin: bool = False
    """Whether NVIDIA's device plugin is brought up here; not where a GPU Operator is there."""
    dcgm_exporter: bool = False
    """Whether NVIDIA's DCGM exporter is brought up here, for the GPUs' metrics."""
    shares: int = Field(default=1, ge=1, le=64, strict=True)
    """Time-slicing: as so many GPUs the device plugin offers each one."""
    mig_strategy: Literal["none", "single", "mixed"] = "none"


class ClusterSettings(Settings):
    """The Kubernetes cluster of an environment, and what of it this project may use."""

    provision: Literal["existing", "eks"] = "existing"
    existing: ExistingCluster = Field(default_factory=ExistingCluster)
    eks: EksSettings | None = None
    namespace: Name = "lepton"
    """The platform's own; other environments in the same cluster need another."""
    teams: dict[TeamName, TeamSettings] = Field(min_length=1)
    gateway: GatewaySettings
    images: ImageSettings = Field(default_factory=ImageSettings)
    pools: tuple[Pool, ...] = ()
    gpus: GpuSupport = Field(default_factory=GpuSupport)
    monitoring: ClusterMonitoring = Field(default_factory=ClusterMonitoring)
    features: tuple[Feature, ...] = ()
    """What the cluster has beyond the least that is asked of it (Kubernetes 1.32, and a GatewayClass)."""

    @model_validator(mode="after")
    def _is_provisioned_once(self) -> ClusterSettings:
        if (self.provision == "eks") != (self.eks is not None):
            raise ValueError(
                "'eks' and 'provision: eks' go together: give both, or neither for a cluster that is there"
            )
        if self.eks is not None and self.existing.model_fields_set:
            raise ValueError("a cluster that is made here has no kubeconfig yet; leave 'existing' out")
        names = [pool.name for pool in self.pools]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"pool {twice[0]} is listed twice; give each a name of its own")
        if self.gateway.domain and len(self.teams) > 64:
            raise ValueError(
                f"a Gateway has at most 64 listeners, and {len(self.teams)} teams would have one each; leave "
                "'gateway.domain' out, so that they share one"
            )
        return self
