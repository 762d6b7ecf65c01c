"""An endpoint behind Envoy Gateway, with everything of it that a GatewayClass may lack: what its clients get."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    GRPCInferenceServiceStub,
    add_GRPCInferenceServiceServicer_to_server,
)

from infra.cluster.endpoint import Shifter
from infra.cluster.features import abilities
from infra.cluster.live.api import Api
from infra.cluster.live.preflight import preflight
from infra.cluster.manifests.gateway import status_address, status_problems
from infra.cluster.names import SERVER, team_namespace
from infra.cluster.observe import Observer
from infra.contracts import ObservationError
from infra.monitoring.data_planes.envoy_gateway import envoy_gateway
from infra.settings.cluster import ClusterSettings
from rollout.analysis.split import compatible
from tests.cluster.control_plane import ControlPlane, free_ports
from tests.cluster.endpoint_world import MODEL, EndpointWorld
from tests.cluster.envoy_gateway import EnvoyGatewayClass, EnvoyProxy
from tests.cluster.gateway import put_behind
from tests.cluster.kwok_nodes import KwokNodes
from tests.cluster.sharing import run_folder, shared
from tests.deadline import until

V1, V2, SHADOW = "1.0.0", "2.0.0", "3.0.0-rc.1"
EVENLY = {V1: 1, V2: 1}
OIP: Any = service_pb2
"""The protocol's messages, whose classes are made when they are imported."""
SAMPLE = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]}
_SECONDS = 60


@pytest.fixture(scope="session")
def envoy_gateway_class(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyGatewayClass]:
    """A control plane with the Gateway API's experimental channel, and Envoy Gateway as its one GatewayClass."""
    EnvoyGatewayClass.require()
    folder = run_folder(tmp_path_factory) / "cluster-with-envoy-gateway"
    control_plane = ControlPlane(folder / "control-plane")
    found = EnvoyGatewayClass(control_plane)

    def start() -> None:
        found.require_ports()
        control_plane.folder.mkdir()
        control_plane.start()
        nodes = KwokNodes(control_plane)
        nodes.start()
        nodes.add("node-0")
        found.start()

    with shared(folder, start, control_plane.stop):
        yield found


class World(EndpointWorld):
    """Three versions that answer, a Gateway with an Envoy of its own, and endpoints of any name for the versions."""

    def __init__(self, gateway_class: EnvoyGatewayClass, server: Path) -> None:
        super().__init__(gateway_class.control_plane, gateway_class, server)
        self.envoy: EnvoyProxy | None = None
        self.facts = self.platform["internals"]["gateway"]
        self.observer = Observer(self.platform)
        self.api = Api(self.platform["internals"]["connection"])

    def start(self, gateway_class: EnvoyGatewayClass) -> None:
        self.serve(V1, V2, SHADOW)
        self.envoy = gateway_class.serve(self.facts["namespace"], self.facts["name"])

    def stop(self) -> None:
        if self.envoy:
            self.envoy.stop()
        super().stop()

    def endpoint(self, model: str, weights: dict[str, int], *, grpc: bool = False, **settings: Any) -> Endpoint:
        """An endpoint of a name that no other test's has, once Envoy knows its path."""
        self.route(weights, grpc=grpc, model=model, **settings)
        found = Endpoint(self, model)
        until(lambda: found.weights == weights, _SECONDS, what=f"the Gateway having {weights}")
        until(lambda: found.get("/echo/").status_code == httpx.codes.OK, _SECONDS, what=f"an answer at {found.url}")
        return found

    def routes_of(self, model: str) -> list[dict[str, Any]]:
        """Envoy's own routes for an endpoint's path."""
        assert self.envoy is not None
        return [route for route in self.envoy.routes() if f"/{self.team}/{model}" in json.dumps(route["match"])]

    def metrics(self, name: str) -> list[Series]:
        assert self.envoy is not None
        return [series for series in map(Series.of, self.envoy.metrics().splitlines()) if series.name == name]

    def ask_server(self, version: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A version's server itself."""
        url = f"http://127.0.0.1:{self.ports[version]}{path}"
        return httpx.request("GET" if body is None else "POST", url, json=body).raise_for_status().json()


@dataclass(frozen=True)
class Endpoint:
    world: World
    model: str

    @property
    def url(self) -> str:
        return f"{self.world.platform['endpoint_base_url']}/{self.world.team}/{self.model}"

    @property
    def namespace(self) -> str:
        """Of its routes."""
        return team_namespace(self.world.environment, self.world.team)

    @property
    def weights(self) -> dict[str, int] | None:
        """As observed; None where the Gateway hasn't taken them on."""
        try:
            return self.world.observer.traffic(self.world.team, self.model)["weights"]
        except ObservationError:
            return None

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}")

    def ask(self, requests: int, **headers: str) -> list[httpx.Response]:
        """Answers to inferences of clients without cookies."""
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        with httpx.Client(cookies=no_cookies) as client, ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda _: self.infer(client, **headers), range(requests)))

    def infer(self, client: httpx.Client, **headers: str) -> httpx.Response:
        return client.post(f"{self.url}/v2/models/{MODEL}/infer", json=SAMPLE, headers=headers)


