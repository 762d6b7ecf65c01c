"""What a cluster's platform stack tells its version and endpoint stacks, beyond what every mode exports."""

from __future__ import annotations

from typing import TypedDict, cast

from infra.contracts import PlatformExports


class Connection(TypedDict):
    """How the API server is reached. Never holds a secret."""

    kubeconfig: str | None
    """A file's path, as the config says it: absolute, or from the user's home (`~`); None: as kubectl finds it."""
    context: str | None
    document: str | None
    """A kubeconfig as it is, of a cluster that the platform made: credentials come from a command that it names."""


class GatewayFacts(TypedDict):
    """The Gateway and its class."""

    name: str
    namespace: str
    class_name: str
    controller: str
    """The class's `spec.controllerName`."""
    features: list[str]
    """The class's `status.supportedFeatures`."""
    listeners: dict[str, str]
    """The listener's name, by team."""
    hostnames: dict[str, str]
    """The listener's host name, by team; empty where listeners have none."""
    pods_namespace: str | None
    """Where the class's own Pods run; None: anywhere."""


class PoolFacts(TypedDict):
    """Nodes of one kind."""

    name: str
    labels: dict[str, str]
    gpu_resource: str | None
    product: str | None
    tolerations: list[dict[str, str]]


class TeamFacts(TypedDict):
    """What the platform has for a team."""

    namespace: str
    quota: dict[str, str]
    """In Kubernetes' terms (`requests.cpu`: "8"), of all its versions together; empty: none."""
    limits: dict[str, str]
    """By resource (`cpu`: "2"), what a container of its versions gets that says none, as request and as limit; empty:
    none. `infra.cluster.manifests.teams.limit_range` makes a LimitRange of it, for each version's namespace."""
    queue: str | None
    """Its Kueue LocalQueue's ClusterQueue."""


class ImageFacts(TypedDict):
    server: str | None
    puller: str | None
    pull_secrets: list[str]


class ClusterInternals(TypedDict):
    environment: str
    namespace: str
    """The platform's own."""
    connection: Connection
    gateway: GatewayFacts
    teams: dict[str, TeamFacts]
    images: ImageFacts
    pools: list[PoolFacts]
    features: list[str]
    """As `infra.settings.cluster.Feature`."""
    monitoring_namespace: str | None
    """Where a Prometheus runs that scrapes versions; None: anywhere."""


def internals_of(platform: PlatformExports) -> ClusterInternals:
    return cast("ClusterInternals", platform["internals"])
