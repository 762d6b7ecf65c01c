"""A real node for tests, without Pulumi: supervisord, Envoy and stand-in model servers, and clients that ask them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from infra.names import endpoint_id
from infra.settings.endpoint import EndpointSettings
from infra.settings.version import Health, Protocol, ServerSettings
from infra.single_node.machine import envoy
from infra.single_node.machine.claims import claim_ports
from infra.single_node.machine.limits import Limits
from infra.single_node.machine.node import Node
from infra.single_node.machine.processes import ProcessRuntime
from infra.single_node.machine.router import Router
from infra.single_node.machine.servers import Replica, Servers, ServerSpec
from infra.single_node.machine.stats import VARIANT, cluster_name
from infra.single_node.machine.supervisor import Supervisor, belongs_to
from infra.single_node.routing import Backend, endpoint_clusters, endpoint_routes
from tests.deadline import until

TEAM = "tests"
QUICK = Health(interval="200ms", timeout="1s", unhealthy_after=2)  # pyright: ignore[reportArgumentType]
BODY = json.dumps({"id": "1", "inputs": []}).encode()

_CGROUPS = Path("/sys/fs/cgroup")
_names = itertools.count(1)


def new_model() -> str:
    """A model's name that no other test of this process uses."""
    return f"model-{next(_names)}"