@dataclass(frozen=True)
class Series:
    name: str
    labels: dict[str, str]
    value: float

    @classmethod
    def of(cls, line: str) -> Series:
        """Of a line of a scrape; a comment's has no name."""
        found = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
        if not found:
            return cls("", {}, 0)
        return cls(found[1], dict(re.findall(r'(\w+)="([^"]*)"', found[2])), float(found[3]))


def is_of_streams(route: dict[str, Any]) -> bool:
    return "text/event-stream" in json.dumps(route["match"])


def versions(answers: Iterable[httpx.Response]) -> Counter[str]:
    """By what the servers say of themselves; else the status."""
    return Counter(
        a.json()["model_version"] if a.status_code == httpx.codes.OK else str(a.status_code) for a in answers
    )


@pytest.fixture(scope="module")
def world(envoy_gateway_class: EnvoyGatewayClass, model_server: Path) -> Iterator[World]:
    found = World(envoy_gateway_class, model_server)
    try:
        found.start(envoy_gateway_class)
        yield found
    finally:
        found.stop()


@contextmanager
def faults(world: World, version: str, **wanted: Any) -> Iterator[None]:
    before = world.ask_server(version, "/faults")
    world.ask_server(version, "/faults", wanted)
    try:
        yield
    finally:
        world.ask_server(version, "/faults", before)


def seconds_of(endpoint: Endpoint, **headers: str) -> tuple[int, float]:
    """The status of an inference, and how long it took."""
    started = time.monotonic()
    (answer,) = endpoint.ask(1, **headers)
    return answer.status_code, time.monotonic() - started


# -- what the product reads


def test_the_class_is_taken_to_do_all_that_it_does_though_its_status_names_nothing(world: World) -> None:
    settings = ClusterSettings.model_validate({"teams": {"other": {}}, "gateway": {"class_name": "envoy"}})
    facts = preflight(world.api, "another", settings)
    assert (facts.controller, facts.features, facts.lacks) == (world.facts["controller"], world.facts["features"], [])
    can = abilities(world.facts)
    assert (can.names_version_in_split, can.matches_patterns, can.total_timeout, can.attempt_timeout) == (True,) * 4
    assert (can.retries, can.sessions, can.grpc) == (True,) * 3


def test_its_gateway_serves_and_has_an_address(world: World) -> None:
    def found() -> dict[str, Any]:
        path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{world.facts['namespace']}/gateways"
        return world.api.get(f"{path}/{world.facts['name']}")

    until(lambda: status_problems(found()) == [], _SECONDS, what="the Gateway being programmed")
    assert status_address(found())


# -- the split


def test_requests_are_split_by_weight_and_answers_name_their_version(world: World) -> None:
    answers = world.endpoint("split", {V1: 70, V2: 30}).ask(400)
    seen = versions(answers)
    assert seen.total() == seen[V1] + seen[V2]
    # Chi-square of one degree of freedom, exceeded once in a million.
    assert sum((seen[version] - expected) ** 2 / expected for version, expected in ((V1, 280), (V2, 120))) < 23.9
    assert all(answer.headers["x-model-version"] == answer.json()["model_version"] for answer in answers)


def test_a_shift_is_what_clients_and_the_observer_see(world: World) -> None:
    endpoint = world.endpoint("shifted", {V1: 1, V2: 0})
    assert versions(endpoint.ask(50)) == {V1: 50}
    Shifter(world.platform).shift(world.team, "shifted", {V1: 20, V2: 80})
    assert endpoint.weights == {V1: 20, V2: 80}
    until(lambda: V2 in versions(endpoint.ask(20)), _SECONDS, what="the shift reaching Envoy")
    observed = world.observer.split(world.team, "shifted", 200)
    assert observed is not None
    assert compatible({V1: 20, V2: 80}, observed)


