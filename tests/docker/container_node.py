"""A node for tests whose versions run as containers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from docker.models.containers import Container

from infra.single_node.machine.claims import claim_ports
from infra.single_node.machine.containers import ContainerRuntime
from infra.single_node.machine.servers import Replica, Servers, ServerSpec, is_ready
from tests.deadline import until
from tests.docker.engine import Engine
from tests.single_node.running_node import RunningNode


class ContainerNode(RunningNode):
    """Its router runs only once it is started; containers need none."""

    def __init__(self, directory: Path, port_range: tuple[int, int], engine: Engine) -> None:
        super().__init__(directory, port_range, Path("/oip-server"))
        self.engine = engine
        self.containers = ContainerRuntime(self.node)
        self.model_dir = directory / "model"
        self.model_dir.mkdir()
        (self.model_dir / "weights.bin").write_text("weights")

    def servers(self, gpus: Sequence[str] = ()) -> Servers:
        return Servers(self.node, self.containers, self.router, port_range=self.port_range, gpu_inventory=list(gpus))

    def container_spec(
        self, model: str = "tumour", version: str = "1.0.0", *, drain_seconds: float = 5, **more: Any
    ) -> ServerSpec:
        return replace(
            self.spec(model, version, **more),
            image=self.engine.image,
            model_dir=str(self.model_dir),
            drain_seconds=drain_seconds,
        )

    def create_replica(self, spec: ServerSpec, index: int = 0, gpus: Sequence[str] = ()) -> Replica:
        """Starts a container by the runtime alone."""
        name = f"{spec.owner}_test_{index}"
        replica = Replica(name, claim_ports(self.node, name, ["http"], self.port_range), list(gpus))
        self.containers.start(spec, replica)
        return replica

    def ready_replica(self, spec: ServerSpec, index: int = 0) -> Replica:
        replica = self.create_replica(spec, index)
        self.wait_until_ready(replica)
        return replica

    def wait_until_ready(self, replica: Replica) -> None:
        until(lambda: is_ready(replica.ports["http"], "/v2/health/ready"), what=f"{replica.name} is ready")

    def container(self, replica: Replica) -> Container:
        found = [c for c in self.all_containers() if str(c.name).endswith(f"-{replica.name}")]
        assert len(found) == 1, found
        return found[0]

    def inside(self, replica: Replica, command: str, argument: str) -> tuple[int, str]:
        """The exit status and output of the program `inside`, run in the replica's container."""
        status, output = self.container(replica).exec_run(["/inside", command, argument])
        assert status is not None
        assert isinstance(output, bytes)
        return status, output.decode()

    def all_containers(self, owner: str | None = None) -> list[Container]:
        return self.engine.client.containers.list(all=True, filters=self._having(owner), ignore_removed=True)

    def networks(self, owner: str | None = None) -> list[str]:
        return sorted(str(network.name) for network in self.engine.client.networks.list(filters=self._having(owner)))

    def nothing_left(self, owner: str | None = None) -> bool:
        """Whether the engine has nothing of this version, or of the whole node."""
        return not self.all_containers(owner) and not self.networks(owner)

    def end(self) -> None:
        """Stops what still runs, as the runtime stops it, and finds nothing left."""
        try:
            for container in self.all_containers():
                self.containers.stop(str(container.name).removeprefix(f"lepton-{self.node.id}-"))
            assert self.nothing_left(), (self.all_containers(), self.networks())
        finally:
            super().end()

    def _having(self, owner: str | None) -> dict[str, Any]:
        return {"label": [f"lepton.node={self.node.id}", *([f"lepton.owner={owner}"] if owner else [])]}
