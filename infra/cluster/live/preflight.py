"""What a cluster must have before a platform is put into it: asked of its API server, at each preview and update."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infra.cluster.features import class_features, lacking
from infra.cluster.live.api import Api, NotFoundError
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.gateway import class_problem
from infra.cluster.manifests.gpus import gpu_namespace
from infra.cluster.names import ENVIRONMENT_LABEL, MANAGED_BY, TEAM_LABEL, VERSION_LABEL, team_namespace
from infra.contracts import ObservationError
from infra.errors import UserError
from infra.settings.cluster import ClusterSettings, Feature

OLDEST_KUBERNETES = (1, 32)
OLDEST_GATEWAY_API = (1, 1)
"""In which GRPCRoute became v1, and classes began to say what they can do."""
_IMAGE_VOLUMES = (1, 33)
"""https://kubernetes.io/docs/tasks/configure-pod-container/image-volumes/"""
_GATEWAY_API = "gateway.networking.k8s.io"
_KEY = "lepton:platform.cluster"


@dataclass(frozen=True)
class ClusterFacts:
    """What is true of a cluster that can serve the environment."""

    identity: str
    """The cluster's own, whatever way it is reached by: the UID of its `kube-system`."""
    controller: str
    """The GatewayClass's."""
    features: list[str]
    """The GatewayClass's."""
    lacks: list[str]
    """Fields that the cluster's HTTPRoutes don't have, whatever the class says: `infra.cluster.features.lacking`."""
    nodes: list[Manifest]


class PreflightError(UserError):
    """The cluster can't be reached, or lacks what the platform's config asks of it."""


def preflight(api: Api, environment: str, settings: ClusterSettings, is_in: str | None = None) -> ClusterFacts:
    """Looks at the cluster that an environment is to be in, and changes nothing.

    `is_in`: the identity of the cluster that the environment is in already; None: in none, or it may go to another.

    Raises:
        PreflightError: it is another cluster than that; else with a line for each thing that is missing.
    """
    try:
        identity = api.identity()
        if is_in is not None and is_in != identity:
            raise PreflightError(_other_cluster(api, environment, is_in, identity))
        version = _kubernetes_version(api)
        problems = list(_problems(api, settings, version))
        problems += _foreign_namespaces(api, environment, settings)
        problems += _teams_that_would_go(api, environment, settings)
        routes = _definition(api, f"httproutes.{_GATEWAY_API}")
        gateway_class, class_problems = _gateway_class(api, settings, routes)
        nodes = api.items("/api/v1/nodes")
    except ObservationError as error:
        key = f"{_KEY}.existing" if settings.provision == "existing" else f"{_KEY}.eks"
        raise PreflightError(f"{key}: {error}") from None
    problems += class_problems
    if problems:
        raise PreflightError("\n".join(["the cluster can't serve this environment:", *problems]))
    features = settings.gateway.features
    return ClusterFacts(
        identity=identity,
        controller=gateway_class["spec"]["controllerName"],
        features=class_features(gateway_class) if features is None else list(features),
        lacks=lacking(routes) if routes else [],
        nodes=nodes,
    )


def _problems(api: Api, settings: ClusterSettings, version: tuple[int, int]) -> Iterator[str]:
    if version < OLDEST_KUBERNETES:
        yield f"its Kubernetes is {_dotted(version)}; {_dotted(OLDEST_KUBERNETES)} or newer is needed"
    if "image-volumes" in settings.features and version < _IMAGE_VOLUMES:
        yield (
            f"{_KEY}.features: given 'image-volumes': its Kubernetes is {_dotted(version)}, and they came with "
            f"{_dotted(_IMAGE_VOLUMES)}; leave it out, and models are pulled"
        )
    for feature in settings.features:
        what = _NEEDED.get(feature)
        if what is not None and not _serves(api, what.group_version, what.resource):
            yield (
                f"{_KEY}.features: given {feature!r}: it serves no {what.resource} of {what.group_version}; "
                f"{what.remedy}, or leave {feature!r} out"
            )
    if settings.monitoring.kind == "operator":
        for resource in ("servicemonitors", "podmonitors", "prometheusrules"):
            if not _serves(api, _OPERATOR, resource):
                yield (
                    f"{_KEY}.monitoring.kind: given 'operator': it serves no {resource} of {_OPERATOR}; install the "
                    "Prometheus Operator, or choose 'manifests'"
                )
    tls = settings.gateway.tls
    if tls is not None and tls.issuer is not None and not _has(api, f"{_ISSUERS}/{tls.issuer}"):
        yield (
            f"{_KEY}.gateway.tls.issuer: given {tls.issuer!r}: it has no ClusterIssuer of that name; install "
            "cert-manager and make the issuer first"
        )
    if "kueue" in settings.features:
        yield from _missing_queues(api, settings)


def _other_cluster(api: Api, environment: str, is_in: str, found: str) -> str:
    return (
        f"{_KEY}.existing: {api.way} leads to another cluster than {environment} is in: the UID of its kube-system is "
        f"{found}, and {environment} was brought up in {is_in}. Give the kubeconfig and the context of that one. If it "
        f"is gone, or was built anew: have Pulumi forget what was there, by `pulumi stack rm --force --preserve-config "
        f"STACK` for each endpoint and version of {environment}, then for its platform's stack, and bring it up again"
    )


