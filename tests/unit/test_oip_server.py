"""The stand-in model server does what the tests that lean on it believe it does."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.plugins import oip_server

DEADLINE_SECONDS = 10.0
INFER = "/v2/models/tumour/infer"
BODY = {"id": "7", "inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [0.0]}]}


class Server:
    """One running stand-in; `lines` grows as it logs."""

    def __init__(self, binary: Path, *flags: str) -> None:
        self.lines: list[str] = []
        command = [str(binary), "--model", "tumour", "--version", "1.1.0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: any("listening on" in line for line in self.lines))
        address = re.search(r"http://[\d.:]+", self.lines[0])
        assert address
        self.client = httpx.Client(base_url=address[0], timeout=DEADLINE_SECONDS)

    def _read(self) -> None:
        assert self.process.stderr
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def infer(self) -> httpx.Response:
        return self.client.post(INFER, json=BODY)

    def faults(self, **faults: Any) -> httpx.Response:
        return self.client.post("/faults", json=faults)

    def requests(self) -> dict[str, int]:
        return self.client.get("/requests").json()

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        assert self.process.stderr
        self.process.stderr.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Server]]:
    binary, started = oip_server.build(), list[Server]()

    def start_one(*flags: str) -> Server:
        started.append(Server(binary, *flags))
        return started[-1]

    yield start_one
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def shared(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    shared.faults(error_ratio=0, reset_ratio=0, seed=0, delay_ms=0, hang=False, ready=True).raise_for_status()


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line]


def test_it_is_built_once_for_the_same_source(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(oip_server.build, [tmp_path, tmp_path])
    built = first.stat()
    assert first == second == oip_server.build(tmp_path)
    assert first.stat().st_mtime_ns == built.st_mtime_ns
    assert [path.suffix for path in tmp_path.iterdir() if path != first] == [".lock"]


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/tumour/ready"])
def test_health_is_answered(server: Server, path: str) -> None:
    assert server.client.get(path).status_code == 200


def test_an_inference_names_the_version_and_repeats_the_id(server: Server) -> None:
    answer = server.infer().raise_for_status().json()
    assert answer == {
        "model_name": "tumour",
        "model_version": "1.1.0",
        "id": "7",
        "outputs": [{"name": "version", "shape": [1], "datatype": "BYTES", "data": ["1.1.0"]}],
    }


def test_a_body_that_is_no_request_is_refused(server: Server) -> None:
    assert server.client.post(INFER, content=b"{").status_code == 400


def test_another_model_is_unknown(server: Server) -> None:
    assert server.client.post("/v2/models/other/infer", json=BODY).status_code == 404


def test_requests_are_counted(server: Server) -> None:
    before = server.requests()
    for _ in range(3):
        server.infer()
    after = server.requests()
    assert (after["served"] - before["served"], after["received"] - before["received"]) == (3, 3)


def test_echo_tells_what_arrived(server: Server) -> None:
    answer = server.client.get("/echo/a/b?c=d", headers={"X-Model-Version": "1.0.0"}).json()
    assert (answer["method"], answer["path"], answer["query"]) == ("GET", "/echo/a/b", "c=d")
    assert answer["headers"]["x-model-version"] == "1.0.0"


def test_a_chat_completion_is_one_answer(server: Server) -> None:
    answer = server.client.post("/v1/chat/completions", json={"model": "tumour", "messages": []}).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "1.1.0"


def test_a_chat_completion_streams_events(server: Server) -> None:
    body = {"model": "tumour", "stream": True, "events": 4, "gap_ms": 1}
    answer = server.client.post("/v1/chat/completions", json=body)
    *chunks, last = events(answer.text)
    assert answer.headers["content-type"] == "text/event-stream"
    assert (len(chunks), last) == (4, "[DONE]")
    assert json.loads(chunks[0])["choices"][0]["delta"]["content"] == "1.1.0"


def test_stream_sends_each_event_when_it_is_due(server: Server) -> None:
    with server.client.stream("GET", "/stream?events=3&gap_ms=300") as answer:
        arrivals = [time.monotonic() for line in answer.iter_lines() if line]
    assert len(arrivals) == 3
    assert arrivals[2] - arrivals[0] >= 0.4


def test_with_a_seed_errors_come_by_chance_and_the_same_again(server: Server) -> None:
    def statuses() -> list[int]:
        server.faults(error_ratio=0.3, seed=7).raise_for_status()
        return [server.infer().status_code for _ in range(300)]

    first = statuses()
    assert first == statuses()
    assert 60 <= first.count(500) <= 120
    assert len({first[start : start + 10].count(500) for start in range(0, 300, 10)}) > 2, "no chance, but a pattern"


def test_it_can_fail_from_the_start(start: Callable[..., Server]) -> None:
    failing = start("--error-ratio", "1", "--seed", "7")
    assert failing.infer().status_code == 500


def test_the_error_ratio_is_met_exactly(server: Server) -> None:
    server.faults(error_ratio=0.05)
    assert [server.infer().status_code for _ in range(100)].count(500) == 5


def test_the_reset_ratio_breaks_connections(server: Server) -> None:
    server.faults(reset_ratio=1)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        server.infer()


def test_a_delay_holds_the_answer(server: Server) -> None:
    server.faults(delay_ms=200)
    started = time.monotonic()
    assert server.infer().status_code == 200
    assert time.monotonic() - started >= 0.2


def test_a_hanging_server_answers_once_it_hangs_no_more(server: Server) -> None:
    server.faults(hang=True)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.infer)
        until(lambda: server.requests()["in_flight"] == 1)
        assert not answer.done()
        server.faults(hang=False)
        assert answer.result(DEADLINE_SECONDS).status_code == 200


def test_a_hanging_request_ends_when_its_client_leaves(server: Server) -> None:
    server.faults(hang=True)
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(INFER, json=BODY, timeout=0.2)
    until(lambda: server.requests()["in_flight"] == 0)


def test_unready_fails_the_health_checks_alone(server: Server) -> None:
    server.faults(ready=False)
    assert server.client.get("/v2/health/live").status_code == 200
    assert server.client.get("/v2/health/ready").status_code == 503
    assert server.infer().status_code == 200


def test_faults_change_only_what_they_name(server: Server) -> None:
    server.faults(delay_ms=1)
    assert server.faults(error_ratio=0.5).json()["delay_ms"] == 1


@pytest.mark.parametrize("faults", [{"error_ratio": 2}, {"delay_ms": -1}, {"eror_ratio": 0.1}])
def test_faults_that_do_not_exist_are_refused(server: Server, faults: dict[str, Any]) -> None:
    assert server.faults(**faults).status_code == 400


def test_never_ready_stays_live(start: Callable[..., Server]) -> None:
    server = start("--never-ready")
    assert server.client.get("/v2/health/live").status_code == 200
    assert server.client.get("/v2/models/tumour/ready").status_code == 503
    assert server.infer().status_code == 503


def test_ready_after_becomes_ready_when_it_says(start: Callable[..., Server]) -> None:
    started = time.monotonic()
    server = start("--ready-after", "300ms")
    assert server.client.get("/v2/health/ready").status_code == 503
    until(lambda: server.client.get("/v2/health/ready").status_code == 200)
    assert time.monotonic() - started >= 0.3


def test_exit_after_exits_with_a_failure(start: Callable[..., Server]) -> None:
    server = start("--exit-after", "100ms")
    assert server.process.wait(DEADLINE_SECONDS) == 1
    until(lambda: "exiting after 100ms" in server.lines[-1])


def test_sigterm_finishes_what_is_in_flight(start: Callable[..., Server]) -> None:
    server = start()
    server.faults(delay_ms=500)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.infer)
        until(lambda: server.requests()["in_flight"] == 1)
        server.process.send_signal(signal.SIGTERM)
        assert answer.result(DEADLINE_SECONDS).status_code == 200
    assert server.process.wait(DEADLINE_SECONDS) == 0


def test_a_taken_port_is_an_error_that_says_so(shared: Server) -> None:
    port = str(shared.client.base_url.port)
    outcome = subprocess.run(
        [str(oip_server.build()), "--http-port", port],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert outcome.returncode == 1
    assert "address already in use" in outcome.stderr
