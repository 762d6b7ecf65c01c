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


SHARED_GPU = "nvidia.com/gpu.shared"
"""A time slice of a GPU: what the device plugin renames `nvidia.com/gpu` to, so that nobody takes one for a whole."""

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
    shares: int = Field(default=1, ge=1, le=64, strict=True)
    """Time-slicing, with `gpu_resource: nvidia.com/gpu.shared`: as so many the device plugin offers each GPU."""
    tolerations: tuple[dict[str, str], ...] = ()
    """For its nodes' taints, as in a Pod."""

    @model_validator(mode="after")
    def _gpus_are_of_one_kind(self) -> Pool:
        if self.product is not None and self.gpu_resource is None:
            raise ValueError(
                f"pool {self.name!r} has GPUs of product {self.product!r}, and nothing that they are asked for by; "
                "give 'gpu_resource', such as 'nvidia.com/gpu'"
            )
        if self.shares > 1 and self.gpu_resource != SHARED_GPU:
            raise ValueError(
                f"pool {self.name!r} has {self.shares} shares of each GPU, which are asked for as '{SHARED_GPU}'; "
                f"given gpu_resource {self.gpu_resource!r}"
            )
        return self


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
    probe: bool = Field(default=True, strict=True)
    """Whether an endpoint's weights are verified by requests through it, too; false where it can't be reached from
    where `lepton` runs."""
    metrics: Literal["traefik", "envoy-gateway", "istio"] | None = None
    """Whose metrics count requests. Default: told from the class's controller."""
    namespace: Name | None = None
    """Where the class's own Pods run, which are let through to versions, and scraped. Default: any namespace."""
    features: tuple[str, ...] | None = None
    """What the class can do, in the Gateway API's words (`HTTPRouteRequestMirror`). Default: what its status says; some
    classes say nothing there."""
    ready_timeout: Seconds = 300.0
    """How long the Gateway may take until it is programmed; with `url`, nobody waits for it."""

    @model_validator(mode="after")
    def _tls_has_names(self) -> GatewaySettings:
        if self.tls is not None and self.tls.issuer is not None and self.domain is None:
            raise ValueError("a certificate is made for a name: with 'tls.issuer' give 'domain'")
        return self

    @property
    def scheme(self) -> Literal["http", "https"]:
        """Of its listeners."""
        return "https" if self.tls else "http"

    @property
    def listener_port(self) -> int:
        return self.port or (443 if self.tls else 80)


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
    """Container images, each by its digest, and the registry of the environment's own."""

    registry: str | None = Field(default=None, pattern=r"^[a-z0-9.-]+(:\d+)?(/[a-z0-9._/-]+)?$")
    """`HOST[:PORT][/PREFIX]`, where images of versions are kept. With `provision: eks`, ECR."""
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
    """Of type kubernetes.io/dockerconfigjson in the platform's namespace (and in that of `gpus`, where something runs
    there); copied into every version's."""


class ClusterMonitoring(Settings):
    """Prometheus, Alertmanager and Grafana in the cluster."""

    kind: Literal["manifests", "operator", "external"] = "manifests"
    """`manifests`: they are brought up here. `operator`: objects for a Prometheus Operator that is there.
    `external`: a Prometheus elsewhere, which is only asked."""
    url: str | None = Field(default=None, pattern=r"^(https?|kubernetes)://.+$")
    """Where Prometheus answers, if not here: a URL, or `kubernetes://NAMESPACE/SERVICE:PORT`, which is reached through
    the API server."""
    scrape_interval: Seconds = 5.0
    """Gates take no sample that is older than 15 s."""
    retention: Seconds = 1296000.0
    storage: Bytes = 50 * 2**30
    storage_class: str | None = None
    """Default: the cluster's default one."""
    labels: dict[str, str] = {}
    """On the operator's objects, so that its Prometheus selects them."""
    alert_receivers: tuple[dict[str, object], ...] = ()
    """Alertmanager's `receivers`; the first gets what no other does. Secrets are files to mount, never values."""
    alert_secrets: tuple[Name, ...] = ()
    """Secrets in the platform's namespace; Alertmanager finds each one's keys as files under
    `/etc/alertmanager/secrets/NAME/`."""
    grafana_secret: Name | None = None
    """A secret in the platform's namespace with the keys `admin-user` and `admin-password`: Grafana's administrator.
    Left out, there is no Grafana."""
    grafana_url: str | None = Field(default=None, pattern=r"^https?://.+[^/]$")
    """Where people reach a Grafana that has the dashboards; endpoints link to theirs there."""

    @model_validator(mode="after")
    def _is_found(self) -> ClusterMonitoring:
        if self.kind != "manifests" and self.url is None:
            raise ValueError(f"with kind {self.kind!r} Prometheus is not ours: give its 'url'")
        return self


class GpuSupport(Settings):
    """What makes the cluster's GPUs schedulable and seen; neither where a GPU Operator does it already."""

    device_plugin: bool = Field(default=False, strict=True)
    """Whether NVIDIA's device plugin is brought up here, on the pools that have GPUs."""
    dcgm_exporter: bool = Field(default=False, strict=True)
    """Whether NVIDIA's DCGM exporter is brought up there, for the GPUs' metrics."""


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
        if self.eks is not None and self.pools:
            raise ValueError("a cluster that is made here has its pools in 'eks.pools'; leave 'pools' out")
        if self.eks is not None and self.images.registry is not None:
            raise ValueError("a cluster that is made here has its registry in ECR; leave 'images.registry' out")
        if self.gateway.domain and len(self.teams) > 64:
            raise ValueError(
                f"a Gateway has at most 64 listeners, and {len(self.teams)} teams would have one each; leave "
                "'gateway.domain' out, so that they share one"
            )
        return self

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> ClusterSettings:
        for key in ("device_plugin", "dcgm_exporter"):
            if not getattr(self.gpus, key):
                continue
            if getattr(self.images, key) is None:
                raise ValueError(f"'gpus.{key}' needs its image: give 'images.{key}', by its digest")
            if self.eks is None and not any(pool.gpu_resource for pool in self.pools):
                raise ValueError(
                    f"'gpus.{key}' runs on the nodes that have GPUs: give 'pools', one of them with 'gpu_resource'"
                )
        if self.eks is not None and self.monitoring.kind != "external" and self.gateway.metrics is None:
            raise ValueError(
                "a cluster that is made here has no GatewayClass yet to tell whose metrics count requests: give "
                "'gateway.metrics'"
            )
        queued = [team for team, settings in self.teams.items() if settings.queue]
        if queued and "kueue" not in self.features:
            raise ValueError(f"'teams.{queued[0]}.queue' is Kueue's: add 'kueue' to 'features'")
        return self