def test_a_pinned_request_goes_to_its_version_alone_and_its_answer_names_it(world: World) -> None:
    endpoint = world.endpoint("pinned", {V1: 1, V2: 0})
    for version in (V1, V2):
        answers = endpoint.ask(20, **{"x-model-version": version})
        assert versions(answers) == {version: 20}
        assert {answer.headers["x-model-version"] for answer in answers} == {version}


def test_a_request_pinned_to_a_version_that_the_endpoint_lacks_is_an_error(world: World) -> None:
    endpoint = world.endpoint("unknown-pin", {V1: 1})
    for accept in ("application/json", "text/event-stream"):
        answers = endpoint.ask(20, accept=accept, **{"x-model-version": "9.9.9"})
        assert {answer.status_code for answer in answers} <= {500, 503}
        assert not any("x-model-version" in answer.headers for answer in answers)


# -- the shadow


@pytest.mark.parametrize(("percent", "name"), [(50, "shadowed"), (12.5, "shadowed-by-a-fraction")])
def test_a_share_of_the_requests_is_copied_to_the_shadow(world: World, percent: float, name: str) -> None:
    endpoint = world.endpoint(name, EVENLY, shadow={"version": SHADOW, "percent": percent})
    assert world.observer.traffic(world.team, name)["shadow"] == {SHADOW: percent}

    def copied() -> int:
        return world.ask_server(SHADOW, "/requests")["received"]

    before, requests, share = copied(), 200, percent / 100
    assert SHADOW not in versions(endpoint.ask(requests))
    within = 4 * (requests * share * (1 - share)) ** 0.5
    until(lambda: copied() - before >= requests * share - within, _SECONDS, what="copies of requests")
    assert copied() - before <= requests * share + within


# -- timeouts


def test_a_request_takes_no_longer_than_the_total_but_where_its_answer_streams(world: World) -> None:
    endpoint = world.endpoint("bounded", {V1: 1}, timeouts={"total": "1s"})
    with faults(world, V1, delay_ms=2000):
        status, seconds = seconds_of(endpoint)
        assert status == httpx.codes.GATEWAY_TIMEOUT
        assert 0.9 < seconds < 1.9
        status, seconds = seconds_of(endpoint, accept="text/event-stream")
        assert status == httpx.codes.OK
        assert seconds > 1.9


def test_an_attempt_takes_no_longer_than_it_may(world: World) -> None:
    endpoint = world.endpoint("attempts-bounded", {V1: 1}, timeouts={"total": "10s", "per_try": "500ms"})
    with faults(world, V1, delay_ms=2000):
        status, seconds = seconds_of(endpoint)
    assert status == httpx.codes.GATEWAY_TIMEOUT
    assert 0.4 < seconds < 1.9


def test_no_limit_of_the_classes_own_is_left_where_answers_may_stream(world: World) -> None:
    world.endpoint("streaming", {V1: 1})
    limits = {
        route["route"]["timeout"] for route in world.routes_of("streaming") if is_of_streams(route) and "route" in route
    }
    assert limits == {"0s"}


# -- retries


def test_a_request_that_no_server_has_seen_is_sent_again(world: World) -> None:
    (nobody,) = free_ports(1)
    namespace = world.namespace(V1)
    once = world.endpoint("tried-once", {V1: 1}, retries=0)
    again = world.endpoint("tried-again", {V1: 1}, retries=3)
    gone = put_behind(world.control_plane, namespace, SERVER, nobody, name="http")
    try:
        until(lambda: versions(once.ask(20))["503"], _SECONDS, what="requests meeting the replica that is gone")
        assert versions(again.ask(100)) == {V1: 100}
        assert versions(once.ask(100))["503"]
    finally:
        world.control_plane.delete("discovery.k8s.io/v1", "EndpointSlice", gone, namespace)
    until(lambda: versions(once.ask(20)) == {V1: 20}, _SECONDS, what="Envoy letting go of the replica that is gone")


# -- sessions


def test_a_client_with_the_cookie_stays_at_its_version_and_others_are_split(world: World) -> None:
    endpoint = world.endpoint("sticky", EVENLY, sticky={"cookie": {"name": "client", "ttl": "2h"}})

    def client_stays() -> str:
        with httpx.Client() as client:
            first = endpoint.infer(client)
            assert "client=" in first.headers["set-cookie"]
            assert "Max-Age=7200" in first.headers["set-cookie"]
            (version,) = versions([first, *(endpoint.infer(client) for _ in range(9))])
            return version

    clients = Counter(client_stays() for _ in range(24))
    # All at one version: once in eight million.
    assert clients.keys() == {V1, V2}
    assert compatible(EVENLY, versions(endpoint.ask(200)))


