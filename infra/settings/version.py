"""What a version stack's config may say: config key `lepton:version`."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from infra.names import version_stack
from infra.settings.platform import Runtime
from infra.settings.values import Bytes, Digest, Name, Seconds, SemanticVersion, Settings

Protocol = Literal["oip-v2", "openai"]
Priority = Literal["serving-critical", "serving", "batch"]

MOST_REPLICAS = 100
"""That `replicas` may ask for; autoscaling may go beyond."""

PLACEHOLDERS = ("model_dir", "model", "version", "host", "http_port", "grpc_port", "metrics_port")
"""What a server's command and environment may name in braces."""


RESERVED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
RESERVED_PREFIX = "LEPTON_"


def _environment(env: dict[str, str]) -> dict[str, str]:
    reserved = [name for name in env if name in RESERVED_VARIABLES or name.startswith(RESERVED_PREFIX)]
    if reserved:
        raise ValueError(
            f"{reserved[0]} is not yours to set: {', '.join(RESERVED_VARIABLES)} follow from resources.gpu, and "
            f"{RESERVED_PREFIX}… mark the node's processes; leave it out"
        )
    return env


def _network(value: object) -> str:
    try:
        # A number counts as an address, too.
        return str(ipaddress.ip_network(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError("a network is an address and the length of its prefix, such as '10.2.0.0/16'") from None


Network = Annotated[str, BeforeValidator(_network)]
"""In CIDR notation, with no bit set beyond the prefix."""

Environment = Annotated[dict[str, str], AfterValidator(_environment)]
"""A server's environment variables, less those that this project sets."""


class ServerSettings(Settings):
    """A model server: any command that speaks the Open Inference Protocol V2 or OpenAI's API over HTTP."""

    command: list[str] = Field(min_length=1)
    """The command; `{model_dir}`, `{http_port}` and the other PLACEHOLDERS are filled in."""
    protocol: Protocol = "oip-v2"
    ready_path: str = "/v2/health/ready"
    """Answers 200 once the model can serve."""
    env: Environment = {}
    grpc: bool = False
    """Whether it speaks gRPC on `{grpc_port}` too."""
    metrics_path: str | None = None
    """Where it serves Prometheus metrics on `{metrics_port}`, if it does."""

    @model_validator(mode="after")
    def _fills_only_known_placeholders(self) -> ServerSettings:
        # A variable by its name, as its value may be a secret.
        texts = {repr(part): part for part in self.command} | {f"env.{name}": text for name, text in self.env.items()}
        for what, text in texts.items():
            try:
                text.format(**dict.fromkeys(PLACEHOLDERS, ""))
            except (KeyError, IndexError, ValueError):
                raise ValueError(
                    f"{what} holds a placeholder that is not one of "
                    f"{', '.join('{' + name + '}' for name in PLACEHOLDERS)}; write a literal brace twice"
                ) from None
        return self


_MLSERVER: dict[str, Any] = {
    "command": ["mlserver", "start", "{model_dir}"],
    "env": {
        "MLSERVER_HOST": "{host}",
        "MLSERVER_HTTP_PORT": "{http_port}",
        "MLSERVER_GRPC_PORT": "{grpc_port}",
        "MLSERVER_METRICS_PORT": "{metrics_port}",
        "MLSERVER_METRICS_ENDPOINT": "/metrics",
        # Inference in the server's own process: replicas are this project's to count.
        "MLSERVER_PARALLEL_WORKERS": "0",
    },
    "grpc": True,
    "metrics_path": "/metrics",
}


def mlserver() -> ServerSettings:
    """The settings behind `server: mlserver`."""
    return ServerSettings(**_MLSERVER)


def _server(value: Any) -> Any:
    if isinstance(value, str):
        if value != "mlserver":
            raise ValueError("the one server known by name is 'mlserver'; give any other as {command: [...]}")
        return mlserver()
    return value


Server = Annotated[ServerSettings, BeforeValidator(_server)]
"""A server by its short name, or by its settings."""


class Resources(Settings):
    """What one replica gets."""

    cpu: float | None = Field(default=None, gt=0)
    """Cores, at most; enforced where the machine lets us."""
    memory: Bytes | None = None
    """At most; enforced where the machine lets us."""
    gpu: int = Field(default=0, ge=0, strict=True)
    """GPUs, reserved for the replica: whole ones, or as many parts of them as `mig` or `gpu_shared` says."""
    gpu_product: str | None = None
    """Only on GPUs of this kind: what nodes are labelled with as `nvidia.com/gpu.product`."""
    mig: str | None = Field(default=None, pattern=r"^\d+g\.\d+gb(\+me)?$")
    """The profile of the MIG slices that `gpu` counts, such as `1g.10gb`."""
    gpu_shared: bool = Field(default=False, strict=True)
    """Whether `gpu` counts time slices of GPUs that others use too."""
    device_class: str | None = None
    """The DRA DeviceClass that the GPUs are claimed by, such as `gpu.nvidia.com`, instead of a device plugin."""

    @model_validator(mode="after")
    def _gpus_are_of_one_kind(self) -> Resources:
        kinds = [name for name in ("mig", "gpu_shared", "device_class") if getattr(self, name)]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(repr(kind) for kind in kinds)} exclude each other; give one of them")
        if (kinds or self.gpu_product) and not self.gpu:
            raise ValueError(f"{(kinds or ['gpu_product'])[0]!r} is about GPUs, and 'gpu' is 0; give how many")
        return self


class Autoscaling(Settings):
    """Between which numbers of replicas a version moves by itself, and by what."""

    min: int = Field(default=1, ge=0, le=10_000, strict=True)
    """0 where something else than the version's own use wakes it: with `by: in-flight` or `queue` and KEDA."""
    max: int = Field(ge=1, le=10_000, strict=True)
    by: Literal["cpu", "gpu", "in-flight", "queue"] = "cpu"
    """Processor time, GPU time, requests that servers are at, or a PromQL `query` of what waits."""
    target: float = Field(gt=0)
    """For each replica: a share (0 to 1) of processor or GPU time, else requests."""
    query: str | None = None
    """PromQL of what waits for the version, with `by: queue`."""
    scaler: Literal["hpa", "keda"] = "hpa"
    scale_down_after: Seconds = 300.0
    """For so long the greater number holds."""

    @model_validator(mode="after")
    def _can_scale(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if (self.by == "queue") != (self.query is not None):
            raise ValueError("'query' and 'by: queue' go together")
        if self.by in ("cpu", "gpu") and self.target > 1:
            raise ValueError(f"target {self.target:g} is a share of a replica's {self.by} time, from 0 to 1")
        if self.min == 0 and self.scaler == "hpa":
            raise ValueError("a HorizontalPodAutoscaler keeps at least 1 replica; give min 1, or 'scaler: keda'")
        if self.min == 0 and self.by in ("cpu", "gpu"):
            raise ValueError(f"no replica uses no {self.by} time, so nothing would wake the version; give min 1")
        return self


class Health(Settings):
    """When the router takes a replica for dead, and for alive again."""

    interval: Seconds = 1.0
    timeout: Seconds = 1.0
    unhealthy_after: int = Field(default=2, ge=1)
    """Failed checks in a row."""
    healthy_after: int = Field(default=1, ge=1)
    eject_after: int = Field(default=5, ge=0)
    """Gateway failures in a row (502, 503, 504, broken connections) that eject a replica; 0: never."""
    eject_for: Seconds = 3.0
    """At first; the n-th ejection in a row lasts n times as long."""


class VersionSettings(Settings):
    """One model version served in one environment."""

    environment: Name
    model: Name
    version: SemanticVersion
    artifact: Digest | None = None
    """The artifact's digest; left out, the one that the environment's store has for this model and version."""
    server: Server | None = None
    """Default: what the artifact names, or else MLServer."""
    replicas: int = Field(default=1, ge=0, le=MOST_REPLICAS, strict=True)
    resources: Resources = Field(default_factory=Resources)
    env: Environment = {}
    """Added to the server's environment. Values may be secrets (`pulumi config set --secret --path`)."""
    ready_timeout: Seconds = 120.0
    """How long a replica may take until it is ready before the deploy fails."""
    warm_up: int = Field(default=10, ge=0, le=10_000, strict=True)
    """Sample requests of its package that it answers before a rollout first gives it weight."""
    drain_timeout: Seconds = 30.0
    """How long a replica that is taken away may take to finish what it has. Left out in mode cluster: 60 s, as long as
    an endpoint's requests may take by default."""
    health: Health = Field(default_factory=Health)
    runtime: Runtime | None = None
    """Default: the node's."""
    image: str | None = None
    """The container image that holds the server, where versions run in containers. In mode cluster by its digest, and
    by default the platform's."""
    autoscaling: Autoscaling | None = None
    """Left out, there are always `replicas`. With it, a deploy brings the version to `replicas` where it has fewer, and
    it moves on from there; 0 is none."""
    priority: Priority = "serving"
    """Who goes first where there is no room for all."""
    pool: Name | None = None
    """Only on nodes of this pool of the platform."""
    nodes_per_replica: int = Field(default=1, ge=1, le=64, strict=True)
    """A replica too large for one node spans so many, each with `resources`."""
    model_volume: Literal["auto", "image", "pull"] = "auto"
    """How the model gets into the version's containers: `image` mounts an image that holds it, `pull` has it pulled and
    verified first; `auto`: `image` where `model_image` is given and the cluster can, else `pull`."""
    model_image: str | None = Field(default=None, pattern=r"^[^\s@]+@sha256:[0-9a-f]{64}$")
    """The image that holds the model's files, by its digest."""
    api_access: bool = Field(default=False, strict=True)
    """Whether its containers get a token of the Kubernetes API."""
    egress: tuple[Network, ...] = ()
    """Networks (CIDR) that its containers may call, beyond where models and images come from; none by default."""

    @model_validator(mode="after")
    def _docker_has_an_image(self) -> VersionSettings:
        if self.runtime == "docker" and self.image is None:
            raise ValueError("runtime 'docker' needs 'image', the container image that holds the server")
        if self.model_volume == "image" and self.model_image is None:
            raise ValueError("model_volume 'image' needs 'model_image', the image that holds the model's files")
        return self

    @property
    def first_replicas(self) -> int:
        """Replicas that a deploy brings it to; an autoscaler may move on from there."""
        if self.autoscaling is None or not self.replicas:
            return self.replicas
        return min(max(self.replicas, self.autoscaling.min), self.autoscaling.max)

    @property
    def stack_name(self) -> str:
        """The name of the one stack that may have these settings."""
        return version_stack(self.environment, self.model, self.version)
