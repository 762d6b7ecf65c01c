"""What each mode must provide, and what its stacks export.

A mode is a package `infra.<mode>` (hyphens become underscores) with four modules:

| module     | holds                                                         |
| ---------- | ------------------------------------------------------------- |
| `platform` | `Platform`: a component made from `PlatformSettings`          |
| `version`  | `ServedVersion`: a component made from `VersionSettings`      |
| `endpoint` | `Endpoint`: a component made from `EndpointSettings`; `Shifter` |
| `observe`  | `Observer`: what is true on the data plane, never from state  |

Adding a mode is adding a package: nothing here, and nothing in another mode, changes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from infra.errors import UserError

if TYPE_CHECKING:
    import pulumi

    from infra.settings import EndpointSettings, PlatformSettings, VersionSettings
    from infra.settings.platform import Mode


class PublicKeyExport(TypedDict):
    """A key whose signatures on artifacts count."""

    name: str
    """As the platform's config names it."""
    pem: str


class TrustExports(TypedDict):
    """Whose signatures on artifacts count in an environment."""

    required: bool
    """Whether a version that none of them has signed is refused."""
    keys: list[PublicKeyExport]
    """For versions of every team."""
    teams: dict[str, list[PublicKeyExport]]
    """For versions of that team."""


class PlatformExports(TypedDict):
    """Outputs of a platform stack."""

    mode: Mode
    environment: str
    endpoint_base_url: str
    """`<endpoint_base_url>/TEAM/MODEL` is an endpoint's URL, where the mode gives endpoints a path."""
    metrics_url: str
    """Base URL of an API that answers PromQL."""
    registry: str | None
    """Where container images are kept, if the environment has such a place."""
    artifact_store: str
    trust: TrustExports | None
    """None where signatures don't matter."""
    gpu_inventory: dict[str, int]
    """GPUs by product name."""
    internals: dict[str, Any]
    """What the mode's own version and endpoint stacks need; private to the mode."""


class VersionExports(TypedDict):
    """Outputs of a version stack."""

    model: str
    version: str
    artifact_digest: str
    git_commit: str | None
    backend: dict[str, Any]
    """Where the router finds the version; private to the mode."""
    desired_replicas: int
    ready_replicas: int


class RolloutExports(TypedDict):
    """Which rollout, and which driver of it, made an endpoint's last update."""

    id: str
    driver: str
    step: int


class EndpointExports(TypedDict):
    """Outputs of an endpoint stack."""

    url: str
    weights: dict[str, int]
    baseline: str
    shadow: dict[str, Any] | None
    dashboard_url: str | None
    rollout: RolloutExports | None
    """None while no rollout is under way."""


@dataclass(frozen=True)
class Stack:
    """The stack that a component is made in."""

    team: str
    """The Pulumi project; for a platform stack, the platform's."""
    name: str
    folder: str
    """Absolute path of the project's root folder, which holds `stacks/`."""


class Component(Protocol):
    exports: Mapping[str, pulumi.Input[Any]]
    """The stack's outputs, as the TypedDict of its kind says."""


class PlatformFactory(Protocol):
    def __call__(self, stack: Stack, settings: PlatformSettings) -> Component: ...


class VersionFactory(Protocol):
    def __call__(
        self, stack: Stack, settings: VersionSettings, platform: PlatformExports, *, secret: bool
    ) -> Component:
        """`secret`: some of the settings are secrets, so that none may be in the state as it is."""
        ...


class EndpointFactory(Protocol):
    def __call__(
        self,
        stack: Stack,
        settings: EndpointSettings,
        platform: PlatformExports,
        versions: Mapping[str, VersionExports],
    ) -> Component: ...


class Traffic(TypedDict):
    """An endpoint's traffic as the data plane has it."""

    weights: dict[str, int]
    """Relative weight by version; empty where the data plane has no such endpoint."""
    shadow: dict[str, float]
    """Percentage of copied requests by version."""


class Amount(TypedDict):
    """Of processors, memory or GPUs."""

    cpu: float
    """Cores."""
    memory: int
    """Bytes."""
    gpu: int
    """Whole GPUs."""


class Room(TypedDict):
    """An environment's capacity."""

    total: Amount
    reserved: Amount
    """What its versions' replicas are promised, used or not. One that is promised nothing counts as nothing."""


