"""What a cluster's platform stack tells its version and endpoint stacks, beyond what every mode exports."""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

from infra.contracts import PlatformExports


class Connection(TypedDict):
    """How the API server is reached. Never holds a secret."""

    kubeconfig: str | None
    """A file's path, as the config says it: absolute, or from the user's home (`~`); None: as kubectl finds it."""
    context: str | None
    document: str | None
    """A kubeconfig as it is, of a cluster that the platform made: credentials come from a command that it names."""
    identity: NotRequired[str]
    """The cluster's own, whatever way it is reached by: objects of another one are others."""


class GatewayFacts(TypedDict):
    """The Gateway and its class."""

    name: str
    namespace: str
    class_name: str
    controller: str
    """The class's `spec.controllerName`."""
    features: list[str]
    """The class's `status.supportedFeatures`."""
    lacks: NotRequired[list[str]]
    """Fields of an HTTPRoute's rule that the cluster's Gateway API doesn't have, whatever the class says."""
    listeners: dict[str, str]
    """The listener's name, by team."""
    hostnames: dict[str, str]
    """The listener's host name, by team; empty where listeners have none."""
    pods_namespace: str | None
    """Where the class's own Pods run; None: anywhere."""
    probe: NotRequired[bool]
    """Whether `lepton` may send requests of its own through the gateway. Left out, it may."""


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


class AwsFacts(TypedDict):
    """Of a cluster that the platform made on Amazon EKS."""

    region: str
    cluster: str
    puller_role_arn: str
    """The role with which a version's Pods read artifacts from the registry, by EKS Pod Identity."""


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
    grafana_url: NotRequired[str | None]
    """Where people reach a Grafana with the dashboards."""
    aws: NotRequired[AwsFacts | None]
    """None, or left out: it isn't on EKS, or not of the platform's making."""


def internals_of(platform: PlatformExports) -> ClusterInternals:
    """The internals, with what is None in them: Pulumi leaves such keys out of a stack's outputs."""
    found = cast("ClusterInternals", platform["internals"])
    return {
        "monitoring_namespace": None,
        **found,
        "connection": {"kubeconfig": None, "context": None, "document": None, **found["connection"]},
        "gateway": {"pods_namespace": None, **found["gateway"]},
        "teams": {name: {"queue": None, **team} for name, team in found["teams"].items()},
        "images": {"server": None, "puller": None, **found["images"]},
        "pools": [{"gpu_resource": None, "product": None, **pool} for pool in found["pools"]],
    }
