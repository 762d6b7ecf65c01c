"""Runtime `docker`: a replica is a container, through the Docker Engine API.

The engine is the environment's (`DOCKER_HOST`, or its default socket), and runs on this machine: a container reads the
model from the node's folder, and is reached at the machine's loopback address alone.

Reference: https://docs.docker.com/reference/api/engine/
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from infra.single_node.machine.marks import CONTAINER_VARIABLE
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.servers import Replica, ServerSpec, server_command

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_MODEL_DIR = "/model"
_NODE = "lepton.node"
_OWNER = "lepton.owner"
_LOG_LINES = 20

# The engine's 64 MiB are too little for servers whose processes share tensors (vLLM, Triton), and the host's own would
# be open to every container. It is a bound: what is really used counts against the memory limit.
_SHARED_MEMORY_BYTES = 8 * 2**30

_REMEDIES = {
    "could not select device driver": "it has no driver for GPUs: install the NVIDIA Container Toolkit and run "
    "`nvidia-ctk runtime configure --runtime=docker`, or set lepton:version.resources.gpu to 0",
    "address pool": "it has no addresses for one more network, and each version has its own: "
    "set `default-address-pools` in its daemon.json to more and smaller networks",
}
"""What to do, by what the engine says."""


class ContainerRuntime:
    def __init__(self, node: Node) -> None:
        self._node = node

    def start(self, spec: ServerSpec, replica: Replica) -> None:
        with _engine() as client:
            _fetch_image(client, spec.image)
            # The container first: whoever is interrupted from here on, `stop` finds it, and through it the network.
            container = client.api.create_container(**self._description(client, spec, replica))
            labels = self._labels(spec.owner)
            if not client.networks.list(filters=_having(labels)):
                client.networks.create(self._docker_name(spec.owner), driver="bridge", labels=labels)
            client.api.start(container)

    def stop(self, name: str) -> None:
        with _engine() as client:
            container = self._container(client, name)
            if container is None:
                return
            container.stop(timeout=container.attrs["Config"]["StopTimeout"])
            owner = container.labels[_OWNER]
            if self._containers(client, owner) == [container]:
                for network in client.networks.list(filters=_having(self._labels(owner))):
                    network.remove()
            container.remove(v=True, force=True)

    def names(self, owner: str) -> list[str]:
        prefix = self._docker_name("")
        with _engine() as client:
            return sorted(str(container.name).removeprefix(prefix) for container in self._containers(client, owner))

    def instance(self, name: str) -> str | None:
        with _engine() as client:
            container = self._container(client, name)
            # Between two runs the last one counts: some are too short to be seen running.
            if container is None or container.status not in {"running", "restarting"}:
                return None
            return container.attrs["State"]["StartedAt"]

    def log_tail(self, name: str) -> str:
        with _engine() as client:
            container = self._container(client, name)
            return "" if container is None else container.logs(tail=_LOG_LINES).decode(errors="replace")

    def drift(self, spec: ServerSpec, replica: Replica) -> list[str]:
        """None: the engine keeps what a container is, and lets nobody change it."""
        return []

    # -- inside

    def _description(self, client: DockerClient, spec: ServerSpec, replica: Replica) -> dict[str, Any]:
        """What the container is, for the API's `create`."""
        import docker.types  # noqa: PLC0415 - slow to import, and needed by containers alone

        # In its network it may listen on every address: of the machine's, only loopback is published.
        command, env = server_command(spec, "0.0.0.0", replica.ports, _MODEL_DIR)
        marks = {"LEPTON_TEAM": spec.team, "LEPTON_MODEL": spec.model, "LEPTON_VERSION": spec.version}
        marks[CONTAINER_VARIABLE] = str(self._node.directory)
        gpus: dict[str, Any] = {}
        if replica.gpus:
            gpus["device_requests"] = [docker.types.DeviceRequest(device_ids=replica.gpus, capabilities=[["gpu"]])]
        else:
            # Where NVIDIA's runtime is the engine's default, many images ask for every GPU there is.
            marks["NVIDIA_VISIBLE_DEVICES"] = "void"
        limits: dict[str, Any] = {}
        if spec.limits.cpu is not None:
            limits["nano_cpus"] = round(spec.limits.cpu * 1e9)
        if spec.limits.memory is not None:
            # The same with and without swap: no swap.
            limits |= {"mem_limit": spec.limits.memory, "memswap_limit": spec.limits.memory}
        host = client.api.create_host_config(
            network_mode=self._docker_name(spec.owner),
            port_bindings={port: ("127.0.0.1", port) for port in replica.ports.values()},
            mounts=[docker.types.Mount(_MODEL_DIR, spec.model_dir, type="bind", read_only=True)],
            restart_policy={"Name": "unless-stopped"},
            log_config=docker.types.LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"}),
            # As a container's first process, a server that doesn't handle SIGTERM would not get it at all.
            init=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            shm_size=_SHARED_MEMORY_BYTES,
            **gpus,
            **limits,
        )
        return {
            "image": spec.image,
            "name": self._docker_name(replica.name),
            # In place of the image's own entry point, so that a command is the same in every runtime.
            "entrypoint": command[:1],
            "command": command[1:],
            "environment": env | marks,
            "labels": self._labels(spec.owner),
            "ports": list(replica.ports.values()),
            "stop_timeout": math.ceil(spec.drain_seconds),
            "host_config": host,
        }

    def _docker_name(self, name: str) -> str:
        return f"lepton-{self._node.id}-{name}"

    def _labels(self, owner: str) -> dict[str, str]:
        return {_NODE: self._node.id, _OWNER: owner}

    def _container(self, client: DockerClient, name: str) -> Container | None:
        import docker.errors  # noqa: PLC0415

        try:
            return client.containers.get(self._docker_name(name))
        except docker.errors.NotFound:
            return None

    def _containers(self, client: DockerClient, owner: str) -> list[Container]:
        return client.containers.list(all=True, filters=_having(self._labels(owner)), ignore_removed=True)