@dataclass(frozen=True)
class Answer:
    status: int
    version: str | None
    """What the response header says."""
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One kept connection to the router, or to a server."""

    def __init__(self, port: int, timeout: float = 20) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        try:
            self._connection.request(method, path, body, dict(headers or {}))
            response = self._connection.getresponse()
            content = response.read()
        except BaseException:
            self.close()
            raise
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names.get("x-model-version"), names, content)

    def infer(self, model: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("POST", infer_path(model), headers, BODY)

    def close(self) -> None:
        self._connection.close()


def infer_path(model: str) -> str:
    return f"/{TEAM}/{model}/v2/models/{model}/infer"


@dataclass
class Load:
    """What clients that never stop asking were told."""

    answers: list[tuple[float, int, str | None]] = field(default_factory=list)
    """When (monotonic), status, version."""
    broken: list[str] = field(default_factory=list)
    """Requests without an answer."""

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, status, _ in self.answers)

    @property
    def failures(self) -> int:
        return len(self.broken) + sum(status >= 500 for _, status, _ in self.answers)

    def versions_since(self, moment: float) -> Counter[str | None]:
        return Counter(version for when, status, version in self.answers if when >= moment and status == 200)

    def wait_for(self, count: int) -> None:
        """Waits until so many more answers are there."""
        wanted = len(self.answers) + count
        until(lambda: len(self.answers) >= wanted, 60, what=f"{count} more answers")


class RunningNode:
    """A node that runs, in a folder of its own and on ports of its own."""

    def __init__(self, directory: Path, port_range: tuple[int, int], model_server: Path) -> None:
        self.node = Node(directory)
        self.port_range = port_range
        self.supervisor = Supervisor(self.node)
        self.router = Router(self.node)
        self.runtime = ProcessRuntime(self.node)
        self._model_server = str(model_server)

    def start(self) -> None:
        self.supervisor.start()
        self.router.initialise()
        ports = claim_ports(self.node, "platform", ["router", "stats"], self.port_range)
        self.port = ports["router"]
        self.supervisor.put(envoy.program(self.node, "127.0.0.1", self.port, ports["stats"], workers=2))
        until(self.router.is_live, what="the router is live")

    def end(self) -> None:
        """Stops the node, and finds nothing of it left, however the test ended."""
        try:
            self.supervisor.stop()
        finally:
            left = self.processes()
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
        assert not left, f"these were left running: {left}"
        groups = [*_CGROUPS.glob(f"lepton-{self.node.id}"), *_CGROUPS.glob(f"*/lepton-{self.node.id}")]
        assert not groups, f"these control groups were left: {groups}"

    def processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if belongs_to(process, self.node)]

    # -- versions

    def servers(self, gpus: Sequence[str] = ()) -> Servers:
        return Servers(self.node, self.runtime, self.router, port_range=self.port_range, gpu_inventory=list(gpus))

    def spec(
        self,
        model: str,
        version: str = "1.0.0",
        *,
        flags: Sequence[str] = (),
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        gpus: int = 0,
        protocol: Protocol = "oip-v2",
        team: str = TEAM,
    ) -> ServerSpec:
        ordinary = [self._model_server, "--host={host}", "--http-port={http_port}", "--quiet"]
        ordinary += ["--model={model}", "--version={version}"]
        return ServerSpec(
            team=team,
            model=model,
            version=version,
            model_dir="/",
            server=ServerSettings(command=list(command or [*ordinary, *flags]), protocol=protocol),
            env=dict(env or {}),
            limits=limits or Limits(),
            gpus=gpus,
            image=None,
            drain_seconds=5,
        )

    def serve(
        self,
        model: str,
        *versions: str,
        replicas: int = 1,
        health: Health = QUICK,
        protocol: Protocol = "oip-v2",
        team: str = TEAM,
    ) -> dict[str, list[Replica]]:
        """Runs these versions, and returns their replicas."""
        return {
            version: self.servers().converge(
                self.spec(model, version, protocol=protocol, team=team), replicas, health, 20
            )
            for version in versions
        }

    def faults(self, replica: Replica, **faults: object) -> None:
        answer = self.ask(replica, "POST", "/faults", json.dumps(faults).encode())
        assert answer.status == 200, answer.body

    def counts(self, replica: Replica) -> dict[str, int]:
        """The stand-in's own count of inferences: received, served, in_flight."""
        return self.ask(replica, "GET", "/requests").json

    def ask(self, replica: Replica, method: str, path: str, body: bytes | None = None) -> Answer:
        with contextlib.closing(Client(replica.ports["http"])) as client:
            return client.request(method, path, body=body)

    def kill(self, program: str) -> None:
        """kill -9, and waits until the process is gone."""
        pid = self.supervisor.pid(program)
        assert pid is not None
        process = psutil.Process(pid)
        process.kill()
        process.wait(10)

    # -- endpoints

    def route(
        self,
        model: str,
        weights: Mapping[str, int],
        *,
        protocol: Protocol = "oip-v2",
        grpc: bool = False,
        team: str = TEAM,
        **more: Any,
    ) -> None:
        """Gives the endpoint `model` these weights and other settings."""
        variants = [{"version": version, "weight": weight} for version, weight in weights.items()]
        settings = EndpointSettings.model_validate({"environment": "dev", "model": model, "variants": variants} | more)
        backends = {version: Backend(protocol, grpc) for version in settings.versions}
        clusters = endpoint_clusters(team, settings, backends)
        self.router.put_endpoint(endpoint_id(team, model), clusters, endpoint_routes(team, settings, backends))

    def healthy(self, model: str, version: str) -> int:
        return self.router.healthy_replicas().get(cluster_name(VARIANT, TEAM, model, version), 0)

    # -- requests

    @contextlib.contextmanager
    def client(self, timeout: float = 20) -> Iterator[Client]:
        with contextlib.closing(Client(self.port, timeout)) as client:
            yield client

    def count(self, model: str, requests: int, headers: Mapping[str, str] | None = None) -> Counter[str | None]:
        """Answers 200 by version; every other answer is an error."""
        found: Counter[str | None] = Counter()
        with self.client() as client:
            for _ in range(requests):
                answer = client.infer(model, headers)
                assert answer.status == 200, answer
                assert answer.json["model_version"] == answer.version
                found[answer.version] += 1
        return found

    @contextlib.contextmanager
    def load(self, model: str, clients: int = 4, per_second: float = 100) -> Iterator[Load]:
        """Has clients ask without pause while the block runs; on leaving, every request has its answer."""
        load, stopping = Load(), threading.Event()

        def ask() -> None:
            with self.client(timeout=30) as client:
                while not stopping.wait(clients / per_second):
                    try:
                        answer = client.infer(model)
                    except (OSError, http.client.HTTPException) as error:
                        load.broken.append(repr(error))
                    else:
                        load.answers.append((time.monotonic(), answer.status, answer.version))

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            load.wait_for(10)
            yield load
        finally:
            stopping.set()
            for thread in threads:
                thread.join(40)
