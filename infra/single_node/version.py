"""A model version on a single node: its artifact, unpacked and verified, and its servers behind the router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pulumi

from infra.contracts import PlatformExports, Stack
from infra.names import version_id
from infra.settings import VersionSettings
from infra.settings.version import Health, ServerSettings
from infra.single_node.machine import models
from infra.single_node.machine.limits import Limits
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.processes import ProcessRuntime
from infra.single_node.machine.router import Router
from infra.single_node.machine.servers import Runtime, Servers, ServerSpec
from infra.single_node.resource import Driver, MachineResource, Properties, with_drift
from infra.trust import signed_by, trust_of
from model_packaging.artifact import Artifact
from model_packaging.stores import open_store


class ServedVersion(pulumi.ComponentResource):
    """Servers of one model version, ready to get a share of an endpoint's traffic."""

    def __init__(self, stack: Stack, settings: VersionSettings, platform: PlatformExports, *, secret: bool) -> None:
        super().__init__("lepton:single-node:ServedVersion", stack.name)
        # Both may hold what nobody should read in the state.
        server, env = settings.server and settings.server.model_dump(mode="json"), settings.env
        servers = ModelServers(
            f"{stack.name}-servers",
            {
                "node": platform["internals"],
                "store": platform["artifact_store"],
                "team": stack.team,
                "model": settings.model,
                "version": settings.version,
                "digest": settings.artifact,
                "trust": trust_of(platform, stack.team),
                "server": pulumi.Output.secret(server) if secret else server,
                "env": pulumi.Output.secret(env) if secret else env,
                "replicas": settings.replicas,
                "cpu": settings.resources.cpu,
                "memory_bytes": settings.resources.memory,
                "gpus": settings.resources.gpu,
                "health": settings.health.model_dump(mode="json"),
                "ready_seconds": settings.ready_timeout,
                "drain_seconds": settings.drain_timeout,
                "runtime": settings.runtime,
                "image": settings.image,
            },
            pulumi.ResourceOptions(parent=self),
        )
        self.exports: Mapping[str, pulumi.Input[Any]] = {
            "model": settings.model,
            "version": settings.version,
            "artifact_digest": servers.digest,
            "git_commit": servers.git_commit,
            "backend": servers.backend,
            "desired_replicas": settings.replicas,
            "ready_replicas": servers.ready_replicas,
        }
        self.register_outputs(dict(self.exports))


class _ModelServersDriver(Driver):
    outputs = ("backend", "git_commit", "ready_replicas")
    notes = ("git_dirty", "pickles", "signed_by", "trust")

    def identity(self, props: Properties) -> str:
        return f"{version_id(props['team'], props['model'], props['version'])}@{props['node']['directory']}"

    def check(self, olds: Properties, props: Properties) -> None:
        artifact = Artifact.find(open_store(props["store"]), props["model"], props["version"])
        found = artifact.digest
        if props.get("digest", found) != found:
            raise NodeError(
                f"lepton:version.artifact: given {props['digest']}: the store {props['store']} has "
                f"{props['model']}:{props['version']} as {found}"
            )
        if olds and olds["digest"] != found and self.identity(olds) == self.identity(props):
            raise NodeError(
                f"{props['model']} {props['version']} was deployed as {olds['digest']}, and the store has {found} now: "
                "a version is immutable, so give the new artifact a new version"
            )
        props.update(_provenance(artifact, signed_by(artifact, props.get("trust"))), digest=found)
        if props.get("server") is None:
            props["server"] = artifact.description.package.serving().model_dump(mode="json")
        props.setdefault("runtime", props["node"]["runtime"])
        if props["runtime"] == "docker" and "image" not in props:
            raise NodeError("lepton:version.image: the node's runtime is docker, so a version needs an image")

    def create(self, props: Properties) -> Properties:
        node = Node(Path(props["node"]["directory"]))
        artifact = Artifact.at(open_store(props["store"]), props["model"], props["digest"])
        # What is tagged and attached may have changed since the check.
        signed_by(artifact, props.get("trust"))
        git = artifact.description.git
        spec, servers = _spec(props), _servers(props)
        try:
            unpacked = models.unpack(node, artifact, spec.owner)
            spec = replace(spec, unpacking=unpacked.stat().st_ino)
            replicas = servers.converge(spec, props["replicas"], _health(props), props["ready_seconds"])
        except BaseException:
            if not servers.is_known(spec.team, spec.model, spec.version):
                models.forget(node, spec.owner)
            raise
        return props | {
            "backend": {"protocol": spec.server.protocol, "grpc": spec.server.grpc},
            "git_commit": git.commit if git else None,
            "ready_replicas": len(replicas),
        }

    def read(self, props: Properties) -> Properties | None:
        servers = _servers(props)
        identity = (props["team"], props["model"], props["version"])
        if not servers.is_known(*identity):
            return None
        ready = servers.ready_replicas(*identity, props["server"]["ready_path"])
        # Too few is a difference to what was asked for, so that the next update mends it.
        found = props | {"ready_replicas": ready, "replicas": ready}
        return with_drift(found, servers.drift(_spec(props), _health(props)))

    def delete(self, props: Properties) -> None:
        identity = (props["team"], props["model"], props["version"])
        _servers(props).remove(*identity)
        models.forget(Node(Path(props["node"]["directory"])), version_id(*identity))


class ModelServers(MachineResource, module="single-node", name="ModelServers"):
    """The replicas of one model version, and the router's cluster of them."""

    driver = _ModelServersDriver()
    backend: pulumi.Output[dict[str, Any]]
    digest: pulumi.Output[str]
    git_commit: pulumi.Output[str | None]
    ready_replicas: pulumi.Output[int]


def _provenance(artifact: Artifact, signer: str | None) -> Properties:
    """What policies ask about where an artifact comes from; without what is not known."""
    git = artifact.description.git
    known = {
        "git_commit": git.commit if git else None,
        "git_dirty": git.dirty if git else None,
        "pickles": list(artifact.description.pickles),
        "signed_by": signer,
    }
    return {name: value for name, value in known.items() if value is not None}


def _spec(props: Properties) -> ServerSpec:
    return ServerSpec(
        team=props["team"],
        model=props["model"],
        version=props["version"],
        model_dir=str(models.model_folder(Node(Path(props["node"]["directory"])), props["digest"])),
        server=ServerSettings.model_validate(props["server"]),
        env=props["env"],
        limits=Limits(props.get("cpu"), props.get("memory_bytes")),
        gpus=props["gpus"],
        image=props.get("image"),
        drain_seconds=props["drain_seconds"],
    )


def _health(props: Properties) -> Health:
    return Health.model_validate(props["health"])


def _servers(props: Properties) -> Servers:
    node = Node(Path(props["node"]["directory"]))
    first, last = props["node"]["ports"]
    return Servers(
        node,
        _runtime(props["runtime"], node),
        Router(node),
        port_range=(first, last),
        gpu_inventory=props["node"]["gpus"],
    )


def _runtime(name: str, node: Node) -> Runtime:
    if name == "docker":
        from infra.single_node.machine.containers import ContainerRuntime  # noqa: PLC0415 - slow to import

        return ContainerRuntime(node)
    return ProcessRuntime(node)
