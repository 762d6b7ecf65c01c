"""A version answers its own samples before it gets weight, through a real router."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from rollout.clock import Clock, SystemClock
from rollout.driving.warming import NotWarmError, Warmed, send_samples
from rollout.sample_requests import SampleRequests
from tests.single_node.running_node import RunningNode, infer_path

SAMPLES: list[dict[str, Any]] = [{"id": str(number), "inputs": []} for number in range(2)]


class WaitingClock:
    """Time passes only while somebody waits; `meanwhile` is what else happens then."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._meanwhile = meanwhile
        self._seconds = 0.0
        self.waits = 0

    def now(self) -> datetime:
        raise NotImplementedError

    def monotonic(self) -> float:
        return self._seconds

    def sleep(self, seconds: float) -> None:
        self._seconds += seconds
        self.waits += 1
        self._meanwhile()


def warm(node: RunningNode, model: str, version: str, *, seconds: float = 20, clock: Clock | None = None) -> Warmed:
    url = f"http://127.0.0.1:{node.port}{infer_path(model)}"
    return send_samples(SampleRequests(url, "", SAMPLES), version, 5, seconds, clock or SystemClock())


def test_a_version_of_weight_0_answers_as_many_samples_as_were_asked_for(node: RunningNode, model: str) -> None:
    replicas = node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 100, "1.1.0": 0})
    warmed = warm(node, model, "1.1.0")
    assert warmed.requests == 5
    assert 0 < warmed.seconds < 20
    assert node.counts(replicas["1.1.0"][0])["served"] == 5
    assert node.counts(replicas["1.0.0"][0])["received"] == 0


def test_one_bad_answer_is_told_with_its_words(node: RunningNode, model: str) -> None:
    (replica,) = node.serve(model, "1.0.0")["1.0.0"]
    node.route(model, {"1.0.0": 1})
    # Every third inference.
    node.faults(replica, error_ratio=1 / 3)
    with pytest.raises(NotWarmError, match=r"request 3 \(sample 1 of its package\) was answered 500: .*error"):
        warm(node, model, "1.0.0")


def test_a_long_answer_is_told_by_its_start_alone(node: RunningNode, model: str) -> None:
    long = f"1.0.0-{'x' * 100}"
    node.serve(model, "1.0.0", long)
    node.route(model, {"1.0.0": 1, long: 0}, failover=False, shadow={"version": f"{long}.1", "percent": 1})
    with pytest.raises(NotWarmError) as failed:
        warm(node, model, "9.9.9", clock=WaitingClock())
    _, _, told = str(failed.value).partition("was answered 404: ")
    assert told.startswith('{"error": "x-model-version names a version that')
    assert len(told) == 200


def test_a_version_that_hangs_is_given_up_when_its_time_is_over(node: RunningNode, model: str) -> None:
    (replica,) = node.serve(model, "1.0.0")["1.0.0"]
    node.route(model, {"1.0.0": 1})
    node.faults(replica, hang=True)
    try:
        with pytest.raises(NotWarmError, match=r"request 1 \(sample 1 of its package\) had no answer: TimeoutError"):
            warm(node, model, "1.0.0", seconds=0.5)
    finally:
        node.faults(replica, hang=False)


def test_a_version_that_the_router_comes_to_know_in_time_is_waited_for(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0", "1.1.0")
    node.route(model, {"1.0.0": 1})
    clock = WaitingClock(lambda: node.route(model, {"1.0.0": 1, "1.1.0": 0}))
    assert warm(node, model, "1.1.0", clock=clock).requests == 5
    assert clock.waits == 1


def test_a_version_that_the_router_never_knows_is_told_by_the_routers_words(node: RunningNode, model: str) -> None:
    node.serve(model, "1.0.0")
    node.route(model, {"1.0.0": 1})
    clock = WaitingClock()
    with pytest.raises(NotWarmError, match=r"was answered 404: .*does not have; it has 1\.0\.0"):
        warm(node, model, "9.9.9", clock=clock)
    assert clock.monotonic() == pytest.approx(5, abs=0.2)


def test_an_endpoint_whose_version_does_not_listen_to_a_pin_is_not_warm(node: RunningNode, model: str) -> None:
    """Where no router stands before a server, its own version answers."""
    (replica,) = node.serve(model, "1.0.0")["1.0.0"]
    url = f"http://127.0.0.1:{replica.ports['http']}/v2/models/{model}/infer"
    with pytest.raises(NotWarmError, match=r"was answered by 1\.0\.0"):
        send_samples(SampleRequests(url, "", SAMPLES), "1.1.0", 5, 20, WaitingClock())


def test_nobody_there_is_an_error_without_a_wait(node: RunningNode, model: str) -> None:
    clock = WaitingClock()
    with pytest.raises(NotWarmError, match="had no answer: ConnectionRefusedError"):
        send_samples(SampleRequests("http://127.0.0.1:9", "/x", SAMPLES), "1.0.0", 5, 20, clock)
    assert clock.waits == 0
