"""The platform of a Kubernetes cluster: its namespaces, priorities, Gateway, GPUs and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pulumi

from infra.cluster.internals import AwsFacts, ClusterInternals, Connection, PoolFacts
from infra.cluster.live.api import Api
from infra.cluster.live.preflight import ClusterFacts, preflight
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.claims import deletion_policy
from infra.cluster.manifests.gateway import (
    base_url,
    gateway,
    listener_hostnames,
    listener_names,
    status_address,
    status_problems,
)
from infra.cluster.manifests.gpus import GpuPool, gpu_inventory, gpu_objects
from infra.cluster.manifests.monitoring import metrics_url, monitoring_objects
from infra.cluster.manifests.priorities import priority_classes
from infra.cluster.manifests.storage import encrypted_volumes
from infra.cluster.manifests.teams import pod_security, team_facts, team_objects
from infra.cluster.names import ENVIRONMENT_LABEL, GATEWAY, MANAGED_BY
from infra.cluster.resource import Object, provider
from infra.contracts import Stack
from infra.errors import UserError
from infra.outputs import own_outputs
from infra.settings import PlatformSettings
from infra.settings.cluster import ClusterSettings, GatewaySettings
from infra.trust import read_trust

_POLL_SECONDS = 1.0
_AFTER_AN_UPDATE = "not known before the Gateway is programmed"


class GuardError(UserError):
    """A guard was asked for where none is run."""


class Platform(pulumi.ComponentResource):
    """A cluster with everything that its versions and endpoints need."""

    def __init__(self, stack: Stack, settings: PlatformSettings) -> None:
        # Before any resource: a key that can't be read, or a cluster that lacks something, must stop the update.
        trust = read_trust(settings.trust, Path(stack.folder))
        _refuse_guard(settings)
        asked, environment = settings.cluster, settings.environment
        assert asked is not None, "the settings of mode cluster have one"
        cluster = _existing(asked, stack, environment) if asked.eks is None else None
        monitoring = monitoring_objects(asked, environment, cluster.facts.controller if cluster else "")
        super().__init__("lepton:cluster:Platform", stack.name)
        if cluster is None:
            cluster = _on_eks(asked, stack, environment, pulumi.ResourceOptions(parent=self))
        self._stack = stack.name
        self._child = pulumi.ResourceOptions(
            parent=self, provider=provider(stack.name, cluster.connection, pulumi.ResourceOptions(parent=self))
        )

        self._objects([*priority_classes(asked.namespace), *deletion_policy(environment, asked.namespace)])
        (namespace,) = self._objects([_namespace(environment, asked.namespace)])
        for team in sorted(asked.teams):
            self._objects(team_objects(environment, team))
        self._objects(
            gpu_objects(
                environment,
                asked.namespace,
                cluster.gpu_pools,
                device_plugin=asked.images.device_plugin if asked.gpus.device_plugin else None,
                dcgm_exporter=asked.images.dcgm_exporter if asked.gpus.dcgm_exporter else None,
                pull_secrets=asked.images.pull_secrets,
            )
        )
        volumes = self._objects([encrypted_volumes(asked.namespace)] if asked.eks else [])
        self._objects(monitoring, after=[namespace, *volumes])
        (shared,) = self._objects(
            [gateway(environment, asked.namespace, asked.teams, asked.gateway)], after=[namespace]
        )

        self.exports: Mapping[str, pulumi.Input[Any]] = {
            "mode": settings.mode,
            "environment": environment,
            "endpoint_base_url": pulumi.Output.all(cluster.connection, shared.id).apply(
                lambda known: _reached_at(known[0], asked.namespace, asked.gateway)
            ),
            "metrics_url": metrics_url(asked),
            "registry": cluster.registry,
            "artifact_store": settings.store_location(stack.folder),
            "trust": trust,
            "gpu_inventory": cluster.gpu_inventory,
            "internals": pulumi.Output.all(cluster.connection, cluster.facts, cluster.aws).apply(
                lambda known: _internals(environment, asked, cluster.pools, *known)
            ),
        }
        self.register_outputs(dict(self.exports))

    def _objects(self, manifests: Sequence[Manifest], after: Sequence[Object] = ()) -> list[Object]:
        """Objects, each after the namespace that it is in where that is one of them."""
        made: list[Object] = []
        namespaces: dict[str, Object] = {}
        for manifest in manifests:
            metadata = manifest["metadata"]
            own = namespaces.get(metadata.get("namespace", ""))
            resource = self._object(manifest, after=[*after, *([own] if own else [])])
            if manifest["kind"] == "Namespace":
                namespaces[metadata["name"]] = resource
            made.append(resource)
        return made

    def _object(self, manifest: Manifest, after: Sequence[Object] = ()) -> Object:
        metadata = manifest["metadata"]
        parts = [self._stack, manifest["kind"].lower(), metadata.get("namespace"), metadata["name"]]
        options = pulumi.ResourceOptions.merge(self._child, pulumi.ResourceOptions(depends_on=list(after)))
        return Object("-".join(part for part in parts if part), manifest, options)


def _namespace(environment: str, name: str) -> Manifest:
    # Some classes run the Gateway's own Pods beside it, and those aren't restricted.
    labels = {**MANAGED_BY, ENVIRONMENT_LABEL: environment, **pod_security("baseline")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


F = TypeVar("F", ClusterFacts, "pulumi.Output[ClusterFacts]")


@dataclass(frozen=True)
class _Cluster(Generic[F]):
    """A cluster, whose facts are known where it is there already."""

    connection: pulumi.Input[Connection]
    facts: F
    pools: list[PoolFacts]
    gpu_pools: list[GpuPool]
    gpu_inventory: dict[str, int]
    registry: pulumi.Input[str | None]
    aws: pulumi.Input[AwsFacts | None]


def _existing(settings: ClusterSettings, stack: Stack, environment: str) -> _Cluster[ClusterFacts]:
    """The cluster that is there. Raises PreflightError."""
    given = settings.existing.kubeconfig
    if given is not None and not given.startswith("~"):
        given = str(Path(stack.folder, given))
    connection: Connection = {"kubeconfig": given, "context": settings.existing.context, "document": None}
    facts = preflight(Api(connection), environment, settings, is_in=_is_in())
    gpu_pools = [
        GpuPool(
            PoolFacts(
                name=pool.name,
                labels=pool.labels,
                gpu_resource=pool.gpu_resource,
                product=pool.product,
                tolerations=list(pool.tolerations),
            ),
            pool.shares,
        )
        for pool in settings.pools
    ]
    return _Cluster(
        connection={**connection, "identity": facts.identity},
        facts=facts,
        pools=[pool.facts for pool in gpu_pools],
        gpu_pools=[pool for pool in gpu_pools if pool.facts["gpu_resource"]],
        gpu_inventory=gpu_inventory(facts.nodes, gpu_pools),
        registry=settings.images.registry,
        aws=None,
    )


def _is_in() -> str | None:
    """The identity of the cluster that the environment was last brought up in.

    Pulumi replaces everything where it is another one: made there, and looked for there to be taken away, too.
    """
    internals = own_outputs().get("internals") or {}
    return (internals.get("connection") or {}).get("identity")


def _on_eks(
    settings: ClusterSettings, stack: Stack, environment: str, opts: pulumi.ResourceOptions
) -> _Cluster[pulumi.Output[ClusterFacts]]:
    """The cluster that is made here. Nothing is put into it that has not passed the preflight."""
    # Only these environments need AWS.
    from infra.cluster.eks import EksCluster  # noqa: PLC0415

    assert settings.eks is not None, "the settings of `provision: eks` have them"
    region = settings.eks.region
    eks = EksCluster(stack.name, environment, settings.eks, opts)

    def check(document: str) -> tuple[Connection, ClusterFacts]:
        connection: Connection = {"kubeconfig": None, "context": None, "document": document}
        try:
            facts = preflight(Api(connection), environment, settings)
        except UserError as error:
            raise pulumi.RunError(str(error)) from None
        return {**connection, "identity": facts.identity}, facts

    checked = eks.kubeconfig.apply(check)
    shares = {pool.name: pool.gpu.shares for pool in settings.eks.pools if not pool.ami.startswith("bottlerocket")}
    return _Cluster(
        connection=checked.apply(lambda found: found[0]),
        facts=checked.apply(lambda found: found[1]),
        pools=eks.pools,
        # Bottlerocket's nodes have a device plugin of their own.
        gpu_pools=[GpuPool(pool, shares[pool["name"]]) for pool in eks.pools if pool["name"] in shares],
        gpu_inventory=eks.gpu_inventory,
        registry=eks.registry,
        aws=pulumi.Output.all(eks.cluster_name, eks.puller_role_arn).apply(
            lambda known: AwsFacts(region=region, cluster=known[0], puller_role_arn=known[1])
        ),
    )


def _internals(
    environment: str,
    settings: ClusterSettings,
    pools: list[PoolFacts],
    connection: Connection,
    facts: ClusterFacts,
    aws: AwsFacts | None,
) -> ClusterInternals:
    return {
        "environment": environment,
        "namespace": settings.namespace,
        "connection": connection,
        "gateway": {
            "name": GATEWAY,
            "namespace": settings.namespace,
            "class_name": settings.gateway.class_name,
            "controller": facts.controller,
            "features": facts.features,
            "lacks": facts.lacks,
            "listeners": listener_names(settings.teams, settings.gateway),
            "hostnames": listener_hostnames(settings.teams, settings.gateway),
            "pods_namespace": settings.gateway.namespace,
            "probe": settings.gateway.probe,
        },
        "teams": {team: team_facts(environment, team, of_team) for team, of_team in settings.teams.items()},
        "images": {
            "server": settings.images.server,
            "puller": settings.images.puller,
            "pull_secrets": list(settings.images.pull_secrets),
        },
        "pools": pools,
        "features": list(settings.features),
        "monitoring_namespace": settings.namespace if settings.monitoring.kind == "manifests" else None,
        "grafana_url": settings.monitoring.grafana_url,
        "aws": aws,
    }


async def _reached_at(connection: Connection, namespace: str, settings: GatewaySettings) -> str:
    """The base URL of the environment's endpoints, once the Gateway is programmed."""
    if settings.url is not None:
        return settings.url
    api = Api(connection)
    path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways/{GATEWAY}"
    deadline = time.monotonic() + settings.ready_timeout
    while True:
        found = await asyncio.to_thread(api.get, path)
        url = base_url(settings, status_address(found))
        problems = status_problems(found)
        if url is not None and not problems:
            return url
        if pulumi.runtime.is_dry_run():
            return _AFTER_AN_UPDATE
        if time.monotonic() > deadline:
            problems = problems or [
                "Gateway: it has no address; where a load balancer in front of it is yours to make, give "
                "lepton:platform.cluster.gateway.url"
            ]
            raise pulumi.RunError(
                f"the Gateway {namespace}/{GATEWAY} was not ready within {settings.ready_timeout:g} s:\n"
                + "\n".join(problems)
            )
        await asyncio.sleep(_POLL_SECONDS)


def _refuse_guard(settings: PlatformSettings) -> None:
    """That a guard runs by itself is the default, which no more than one asks for."""
    if settings.guard and "guard" in settings.model_fields_set:
        raise GuardError(
            "lepton:platform.guard: given True: a cluster runs no guard, which needs the project and its backend; run "
            f"`lepton guard {settings.environment}` where your automation runs, and leave the key out"
        )
