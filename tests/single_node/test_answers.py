"""What becomes of answers that are slow, that stream, or that never come."""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest

from infra.names import version_id
from infra.single_node.machine.claims import claim_ports
from infra.single_node.routing import version_clusters
from tests.deadline import until
from tests.single_node.running_node import BODY, QUICK, TEAM, RunningNode, infer_path

EVENTS = {"accept": "text/event-stream"}


@contextmanager
def stream(
    node: RunningNode, method: str, path: str, headers: dict[str, str], body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def arrivals(response: http.client.HTTPResponse) -> list[float]:
    """When each event came."""
    return [time.monotonic() for line in response if line.startswith(b"data: ")]


def came_at_their_pace(times: list[float]) -> bool:
    """Whether what was sent each 100 ms came so: held back, most of it comes at once; one stall does no harm."""
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times)) > 0.05


def test_an_attempt_without_an_answer_is_cut_by_the_per_try_timeout(node: RunningNode, model: str) -> None:
    replicas = node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1}, timeouts={"per_try": "300ms", "total": "10s"})
    node.faults(replicas["1.0.0"][0], hang=True)
    with node.client() as client:
        began = time.monotonic()
        assert client.infer(model).status == 504
    assert 0.25 <= time.monotonic() - began < 9


def test_a_plain_answer_that_starts_and_does_not_end_is_cut_by_the_total_timeout(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1}, timeouts={"per_try": "400ms", "total": "700ms"})
    began = time.monotonic()
    with (
        stream(node, "GET", f"/{TEAM}/{model}/stream?events=100&gap_ms=100", {}) as response,
        pytest.raises((http.client.IncompleteRead, ConnectionError)),
    ):
        response.read()
    assert 0.6 <= time.monotonic() - began < 9


def test_a_slow_plain_answer_is_cut_by_the_total_timeout(node: RunningNode, model: str) -> None:
    replicas = node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1}, timeouts={"per_try": "20s", "total": "500ms"})
    node.faults(replicas["1.0.0"][0], delay_ms=10_000)
    with node.client() as client:
        began = time.monotonic()
        assert client.infer(model).status == 504
    assert 0.45 <= time.monotonic() - began < 9


def test_an_event_stream_outlives_every_timeout_and_arrives_event_by_event(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1}, timeouts={"per_try": "500ms", "total": "500ms", "idle": "5s"})
    with stream(node, "GET", f"/{TEAM}/{model}/stream?events=15&gap_ms=100", EVENTS) as response:
        assert response.getheader("x-model-version") == "1.0.0"
        times = arrivals(response)
    assert len(times) == 15
    assert came_at_their_pace(times)


def test_a_stream_of_the_openai_protocol_outlives_every_timeout_unasked(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", protocol="openai")
    node.route(model, {"1.0.0": 1}, protocol="openai", timeouts={"per_try": "500ms", "total": "500ms", "idle": "5s"})
    body = json.dumps({"stream": True, "events": 15, "gap_ms": 100}).encode()
    with stream(node, "POST", f"/{TEAM}/{model}/v1/chat/completions", {}, body) as response:
        times = arrivals(response)
    assert len(times) == 16  # and [DONE]
    assert came_at_their_pace(times)


def test_a_stream_that_falls_silent_is_cut_by_the_idle_timeout(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1}, timeouts={"idle": "500ms"})
    began = time.monotonic()
    with (
        stream(node, "GET", f"/{TEAM}/{model}/stream?events=2&gap_ms=15000", EVENTS) as response,
        pytest.raises((http.client.IncompleteRead, ConnectionError)),
    ):
        response.read()
    assert 0.45 <= time.monotonic() - began < 12


def test_a_stream_goes_on_while_weights_change(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 1, "1.1.0": 0})
    with stream(node, "GET", f"/{TEAM}/{model}/stream?events=20&gap_ms=100", EVENTS) as response:
        node.route(model, {"1.0.0": 0, "1.1.0": 1})
        assert node.count(model, 20) == {"1.1.0": 20}
        assert len(arrivals(response)) == 20


def test_a_stream_ends_whole_though_its_replica_is_taken_away(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", replicas=2)
    node.route(model, {"1.0.0": 1})
    with stream(node, "GET", f"/{TEAM}/{model}/stream?events=20&gap_ms=100", EVENTS) as response:
        node.servers().converge(node.spec(model, env={"changed": "yes"}), 1, QUICK, 20)
        assert len(arrivals(response)) == 20


class _Counter(grpc.GenericRpcHandler):
    """`/tests.Counter/Count`: answers a number n with n messages, 100 ms apart. `Name` answers at once."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method == "/tests.Counter/Count":
            return grpc.unary_stream_rpc_method_handler(self._count)
        if handler_call_details.method == "/tests.Counter/Name":
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"counter")
        return None

    def _count(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            if number:
                time.sleep(0.1)  # the stream's own pace
            yield str(number).encode()


@pytest.fixture
def grpc_channel(node: RunningNode, model: str) -> Iterator[grpc.Channel]:
    """To an endpoint whose version is a stand-in for health, and a grpcio server for everything else."""
    replica = node.serve(model, "1.0.0")["1.0.0"][0]
    port = claim_ports(node.node, f"grpc-{model}", ["grpc"], node.port_range)["grpc"]
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[_Counter()])
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    owner = version_id(TEAM, model, "1.0.0")
    address = {"host": "127.0.0.1", "http_port": replica.ports["http"], "grpc_port": port}
    clusters = version_clusters(TEAM, model, "1.0.0", [address], QUICK, "/v2/health/ready", grpc=True)  # pyright: ignore[reportArgumentType]
    node.router.put_clusters(owner, clusters)
    until(
        lambda: all(node.router.replicas(c["name"]) and all(node.router.replicas(c["name"]).values()) for c in clusters)
    )
    node.route(model, {"1.0.0": 1}, grpc=True, timeouts={"per_try": "500ms", "total": "500ms", "idle": "5s"})
    options = [("grpc.default_authority", f"{model}.{TEAM}")]
    with grpc.insecure_channel(f"127.0.0.1:{node.port}", options=options) as channel:
        yield channel
    server.stop(None).wait(10)


def test_a_grpc_stream_outlives_every_timeout_and_arrives_message_by_message(grpc_channel: grpc.Channel) -> None:
    call = grpc_channel.unary_stream("/tests.Counter/Count")(b"15", timeout=20)
    assert dict(call.initial_metadata())["x-model-version"] == "1.0.0"
    times = [time.monotonic() for _ in call]
    assert len(times) == 15
    assert came_at_their_pace(times)


def test_a_grpc_call_can_pin_a_version(grpc_channel: grpc.Channel) -> None:
    name = grpc_channel.unary_unary("/tests.Counter/Name")
    assert name(b"", metadata=(("x-model-version", "1.0.0"),), timeout=10) == b"counter"
    with pytest.raises(grpc.RpcError) as error:
        name(b"", metadata=(("x-model-version", "9.9.9"),), timeout=10)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]
    assert "it has 1.0.0" in str(error.value.details())  # pyright: ignore[reportAttributeAccessIssue]


def test_http_goes_on_beside_grpc(grpc_channel: grpc.Channel, node: RunningNode, model: str) -> None:
    with node.client() as client:
        assert client.request("POST", infer_path(model), body=BODY).version == "1.0.0"
