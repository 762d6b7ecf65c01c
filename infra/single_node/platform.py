"""The platform of a single node: its supervisor, its router, its metrics and its guard."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pulumi

from infra.contracts import Stack
from infra.settings import PlatformSettings
from infra.single_node.machine import envoy, metrics
from infra.single_node.machine.claims import claim_ports, detect_gpus, is_port_free, listener, ports_of, release
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.program import Program
from infra.single_node.machine.router import Router
from infra.single_node.machine.supervisor import Supervisor, belongs_to
from infra.single_node.resource import Driver, MachineResource, Properties, with_drift
from infra.trust import read_trust

_EXPORTER = "exporter"
_GUARD = "guard"
_SERVICES = "platform"
"""Owner of the ports of the node's own services."""
_START_SECONDS = 20
_NO_PORT = 0
"""In place of a claim that was lost, so that what is there differs from it."""


class Platform(pulumi.ComponentResource):
    """One machine with everything that its versions and endpoints need."""

    def __init__(self, stack: Stack, settings: PlatformSettings) -> None:
        # Before any resource: a key that can't be read must stop the update.
        trust = read_trust(settings.trust, Path(stack.folder))
        super().__init__("lepton:single-node:Platform", stack.name)
        node = settings.node
        directory = str(Path(stack.folder, node.directory or f".state/nodes/{settings.environment}"))
        gpus = detect_gpus() if node.gpus == "detect" else node.gpus
        child = pulumi.ResourceOptions(parent=self)

        supervisor = NodeSupervisor(f"{stack.name}-supervisor", {"directory": directory}, child)
        on_supervisor = pulumi.ResourceOptions(parent=self, depends_on=[supervisor])
        router = NodeRouter(
            f"{stack.name}-router",
            {
                "directory": directory,
                "address": node.address,
                "port": node.port,
                "service_ports": list(node.ports),
            },
            on_supervisor,
        )
        node_metrics = NodeMetrics(
            f"{stack.name}-metrics",
            {
                "directory": directory,
                "port": settings.monitoring.port,
                "scrape_interval_seconds": settings.monitoring.scrape_interval,
                "retention_seconds": settings.monitoring.retention,
                "service_ports": list(node.ports),
            },
            on_supervisor,
        )
        if settings.guard:
            NodeGuard(
                f"{stack.name}-guard",
                {"directory": directory, "project": stack.folder, "environment": settings.environment},
                # The first to go: nobody is to act on an environment that is being taken down.
                pulumi.ResourceOptions(parent=self, depends_on=[supervisor, router, node_metrics]),
            )
        # A router that listens on every address is reached at the loopback one too.
        reached_at = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(node.address, node.address)
        host = f"[{reached_at}]" if ":" in reached_at else reached_at
        self.exports = {
            "mode": settings.mode,
            "environment": settings.environment,
            "endpoint_base_url": f"http://{host}:{node.port}",
            "metrics_url": f"http://127.0.0.1:{settings.monitoring.port}",
            "registry": None,
            "artifact_store": settings.store_location(stack.folder),
            "trust": trust,
            "gpu_inventory": {"gpu": len(gpus)} if gpus else {},
            "internals": {
                "directory": directory,
                "ports": list(node.ports),
                "gpus": gpus,
                "runtime": node.runtime,
            },
        }
        self.register_outputs(self.exports)


class _SupervisorDriver(Driver):
    def identity(self, props: Properties) -> str:
        return props["directory"]

    def create(self, props: Properties) -> Properties:
        Supervisor(Node(Path(props["directory"]))).start()
        return props

    def read(self, props: Properties) -> Properties | None:
        supervisor = Supervisor(Node(Path(props["directory"])))
        return with_drift(props, supervisor.own_drift()) if supervisor.is_running() else None

    def delete(self, props: Properties) -> None:
        supervisor = Supervisor(Node(Path(props["directory"])))
        supervisor.stop()
        # A program whose own removal failed must not come back with a later platform.
        supervisor.forget_programs()


class _RouterDriver(Driver):
    def identity(self, props: Properties) -> str:
        return props["directory"]

    def check(self, olds: Properties, props: Properties) -> None:
        _refuse_taken_port(props, "lepton:platform.node.port", props["address"])

    def create(self, props: Properties) -> Properties:
        node = Node(Path(props["directory"]))
        router = Router(node)
        router.initialise()
        ports = claim_ports(node, _SERVICES, ["stats"], tuple(props["service_ports"]))
        _start(node, self._program(props, ports["stats"]), router.is_live)
        self._targets(node, ports["stats"]).write()
        return props

    def read(self, props: Properties) -> Properties | None:
        node = Node(Path(props["directory"]))
        supervisor = Supervisor(node)
        if not (supervisor.has_file(envoy.PROGRAM) and Router(node).is_live()):
            return None
        port = ports_of(node, _SERVICES).get("stats", _NO_PORT)
        drift = [*supervisor.drift(self._program(props, port)), *self._targets(node, port).drift()]
        return with_drift(props, drift)

    def delete(self, props: Properties) -> None:
        node = Node(Path(props["directory"]))
        Supervisor(node).remove(envoy.PROGRAM)
        release(node, _SERVICES)

    def _program(self, props: Properties, stats_port: int) -> Program:
        return envoy.program(Node(Path(props["directory"])), props["address"], props["port"], stats_port)

    def _targets(self, node: Node, stats_port: int) -> metrics.Targets:
        return metrics.Targets(node, "router", "node", [stats_port])


