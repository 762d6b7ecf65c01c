"""A model version in a cluster: a namespace of its own, with the Pods that serve it and all that belongs to them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pulumi

from infra.cluster.internals import internals_of
from infra.cluster.live.api import Api
from infra.cluster.live.handover import hand_over_replicas
from infra.cluster.live.logins import read_logins
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.autoscaling import autoscaler
from infra.cluster.manifests.disruption import disruption_budget
from infra.cluster.manifests.identity import environment_secret, namespace, service_account
from infra.cluster.manifests.isolation import network_policies, reference_grant
from infra.cluster.manifests.model_volume import REGISTRIES, trusted_keys
from infra.cluster.manifests.registry import pull_secret
from infra.cluster.manifests.scheduling import defaults, local_queue, resource_claims, resource_quota
from infra.cluster.manifests.version import SURGE, Version, ecr_host
from infra.cluster.manifests.workload import going_seconds, server_command, service, workload
from infra.cluster.names import GRPC_PORT, HTTP_PORT, SERVER, STAGE_LABEL
from infra.cluster.refusals import (
    VersionRefused,
    refuse_beyond_quota,
    refuse_impossible,
    refuse_local_store,
    refuse_unknown_team,
)
from infra.cluster.resource import Object, provider
from infra.contracts import PlatformExports, Stack
from infra.outputs import own_outputs
from infra.settings import VersionSettings
from infra.trust import signed_by, trust_of
from model_packaging.artifact import Artifact
from model_packaging.errors import CatalogueFailed, NotInCatalogue
from model_packaging.stores import open_store

_MARGIN_SECONDS = 10
"""So much later than Kubernetes itself, which says why, an update is given up."""
_REMOVAL_SECONDS = 600
"""What Kubernetes may take to remove an object, beyond what its replicas have to drain."""
_STAGE = f'metadata.labels["{STAGE_LABEL}"]'


class ServedVersion(pulumi.ComponentResource):
    """A model version's namespace and everything in it, ready to get a share of an endpoint's traffic."""

    def __init__(self, stack: Stack, settings: VersionSettings, platform: PlatformExports, *, secret: bool) -> None:
        version = read_version(stack, settings, platform, secret=secret)
        _refuse_changed(version)
        api = Api(version.internals["connection"])
        if not pulumi.runtime.is_dry_run():
            refuse_beyond_quota(version, api)
            if version.scales:
                hand_over_replicas(version, api)
        logins = _logins(version, api)
        super().__init__("lepton:cluster:ServedVersion", stack.name)
        self._stack = stack.name
        self._kubernetes = provider(
            f"{stack.name}-cluster", version.internals["connection"], pulumi.ResourceOptions(parent=self)
        )
        # What another machine's catalogue knows stays; a new version has its first stage.
        unknown = [] if version.stage else [_STAGE]
        own = self._object(namespace(version), [], custom_timeouts=_removal(version), ignore_changes=unknown)
        before: list[pulumi.Resource] = [
            self._object(manifest, [own])
            for manifest in (
                service_account(version),
                *network_policies(version),
                *defaults(version),
                resource_quota(version),
                *resource_claims(version),
                *trusted_keys(version),
                *_secrets(version, logins),
                reference_grant(version),
                disruption_budget(version),
            )
        ]
        # Its ClusterQueue never changes, and Kueue refuses a Deployment that has ready replicas another queue's name.
        other_queue = {"replace_on_changes": ["spec.clusterQueue"], "delete_before_replace": True}
        before += [self._object(manifest, [own], **other_queue) for manifest in local_queue(version)]
        if version.takes_role:
            before.append(self._role(version, own))
        servers = self._object(_workload(version), [own, *before], custom_timeouts=_timeouts(version))
        if version.scales and not pulumi.runtime.is_dry_run():
            # One that is new by now has but one replica yet.
            pulumi.Output.all(servers.id, servers.status).apply(lambda _: hand_over_replicas(version, api))
        after = [self._object(manifest, [servers]) for manifest in autoscaler(version)]
        # Last, and so the first to be taken away: where an endpoint has the version, the cluster refuses that
        # (infra.cluster.manifests.claims), and nothing else is harmed.
        self._object(service(version), [own, *before, servers, *after])
        self.exports: Mapping[str, pulumi.Input[Any]] = {
            "model": settings.model,
            "version": settings.version,
            "artifact_digest": version.digest,
            "git_commit": version.git_commit,
            "backend": {
                "protocol": version.server.protocol,
                "grpc": version.server.grpc,
                "namespace": version.namespace,
                "service": SERVER,
                "http_port": HTTP_PORT,
                "grpc_port": GRPC_PORT if version.server.grpc else None,
            },
            "desired_replicas": settings.first_replicas,
            "ready_replicas": servers.status.apply(lambda status: (status or {}).get("readyReplicas", 0)),
        }
        self.register_outputs(dict(self.exports))

    def _object(self, manifest: Manifest, after: Sequence[pulumi.Resource], **options: Any) -> Object:
        """`options`: more of pulumi.ResourceOptions."""
        name = f"{self._stack}-{manifest['kind']}-{manifest['metadata']['name']}".lower()
        always: dict[str, Any] = {"parent": self, "provider": self._kubernetes, "depends_on": list(after)}
        return Object(name, manifest, pulumi.ResourceOptions(**always, **options))

    def _role(self, version: Version, own: Object) -> pulumi.Resource:
        """What its Pods read artifacts from ECR as. https://docs.aws.amazon.com/eks/latest/userguide/pod-identities.html"""
        import pulumi_aws as aws  # noqa: PLC0415 - not installed where nothing is on AWS

        from infra.cluster.eks.identity import ServiceAccount, associate  # noqa: PLC0415

        facts = version.internals.get("aws")
        assert facts, "a version takes a role on EKS alone"
        region = aws.Provider(f"{self._stack}-aws", region=facts["region"], opts=pulumi.ResourceOptions(parent=self))
        account = ServiceAccount(version.namespace, SERVER)
        options = pulumi.ResourceOptions(parent=self, provider=region, depends_on=[own])
        return associate(f"{self._stack}-puller", facts["cluster"], facts["puller_role_arn"], account, options)


