"""The constant load of tests and benchmarks: its rate, and that nothing of what it sent is missing or passed over."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.open_loop import OpenLoop, Request, json_field
from tests.deadline import until
from tests.engine.load import Load
from tests.unit.test_oip_server import INFER, Server


@pytest.fixture
def server(model_server: Path) -> Iterator[Server]:
    running = Server(model_server, "--quiet")
    yield running
    running.stop()


@pytest.fixture
def url(server: Server) -> str:
    return str(server.client.base_url.join(INFER))


def test_requests_are_due_at_the_rate_and_every_answer_is_kept(server: Server, url: str) -> None:
    with OpenLoop(Request(url, version_in=json_field("outputs.0.data.0")), rate=100) as load:
        until(lambda: len(load.answers) >= 50)
    dues = [answer.due for answer in load.since(0)]
    assert all(late - early == pytest.approx(0.01) for early, late in itertools.pairwise(dues))
    assert {answer.version for answer in load.answers} == {"1.1.0"}
    assert server.requests()["received"] == len(load.answers)


def test_a_server_that_hangs_holds_no_later_request_back(server: Server, url: str) -> None:
    with Load(url, rate=100) as load:
        server.faults(hang=True)
        until(lambda: server.requests()["in_flight"] >= 50)
        hung = time.monotonic()
        server.faults(hang=False)
    waited = [answer for answer in load.answers if answer.due < hung < answer.ended]
    assert len(waited) >= 50
    assert max(answer.latency_ms for answer in waited) >= 450
    assert load.lost() == []


def test_what_fails_is_lost_with_its_status(server: Server, url: str) -> None:
    server.faults(error_ratio=0.5)
    with Load(url, rate=100) as load:
        until(lambda: len(load.answers) >= 20)
    assert {(answer.status, answer.failure) for answer in load.lost()} == {(500, "status 500")}
    assert abs(len(load.lost()) - len(load.answers) / 2) <= 1


def test_what_a_version_failed_itself_can_be_set_aside(server: Server, url: str) -> None:
    server.faults(error_ratio=1)
    request = Request(url, version_in=lambda headers, body: "2.0.0")
    with Load(request, rate=100) as load:
        until(lambda: len(load.answers) >= 5)
    assert load.lost(except_version="2.0.0") == []
    assert load.lost(except_version="1.0.0") == load.answers


def test_no_answer_at_all_is_lost(server: Server, url: str) -> None:
    server.faults(reset_ratio=1)
    with Load(url, rate=100) as load:
        until(lambda: len(load.answers) >= 5)
    assert {answer.status for answer in load.lost()} == {None}
    assert len(load.lost()) == len(load.answers)


def test_a_good_answer_of_another_version_than_it_says_is_lost(url: str) -> None:
    request = Request(url, version_in=lambda headers, body: "2.0.0", body_names_version=True)
    with Load(request, rate=100) as load:
        until(lambda: len(load.answers) >= 5)
    assert all("on an answer of another" in answer.failure for answer in load.answers)


def test_a_body_without_the_field_names_no_version(url: str) -> None:
    with OpenLoop(Request(url, version_in=json_field("outputs.7.data")), rate=100) as load:
        until(lambda: len(load.answers) >= 5)
    assert {(answer.version, answer.failure) for answer in load.answers} == {(None, "")}