class _MetricsDriver(Driver):
    def identity(self, props: Properties) -> str:
        return props["directory"]

    def check(self, olds: Properties, props: Properties) -> None:
        _refuse_taken_port(props, "lepton:platform.monitoring.port", "127.0.0.1")

    def create(self, props: Properties) -> Properties:
        node = Node(Path(props["directory"]))
        port = claim_ports(node, _EXPORTER, ["http"], tuple(props["service_ports"]))["http"]
        exporter, prometheus = self._programs(props, port)
        Supervisor(node).put(exporter)
        metrics.make_target_folders(node)
        self._targets(node, port).write()
        _start(node, prometheus, lambda: metrics.is_ready(props["port"]))
        return props

    def read(self, props: Properties) -> Properties | None:
        node = Node(Path(props["directory"]))
        supervisor = Supervisor(node)
        if not all(supervisor.state(name) in {"STARTING", "RUNNING"} for name in (metrics.PROGRAM, _EXPORTER)):
            return None
        port = ports_of(node, _EXPORTER).get("http", _NO_PORT)
        try:
            programs = self._programs(props, port)
        except NodeError as error:
            # Whoever asks has no Prometheus: a refresh can go on, and an update says the same.
            return with_drift(props, [str(error)])
        drift = [problem for program in programs for problem in supervisor.drift(program)]
        return with_drift(props, [*drift, *self._targets(node, port).drift()])

    def delete(self, props: Properties) -> None:
        node = Node(Path(props["directory"]))
        for name in (metrics.PROGRAM, _EXPORTER):
            Supervisor(node).remove(name)
        release(node, _EXPORTER)

    def _programs(self, props: Properties, exporter_port: int) -> tuple[Program, Program]:
        node = Node(Path(props["directory"]))
        command = [sys.executable, "-m", "infra.single_node.machine.exporter"]
        command += ["--directory", str(node.directory), "--port", str(exporter_port)]
        prometheus = metrics.program(node, props["port"], props["scrape_interval_seconds"], props["retention_seconds"])
        return Program(_EXPORTER, command), prometheus

    def _targets(self, node: Node, exporter_port: int) -> metrics.Targets:
        return metrics.Targets(node, "node", "node", [exporter_port])


class _GuardDriver(Driver):
    def identity(self, props: Properties) -> str:
        return props["directory"]

    def create(self, props: Properties) -> Properties:
        Supervisor(Node(Path(props["directory"]))).put(self._program(props))
        return props

    def read(self, props: Properties) -> Properties | None:
        supervisor = Supervisor(Node(Path(props["directory"])))
        if supervisor.state(_GUARD) not in {"STARTING", "RUNNING", "BACKOFF"}:
            return None
        return with_drift(props, supervisor.drift(self._program(props)))

    def delete(self, props: Properties) -> None:
        Supervisor(Node(Path(props["directory"]))).remove(_GUARD)

    def _program(self, props: Properties) -> Program:
        command = [str(Path(sys.prefix, "bin", "lepton")), "guard", props["environment"], "--wait"]
        # It brings stacks up, as the user does, and what it has begun is to end well also where it is killed.
        return Program(_GUARD, [*command, "--project", props["project"]], inherits=True, leaves_children=True)


class NodeSupervisor(MachineResource, module="single-node", name="Supervisor"):
    """The process that keeps all others of the node running."""

    driver = _SupervisorDriver()


class NodeRouter(MachineResource, module="single-node", name="Router"):
    """The Envoy that all endpoints of the node share."""

    driver = _RouterDriver()


class NodeMetrics(MachineResource, module="single-node", name="Metrics"):
    """The node's Prometheus, and the exporter of the machine's own figures."""

    driver = _MetricsDriver()


class NodeGuard(MachineResource, module="single-node", name="Guard"):
    """The process that looks after the environment's endpoints, between rollouts too: the command `lepton guard`."""

    driver = _GuardDriver()


def _start(node: Node, program: Program, is_ready: Callable[[], bool]) -> None:
    supervisor = Supervisor(node)
    supervisor.put(program)
    deadline = time.monotonic() + _START_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            raise NodeError(
                f"{program.name} was not ready within {_START_SECONDS} s. Its last log lines:\n"
                f"{supervisor.log_tail(program.name)}"
            )
        time.sleep(0.05)


def _refuse_taken_port(props: Properties, key: str, address: str) -> None:
    """A port that another program listens on is an error before anything is touched."""
    port = props["port"]
    if is_port_free(port, address):
        return
    holder = listener(port)
    if holder is not None and belongs_to(holder, Node(Path(props["directory"]))):
        return
    who = f"{holder.name()} (process {holder.pid})" if holder else "another program"
    raise NodeError(f"{key}: given {port}: {who} listens on it; choose another port, or end that program")