class Held(TypedDict):
    """What one holder's replicas are promised on a node."""

    holder: str
    """`TEAM/ENV.MODEL-VERSION`, or whatever else holds it."""
    replicas: int
    priority: str
    """As in a version's settings; of others, what the environment calls it."""
    cpu: float
    """Cores, of all these replicas together; memory and GPUs too."""
    memory: int
    gpus: dict[str, int]


class NodeInventory(TypedDict):
    """One machine of an environment, and what of it is spoken for."""

    name: str
    pool: str
    """Empty where it is of none."""
    product: str | None
    """Of its GPUs."""
    ready: bool
    """Whether new replicas may come."""
    cpu: float
    """Cores."""
    memory: int
    """Bytes."""
    gpus: dict[str, int]
    """By resource: `nvidia.com/gpu` for whole ones, `nvidia.com/mig-PROFILE` for slices, `nvidia.com/gpu.shared`."""
    held: list[Held]


class Observer(Protocol):
    """Reads the data plane of one environment. Every method raises ObservationError when it can't be read."""

    def confirm(self) -> None:
        """Raises ObservationError where what is reached now isn't the environment that its platform's stack made."""
        ...

    def traffic(self, team: str, model: str) -> Traffic: ...

    def ready(self, team: str, model: str, versions: list[str]) -> dict[str, int]:
        """Replicas that the data plane would send a request to, by version."""
        ...

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Instant vector of a PromQL expression: each sample's labels and value."""
        ...

    def room(self) -> Room:
        """What the environment has, and what of it is spoken for."""
        ...

    def inventory(self) -> list[NodeInventory]:
        """The same machine by machine."""
        ...

    def why_not_ready(self, team: str, model: str, version: str) -> list[str]:
        """What keeps a version's replicas from being ready, a line each; empty where nothing is known to."""
        ...

    def split(self, team: str, model: str, requests: int) -> dict[str, int] | None:
        """How many of so many requests of its own each version answered, as a client sees it.

        None where `traffic` is the data plane's own word already, or answers don't name their version.
        """
        ...


class ObserverFactory(Protocol):
    def __call__(self, platform: PlatformExports) -> Observer: ...


class Shifter(Protocol):
    """Moves an endpoint's weights on the data plane itself, past its stack: for an emergency, and undone by nothing.

    The stack has to follow with the same weights, or its next refresh calls them drift.
    """

    def shift(self, team: str, model: str, weights: Mapping[str, int]) -> None:
        """Gives the endpoint's variants these weights, all of them, and returns when the data plane has them.

        Raises:
            ObservationError: when that can't be done; the weights are as they were then.
        """
        ...


class ShifterFactory(Protocol):
    def __call__(self, platform: PlatformExports) -> Shifter: ...


class ObservationError(UserError):
    """The data plane or the metrics can't be read."""


class QueryError(ObservationError):
    """The metrics are there, and the query is none that they can answer."""


class UnknownModeError(UserError):
    """No package provides this mode."""


def platform_of(mode: Mode) -> PlatformFactory:
    """The mode's platform. Raises UnknownModeError, as the others, when this installation doesn't have the mode."""
    return cast("PlatformFactory", _member(mode, "platform", "Platform"))


def version_of(mode: Mode) -> VersionFactory:
    return cast("VersionFactory", _member(mode, "version", "ServedVersion"))


def endpoint_of(mode: Mode) -> EndpointFactory:
    return cast("EndpointFactory", _member(mode, "endpoint", "Endpoint"))


def observer_of(platform: PlatformExports) -> Observer:
    """Reads the data plane of the environment with these outputs.

    Raises:
        UnknownModeError: when this installation doesn't have the mode.
    """
    return cast("ObserverFactory", _member(platform["mode"], "observe", "Observer"))(platform)


def shifter_of(platform: PlatformExports) -> Shifter:
    """Moves weights in the environment with these outputs. Raises as `observer_of`."""
    return cast("ShifterFactory", _member(platform["mode"], "endpoint", "Shifter"))(platform)


def _member(mode: Mode, module: str, name: str) -> object:
    package = f"infra.{mode.replace('-', '_')}"
    try:
        return getattr(importlib.import_module(f"{package}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith(package):
            raise
        raise UnknownModeError(
            f"mode {mode!r} is not part of this installation: no module {package}.{module}"
        ) from None
