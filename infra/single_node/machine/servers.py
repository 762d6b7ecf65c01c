"""Brings a version's servers to what is wanted, capacity first, and takes what is no longer wanted away.

The order is what keeps requests whole. A new replica is ready before the router hears of it; the router has let go of
an old one before it is stopped; and a version that can't come up leaves everything as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from infra.names import version_id
from infra.settings.version import Health, ServerSettings
from infra.single_node.machine.claims import (
    VersionName,
    claim_gpus,
    claim_ports,
    gpus_of,
    note_limits,
    ports_of,
    release,
)
from infra.single_node.machine.limits import Limits
from infra.single_node.machine.metrics import Targets
from infra.single_node.machine.node import Node, NodeError
from infra.single_node.machine.router import Router
from infra.single_node.machine.stats import VARIANT, cluster_name
from infra.single_node.routing import ReplicaAddress, version_clusters

_POLL_SECONDS = 0.05
_MOST_STARTS = 3
"""A server that exited this often before it was ready once will not become ready."""


@dataclass(frozen=True)
class ServerSpec:
    """What every replica of a version is."""

    team: str
    model: str
    version: str
    model_dir: str
    server: ServerSettings
    env: dict[str, str]
    limits: Limits
    gpus: int
    image: str | None
    drain_seconds: float
    unpacking: int = 0
    """Tells one unpacking of the artifact from the next: servers of an earlier one may have read harmed files."""

    @property
    def owner(self) -> str:
        return version_id(self.team, self.model, self.version)


@dataclass(frozen=True)
class Replica:
    """One server process or container, and what it holds of the node."""

    name: str
    ports: dict[str, int]
    gpus: list[str]


class Runtime(Protocol):
    """How a replica runs: as a process, or as a container."""

    def start(self, spec: ServerSpec, replica: Replica) -> None: ...
    def stop(self, name: str) -> None: ...
    def names(self, owner: str) -> list[str]:
        """Replicas of a version that were started and not stopped."""
        ...

    def instance(self, name: str) -> str | None:
        """Tells one run of the replica from the next; None while it doesn't run."""
        ...

    def log_tail(self, name: str) -> str: ...
    def drift(self, spec: ServerSpec, replica: Replica) -> list[str]:
        """Where what the replica would be started again from is not as `start` left it."""
        ...


class NotReadyError(NodeError):
    """A replica did not become ready."""