# -- gRPC


class _Grpc(GRPCInferenceServiceServicer):
    """A model that answers with its version."""

    def __init__(self, version: str) -> None:
        self._version = version

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        return OIP.ModelInferResponse(model_name=request.model_name, model_version=self._version)


@contextmanager
def grpc_servers(world: World, *served: str) -> Iterator[None]:
    """Behind the versions' Services."""
    servers: list[grpc.Server] = []
    slices: dict[str, str] = {}
    try:
        for version in served:
            server = grpc.server(ThreadPoolExecutor(2))
            servers.append(server)
            add_GRPCInferenceServiceServicer_to_server(_Grpc(version), server)
            port = server.add_insecure_port("0.0.0.0:0")
            server.start()
            slices[version] = put_behind(world.control_plane, world.namespace(version), SERVER, port, name="grpc")
        yield
    finally:
        for version, name in slices.items():
            world.control_plane.delete("discovery.k8s.io/v1", "EndpointSlice", name, world.namespace(version))
        for server in servers:
            server.stop(None).wait()


def test_grpc_requests_are_split_and_pinned_at_the_endpoints_host_name(world: World) -> None:
    with grpc_servers(world, V1, V2):
        world.endpoint("spoken", EVENLY, grpc=True)
        options = [("grpc.default_authority", f"spoken.{world.team}")]
        with grpc.insecure_channel(world.platform["endpoint_base_url"].removeprefix("http://"), options) as channel:
            stub = GRPCInferenceServiceStub(channel)

            def version_of(*metadata: tuple[str, str]) -> tuple[str, object]:
                """By what the server says, and by the answer's header."""
                asked = OIP.ModelInferRequest(model_name=MODEL)
                answer, call = stub.ModelInfer.with_call(asked, metadata=metadata, timeout=10)
                return answer.model_version, dict(call.initial_metadata()).get("x-model-version")

            def answered() -> bool:
                try:
                    return bool(version_of())
                except grpc.RpcError:
                    return False

            until(answered, _SECONDS, what="an answer by gRPC")
            seen = Counter(version_of() for _ in range(200))
            assert seen.keys() == {(V1, V1), (V2, V2)}
            assert compatible(EVENLY, {V1: seen[V1, V1], V2: seen[V2, V2]})
            assert {version_of(("x-model-version", V2)) for _ in range(20)} == {(V2, V2)}


# -- metrics


def test_envoy_counts_by_endpoint_under_the_names_that_the_rules_ask_for(world: World) -> None:
    endpoint = world.endpoint("counted", EVENLY, shadow={"version": SHADOW, "percent": 100})
    asked = envoy_gateway("prod")
    copies = asked.copies
    assert copies is not None

    def counted(metric: str, version: str, expression: str) -> list[float]:
        """By the endpoint's clusters that an expression of the rules takes."""
        pattern = re.search(r'envoy_cluster_name=~"([^"]+)"', expression)
        assert pattern is not None
        assert metric in expression
        address = f"{world.control_plane.address}:{world.ports[version]}"
        return [
            series.value
            for series in world.metrics(metric)
            if re.fullmatch(pattern[1], series.labels["envoy_cluster_name"])
            and "/counted/" in series.labels["envoy_cluster_name"]
            and series.labels["envoy_endpoint_address"] == address
        ]

    seen = versions(endpoint.ask(100))
    good = "envoy_cluster_endpoint_rq_success"

    def by_version() -> tuple[float, ...]:
        clients = [sum(counted(good, version, asked.requests)) for version in (V1, V2)]
        return (*clients, sum(counted(good, SHADOW, copies.requests)))

    # One more is the endpoint's first answer.
    wanted = [(seen[V1] + 1, seen[V2], 101), (seen[V1], seen[V2] + 1, 101)]
    until(lambda: by_version() in wanted, _SECONDS, what=f"Envoy counting {wanted} requests")
    assert counted("envoy_cluster_endpoint_rq_active", V1, asked.in_flight)
    assert set(counted("envoy_cluster_endpoint_healthy", V1, asked.buckets)) == {1}
    (buckets,) = set(re.findall(r"envoy_cluster_upstream_rq_time_bucket", asked.buckets))
    timed = {series.labels["envoy_cluster_name"] for series in world.metrics(buckets)}
    # After the three pins, the refusal of others and the rule of streams.
    assert {f"httproute/{endpoint.namespace}/counted/rule/5/backend/{number}" for number in (0, 1)} <= timed
