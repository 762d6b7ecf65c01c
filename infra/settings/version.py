"""What a version stack's config may say: config key `lepton:version`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from infra.names import version_stack
from infra.settings.platform import Runtime
from infra.settings.values import Bytes, Digest, Name, Seconds, SemanticVersion, Settings

Protocol = Literal["oip-v2", "openai"]

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
    """Whole GPUs, reserved for the replica."""


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
    replicas: int = Field(default=1, ge=0, le=100, strict=True)
    resources: Resources = Field(default_factory=Resources)
    env: Environment = {}
    """Added to the server's environment. Values may be secrets (`pulumi config set --secret --path`)."""
    ready_timeout: Seconds = 120.0
    """How long a replica may take until it is ready before the deploy fails."""
    warm_up: int = Field(default=10, ge=0, le=10_000, strict=True)
    """Sample requests of its package that it answers before a rollout first gives it weight."""
    drain_timeout: Seconds = 30.0
    """How long a replica that is taken away may take to finish what it has."""
    health: Health = Field(default_factory=Health)
    runtime: Runtime | None = None
    """Default: the node's."""
    image: str | None = None
    """The container image, where the runtime is docker."""

    @model_validator(mode="after")
    def _docker_has_an_image(self) -> VersionSettings:
        if self.runtime == "docker" and self.image is None:
            raise ValueError("runtime 'docker' needs 'image', the container image that holds the server")
        return self

    @property
    def stack_name(self) -> str:
        """The name of the one stack that may have these settings."""
        return version_stack(self.environment, self.model, self.version)