def _foreign_namespaces(api: Api, environment: str, settings: ClusterSettings) -> Iterator[str]:
    """The platform takes over what it finds by the name of what it makes, and takes it away when it goes."""
    own = settings.namespace
    given = f"{_KEY}.namespace: given {own!r}"
    places = {own: given}
    if settings.gpus.device_plugin or settings.gpus.dcgm_exporter:
        places[gpu_namespace(own)] = given
    places |= {team_namespace(environment, team): f"{_KEY}.teams: given {team!r}" for team in settings.teams}
    wanted = {**MANAGED_BY, ENVIRONMENT_LABEL: environment}
    for name, key in places.items():
        try:
            labels: dict[str, str] = api.get(f"/api/v1/namespaces/{name}")["metadata"].get("labels", {})
        except NotFoundError:
            continue
        if wanted.items() <= labels.items():
            continue
        if MANAGED_BY.items() <= labels.items() and ENVIRONMENT_LABEL in labels:
            whose = f"is the environment {labels[ENVIRONMENT_LABEL]!r}'s"
        else:
            whose = "isn't labelled as of this environment: " + ",".join(f"{k}={v}" for k, v in wanted.items())
        yield f"{key}: the cluster's namespace {name} {whose}; give a name that is free"


def _teams_that_would_go(api: Api, environment: str, settings: ClusterSettings) -> Iterator[str]:
    """A team's namespace goes with the team, and takes the routes of its endpoints along."""
    selector = f"{ENVIRONMENT_LABEL}={environment},{TEAM_LABEL},{VERSION_LABEL}"
    versions = api.items("/api/v1/namespaces", labelSelector=selector)
    left = Counter(version["metadata"]["labels"][TEAM_LABEL] for version in versions)
    for team, count in sorted(left.items()):
        if team not in settings.teams:
            yield (
                f"{_KEY}.teams: {team!r} is not given, and has {count} version{'s' if count > 1 else ''} in the "
                "cluster; take its endpoints and versions away first, or give the team"
            )


def _missing_queues(api: Api, settings: ClusterSettings) -> Iterator[str]:
    try:
        preferred = api.get("/apis/kueue.x-k8s.io")["preferredVersion"]["groupVersion"]
    except NotFoundError:
        return  # Said already.
    for team, of_team in settings.teams.items():
        if of_team.queue and not _has(api, f"/apis/{preferred}/clusterqueues/{of_team.queue}"):
            yield (
                f"{_KEY}.teams.{team}.queue: given {of_team.queue!r}: it has no ClusterQueue of that name; make it "
                "first, as what it may give out is the cluster's to say"
            )


def _gateway_class(api: Api, settings: ClusterSettings, routes: Manifest | None) -> tuple[Manifest, list[str]]:
    """The class that the settings name, and what is wrong with it. `routes`: the definition of HTTPRoutes."""
    given = f"{_KEY}.gateway.class_name: given {settings.gateway.class_name!r}"
    for resource in ("gatewayclasses", "gateways", "httproutes", "grpcroutes"):
        if not _serves(api, f"{_GATEWAY_API}/v1", resource):
            return {}, [
                f"{given}: it serves no {resource} of {_GATEWAY_API}/v1; install the Gateway API's standard CRDs "
                f"({_dotted(OLDEST_GATEWAY_API)} or newer) and a controller"
            ]
    classes = {found["metadata"]["name"]: found for found in api.items(f"/apis/{_GATEWAY_API}/v1/gatewayclasses")}
    found = classes.get(settings.gateway.class_name)
    if found is None:
        there = ", ".join(sorted(classes)) or "none: install a controller of the Gateway API, which brings its own"
        return {}, [f"{given}: it has no GatewayClass of that name; there are: {there}"]
    problem = class_problem(found)
    problems = [f"{given}: {problem}"] if problem else []
    bundle = _bundle_version(routes) if routes else None
    if bundle is not None and bundle < OLDEST_GATEWAY_API:
        problems.append(
            f"its Gateway API is {_dotted(bundle)}; {_dotted(OLDEST_GATEWAY_API)} or newer is needed: upgrade its CRDs"
        )
    return found, problems


def _bundle_version(crd: Manifest) -> tuple[int, int] | None:
    """The release that the Gateway API's CRDs are of; None where they don't say.

    https://gateway-api.sigs.k8s.io/concepts/versioning/
    """
    text = crd["metadata"].get("annotations", {}).get(f"{_GATEWAY_API}/bundle-version", "")
    match = re.match(r"v(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _kubernetes_version(api: Api) -> tuple[int, int]:
    found = api.get("/version")
    # Some clouds write `33+`.
    return int(found["major"]), int(re.sub(r"\D.*", "", found["minor"]))


def _serves(api: Api, group_version: str, resource: str) -> bool:
    try:
        found: dict[str, Any] = api.get(f"/apis/{group_version}")
    except NotFoundError:
        return False
    return any(served["name"] == resource for served in found["resources"])


def _definition(api: Api, resource: str) -> Manifest | None:
    try:
        return api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{resource}")
    except NotFoundError:
        return None


def _has(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except NotFoundError:
        return False
    return True


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True)
class _Needed:
    group_version: str
    resource: str
    remedy: str


_ISSUERS = "/apis/cert-manager.io/v1/clusterissuers"
_OPERATOR = "monitoring.coreos.com/v1"
_NEEDED: dict[Feature, _Needed] = {
    "dynamic-resource-allocation": _Needed(
        "resource.k8s.io/v1", "resourceclaimtemplates", "that is Kubernetes 1.34 and newer, with a DRA driver"
    ),
    "leader-worker-sets": _Needed("leaderworkerset.x-k8s.io/v1", "leaderworkersets", "install LeaderWorkerSet"),
    "keda": _Needed("keda.sh/v1alpha1", "scaledobjects", "install KEDA"),
    "kueue": _Needed("kueue.x-k8s.io/v1beta1", "localqueues", "install Kueue"),
}