def read_version(stack: Stack, settings: VersionSettings, platform: PlatformExports, *, secret: bool) -> Version:
    """The version with its artifact as the store has it, checked against what the platform has.

    Raises:
        VersionRefused: the environment can't serve it so.
        PackagingError: the store hasn't got the artifact, or it isn't to be trusted.
    """
    internals, location = internals_of(platform), platform["artifact_store"]
    refuse_unknown_team(stack, settings, internals)
    refuse_local_store(location)
    artifact = Artifact.find(open_store(location), settings.model, settings.version)
    _refuse_other_bytes(artifact, settings, location)
    trust = trust_of(platform, stack.team)
    signer = signed_by(artifact, trust)
    description = artifact.description
    version = Version(
        team=stack.team,
        settings=settings,
        server=description.package.serving(settings.server),
        internals=internals,
        image=settings.image or internals["images"]["server"] or "",
        digest=artifact.digest,
        size=artifact.size,
        store=location,
        prometheus=_inside(platform["metrics_url"]),
        git_commit=description.git.commit if description.git else None,
        stage=_stage(stack, settings),
        trusted_keys=tuple(key["pem"] for key in trust["keys"]) if trust and trust["required"] else (),
        provenance=_provenance(artifact, signer),
        secret=secret,
    )
    refuse_impossible(version)
    return version


def _refuse_other_bytes(artifact: Artifact, settings: VersionSettings, location: str) -> None:
    if settings.artifact not in (None, artifact.digest):
        raise VersionRefused(
            [
                f"lepton:version.artifact: given {settings.artifact}: the store {location} has "
                f"{settings.model}:{settings.version} as {artifact.digest}"
            ]
        )


