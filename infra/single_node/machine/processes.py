"""Runtime `process`: a replica is a supervised process of this machine."""

from __future__ import annotations

from infra.single_node.machine.node import Node
from infra.single_node.machine.program import Program
from infra.single_node.machine.servers import Replica, ServerSpec, server_command
from infra.single_node.machine.supervisor import Supervisor


class ProcessRuntime:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._supervisor = Supervisor(node)

    def start(self, spec: ServerSpec, replica: Replica) -> None:
        self._supervisor.put(_program(spec, replica))

    def drift(self, spec: ServerSpec, replica: Replica) -> list[str]:
        return self._supervisor.drift(_program(spec, replica))

    def stop(self, name: str) -> None:
        self._supervisor.remove(name)

    def names(self, owner: str) -> list[str]:
        return sorted(path.stem for path in self._node.programs.glob(f"{owner}_*.conf"))

    def instance(self, name: str) -> str | None:
        pid = self._supervisor.pid(name)
        return None if pid is None else str(pid)

    def log_tail(self, name: str) -> str:
        return self._supervisor.log_tail(name)


def _program(spec: ServerSpec, replica: Replica) -> Program:
    command, env = server_command(spec, "127.0.0.1", replica.ports, spec.model_dir)
    marks = {"LEPTON_TEAM": spec.team, "LEPTON_MODEL": spec.model, "LEPTON_VERSION": spec.version}
    # Devices that weren't reserved are hidden, also when none were.
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(replica.gpus)}
    return Program(replica.name, command, env | marks | devices, spec.limits, spec.drain_seconds)