class Servers:
    """The servers of this node's versions."""

    def __init__(
        self,
        node: Node,
        runtime: Runtime,
        router: Router,
        *,
        port_range: tuple[int, int],
        gpu_inventory: list[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._runtime = runtime
        self._router = router
        self._port_range = port_range
        self._gpu_inventory = gpu_inventory
        self._clock = clock

    def converge(self, spec: ServerSpec, replicas: int, health: Health, ready_seconds: float) -> list[Replica]:
        """Has exactly `replicas` servers of this spec run and be routed to, and returns them.

        Raises:
            NotReadyError: when one doesn't become ready within `ready_seconds`, with its last log lines. As many
                servers as before serve then, and none is left that doesn't.
        """
        generation = self._generation(spec)
        wanted = [f"{spec.owner}_{generation}_{index}" for index in range(replicas)]
        present = self._runtime.names(spec.owner)
        surplus = [name for name in present if name not in wanted]
        # Of those that go, the ones that can serve do so until their successors can.
        leaving = [self._found(name) for name in surplus if self._serves(spec, name)]
        if spec.gpus:
            # A dead server must not keep the devices that its successor needs.
            self._discard(*(set(surplus) - {replica.name for replica in leaving}))
        serving: list[Replica] = []
        started: list[str] = []
        try:
            for name in wanted:
                if name in present and self._serves(spec, name) and not self._runtime.drift(spec, self._found(name)):
                    serving.append(self._found(name))
                else:
                    self._discard(name)
                    started.append(name)
                    serving.append(self._start(spec, name, ready_seconds))
                if leaving and len(leaving) + len(serving) > replicas:
                    # One in, one out: a node never needs room for more than one replica twice.
                    gone = leaving.pop(0)
                    self._route(spec, [*leaving, *serving], health, ready_seconds)
                    started.clear()
                    self._discard(gone.name)
            self._route(spec, serving, health, ready_seconds)
        except BaseException:
            # What nobody was told of nobody would miss, or stop.
            self._discard(*started)
            with contextlib.suppress(NodeError):
                self._unroute_discarded(spec.owner)
            raise
        self._discard(*(set(self._runtime.names(spec.owner)) - set(wanted)))
        self._targets(spec, serving).write()
        return serving

    def drift(self, spec: ServerSpec, health: Health) -> list[str]:
        """Where the servers' own files, the router or the metrics are not as `converge` leaves them."""
        # In the order of their numbers: 10 after 9.
        names = sorted(self._runtime.names(spec.owner), key=lambda name: (len(name), name))
        started = [self._found(name) for name in names]
        lost = [replica.name for replica in started if "http" not in replica.ports]
        if lost:
            return [f"{self._node.claims.name} has no ports of {', '.join(lost)}"]
        return [
            *(problem for replica in started for problem in self._runtime.drift(spec, replica)),
            *self._router.drift(spec.owner, _clusters(spec, started, health)),
            *self._targets(spec, started).drift(),
        ]

    def remove(self, team: str, model: str, version: str) -> None:
        """Takes the version off the node.

        Raises:
            NodeError: while an endpoint has it as a variant or shadow.
        """
        owner = version_id(team, model, version)
        users = self._router.endpoints_using(cluster_name(VARIANT, team, model, version))
        if users:
            raise NodeError(
                f"{owner} is still a variant of {', '.join(users)}: "
                "take it out of the endpoint's variants and shadow first, then take it down"
            )
        self._router.remove_clusters(owner)
        Targets(self._node, "server", owner).remove()
        self._discard(*self._runtime.names(owner))

    def ready_replicas(self, team: str, model: str, version: str, ready_path: str) -> int:
        """Servers of the version that are ready and that the router knows, whatever their spec."""
        owner = version_id(team, model, version)
        clusters = self._router.clusters(owner) or []
        routed = {port for cluster in clusters for port in _ports(cluster)}
        ports = [ports_of(self._node, name).get("http") for name in self._runtime.names(owner)]
        return sum(port in routed and is_ready(port, ready_path) for port in ports)

    def is_known(self, team: str, model: str, version: str) -> bool:
        owner = version_id(team, model, version)
        return bool(self._runtime.names(owner)) or self._router.clusters(owner) is not None

    # -- inside

    def _start(self, spec: ServerSpec, name: str, ready_seconds: float) -> Replica:
        purposes = ["http", *(["grpc"] if spec.server.grpc else []), *(["metrics"] if spec.server.metrics_path else [])]
        replica = Replica(
            name,
            claim_ports(self._node, name, purposes, self._port_range),
            claim_gpus(self._node, name, spec.gpus, self._gpu_inventory),
        )
        note_limits(self._node, name, spec.limits, VersionName(spec.team, spec.model, spec.version))
        self._runtime.start(spec, replica)
        self._wait_until_ready(spec, replica, ready_seconds)
        return replica

    def _wait_until_ready(self, spec: ServerSpec, replica: Replica, ready_seconds: float) -> None:
        deadline = self._clock() + ready_seconds
        instances: set[str] = set()
        while not is_ready(replica.ports["http"], spec.server.ready_path):
            instance = self._runtime.instance(replica.name)
            instances |= {instance} if instance else set()
            exits = len(instances) - (instance is not None)
            if exits >= _MOST_STARTS:
                problem = f"exited {_MOST_STARTS} times before it was ready"
            elif self._clock() > deadline:
                problem = f"was not ready within {ready_seconds:g} s (GET {spec.server.ready_path})"
            else:
                time.sleep(_POLL_SECONDS)
                continue
            raise NotReadyError(
                f"{replica.name} {problem}. Its last log lines:\n{self._runtime.log_tail(replica.name)}"
            )

    def _route(self, spec: ServerSpec, serving: list[Replica], health: Health, ready_seconds: float) -> None:
        """Has the router send the version's requests to `serving` alone, and waits until it does.

        Raises:
            NotReadyError: when it doesn't find them healthy; it goes on as before then.
        """
        clusters = _clusters(spec, serving, health)
        before = self._router.clusters(spec.owner)
        self._router.put_clusters(spec.owner, clusters)
        deadline = self._clock() + ready_seconds
        # Envoy takes a cluster on at once, and uses it when it has looked at every replica; until then it uses the old.
        while any(self._router.replicas(c["name"]) != dict.fromkeys(_ports(c), True) for c in clusters):
            if self._clock() > deadline:
                if before is None:
                    self._router.remove_clusters(spec.owner)
                else:
                    self._router.put_clusters(spec.owner, before)
                raise NotReadyError(f"the router did not find {spec.owner} healthy within {ready_seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def _unroute_discarded(self, owner: str) -> None:
        """Has the router forget ports that the version no longer holds, before another's server gets them."""
        held = {port for name in self._runtime.names(owner) for port in ports_of(self._node, name).values()}
        clusters = self._router.clusters(owner) or []
        if all(port in held for cluster in clusters for port in _ports(cluster)):
            return
        for cluster in clusters:
            for group in cluster["load_assignment"]["endpoints"]:
                group["lb_endpoints"] = [found for found in group["lb_endpoints"] if _port(found) in held]
        self._router.put_clusters(owner, clusters)

    def _discard(self, *names: str) -> None:
        for name in sorted(names):
            self._runtime.stop(name)
            release(self._node, name)

    def _serves(self, spec: ServerSpec, name: str) -> bool:
        """Whether the replica runs and is ready; a stranger may listen on the port of one that doesn't run."""
        running = self._runtime.instance(name) is not None
        return running and is_ready(ports_of(self._node, name).get("http"), spec.server.ready_path)

    def _found(self, name: str) -> Replica:
        return Replica(name, ports_of(self._node, name), gpus_of(self._node, name))

    def _targets(self, spec: ServerSpec, replicas: list[Replica]) -> Targets:
        ports = [replica.ports["metrics"] for replica in replicas if "metrics" in replica.ports]
        labels = {"team": spec.team, "model": spec.model, "version": spec.version}
        return Targets(self._node, "server", spec.owner, ports, labels, spec.server.metrics_path)

    def _generation(self, spec: ServerSpec) -> str:
        """Names this spec. Keyed, as the spec may hold secrets and the name is there for all to see."""
        text = json.dumps(asdict(spec) | {"server": spec.server.model_dump()}, sort_keys=True)
        return hmac.new(self._node.key(), text.encode(), hashlib.sha256).hexdigest()[:8]


def _clusters(spec: ServerSpec, replicas: list[Replica], health: Health) -> list[dict[str, Any]]:
    addresses: list[ReplicaAddress] = [
        {"host": "127.0.0.1", "http_port": replica.ports["http"], "grpc_port": replica.ports.get("grpc")}
        for replica in replicas
    ]
    return version_clusters(
        spec.team, spec.model, spec.version, addresses, health, spec.server.ready_path, grpc=spec.server.grpc
    )


def server_command(
    spec: ServerSpec, host: str, ports: dict[str, int], model_dir: str
) -> tuple[list[str], dict[str, str]]:
    """The server's command and environment, placeholders filled in."""
    values = {
        "model_dir": model_dir,
        "model": spec.model,
        "version": spec.version,
        "host": host,
        "http_port": ports["http"],
        "grpc_port": ports.get("grpc", ""),
        "metrics_port": ports.get("metrics", ""),
    }
    command = [part.format(**values) for part in spec.server.command]
    env = {name: value.format(**values) for name, value in spec.server.env.items()} | spec.env
    if spec.limits.cpu is not None:
        # Numeric libraries start a thread a core of the machine, whatever share of it they are given.
        env.setdefault("OMP_NUM_THREADS", str(math.ceil(spec.limits.cpu)))
    return command, env


def _ports(cluster: dict[str, Any]) -> list[int]:
    groups = cluster["load_assignment"]["endpoints"]
    return [_port(endpoint) for group in groups for endpoint in group["lb_endpoints"]]


def _port(endpoint: dict[str, Any]) -> int:
    return endpoint["endpoint"]["address"]["socket_address"]["port_value"]


def is_ready(port: int | None, path: str) -> bool:
    if port is None:
        return False
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