def _having(labels: dict[str, str]) -> dict[str, Any]:
    """The API's filter for what has all these labels."""
    return {"label": [f"{name}={value}" for name, value in labels.items()]}


def _fetch_image(client: DockerClient, image: str | None) -> None:
    """Pulls the image unless the engine has it."""
    import docker.errors  # noqa: PLC0415
    import docker.utils  # noqa: PLC0415

    if image is None:
        raise NodeError("lepton:version.image: the runtime is docker, so a version needs an image")
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        repository, tag = docker.utils.parse_repository_tag(image)
        try:
            progress = list(client.api.pull(repository, tag or "latest", stream=True, decode=True))
            problems = [line["error"] for line in progress if "error" in line]
        except docker.errors.APIError as error:
            problems = [error.explanation]
        if problems:
            raise NodeError(
                f"lepton:version.image: given {image!r}: the Docker Engine does not have it and could not pull it "
                f"({problems[0]}); correct the name, log in to its registry, or load it with `docker load`"
            ) from None


@contextlib.contextmanager
def _engine() -> Iterator[DockerClient]:
    """A client of the Docker Engine, whose errors become ours."""
    import docker  # noqa: PLC0415 - slow to import, and needed by containers alone
    import docker.constants  # noqa: PLC0415
    import docker.errors  # noqa: PLC0415

    address = os.environ.get("DOCKER_HOST") or docker.constants.DEFAULT_UNIX_SOCKET.removeprefix("http+")
    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise NodeError(
            f"lepton:version.runtime: given 'docker' (by lepton:platform.node.runtime, if not by the version): no "
            f"Docker Engine answers at {address} ({error}); start one, set DOCKER_HOST to where it is, or choose the "
            "runtime 'process'"
        ) from None
    try:
        yield client
    except docker.errors.APIError as error:
        words = str(error.explanation or error)
        remedy = next((remedy for symptom, remedy in _REMEDIES.items() if symptom in words), None)
        raise NodeError(f"the Docker Engine refused: {words}" + (f"; {remedy}" if remedy else "")) from None
    except OSError as error:
        # Of the connection: what the engine itself has to say comes as an APIError.
        raise NodeError(f"the Docker Engine at {address} stopped answering: {error}") from None
    finally:
        client.close()