def _refuse_changed(version: Version) -> None:
    deployed, settings = own_outputs().get("artifact_digest"), version.settings
    if deployed not in (None, version.digest):
        raise VersionRefused(
            [
                f"{settings.model} {settings.version} was deployed as {deployed}, and the store has {version.digest} "
                "now: a version is immutable, so give the new artifact a new version"
            ]
        )


def _provenance(artifact: Artifact, signer: str | None) -> dict[str, str]:
    """What policies ask about where an artifact comes from; without what is not known."""
    git, pickles = artifact.description.git, artifact.description.pickles
    known = {
        "lepton/git-commit": git.commit if git else None,
        "lepton/git-dirty": str(git.dirty).lower() if git else None,
        "lepton/pickles": " ".join(pickles) or None,
        "lepton/signed-by": signer,
    }
    return {name: value for name, value in known.items() if value is not None}


def _stage(stack: Stack, settings: VersionSettings) -> str | None:
    """The version's stage, as this machine's catalogue has it; None where it hasn't, or can't be read.

    A label more or less stops no deploy. A version that no catalogue knows is in the stage in which one takes it in,
    DEVELOPMENT: a deploy does that when it is done.
    """
    file = Path(stack.folder, ".state", "catalogue.sqlite")
    url = os.environ.get("LEPTON_CATALOGUE") or (f"sqlite:///{file}" if file.exists() else None)
    if url is None:
        return None
    from model_packaging.catalogue.catalogue import Catalogue  # noqa: PLC0415 - slow to import

    try:
        with Catalogue(url) as catalogue:
            return catalogue.show(settings.model, settings.version).summary.stage
    except (NotInCatalogue, CatalogueFailed):
        return None


def _inside(metrics_url: str) -> str:
    """Where Pods reach Prometheus, that others may reach through the API server."""
    parts = urlsplit(metrics_url)
    if parts.scheme != "kubernetes":
        return metrics_url
    service, _, port = parts.path.strip("/").partition(":")
    return f"http://{service}.{parts.netloc}.svc:{port}"


def _logins(version: Version, api: Api) -> dict[str, str] | None:
    if not version.has_logins:
        return None
    names = version.internals["images"]["pull_secrets"]
    ecr = ecr_host(version.store) if version.takes_role else None
    return read_logins(api, version.internals["namespace"], names, ecr)


def _secrets(version: Version, logins: dict[str, str] | None) -> list[Manifest]:
    secrets: list[Manifest] = []
    if logins is not None:
        secrets.append(pull_secret(version.namespace, REGISTRIES, version.labels, pulumi.Output.secret(logins)))
    if version.secret:
        manifest = environment_secret(version, server_command(version)[1])
        secrets.append(manifest | {"data": pulumi.Output.secret(manifest["data"])})
    return secrets


def _workload(version: Version) -> Manifest:
    """The workload, its command kept from the state where it may hold a secret."""
    manifest = workload(version)
    if version.secret:
        for template in _templates(manifest):
            for container in template["spec"]["containers"]:
                container["command"] = pulumi.Output.secret(container["command"])
    return manifest


def _templates(manifest: Manifest) -> list[dict[str, Any]]:
    group = manifest["spec"].get("leaderWorkerTemplate")
    return [group["leaderTemplate"], group["workerTemplate"]] if group else [manifest["spec"]["template"]]


def _timeouts(version: Version) -> pulumi.CustomTimeouts:
    """At first all replicas start at once; in an update, as many at a time as its surge has."""
    each, rounds = math.ceil(version.settings.ready_timeout), math.ceil(1 / SURGE)
    return pulumi.CustomTimeouts(
        create=f"{each + _MARGIN_SECONDS}s",
        update=f"{each * max(1, min(rounds, version.most)) + _MARGIN_SECONDS}s",
        delete=_removal(version).delete,
    )


def _removal(version: Version) -> pulumi.CustomTimeouts:
    return pulumi.CustomTimeouts(delete=f"{going_seconds(version) + _REMOVAL_SECONDS}s")
