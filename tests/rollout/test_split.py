"""When a split that was seen can't come from an endpoint's weights, and that such weights aren't verified."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime
from types import SimpleNamespace
from typing import cast

import pytest

from infra.contracts import Observer, Traffic
from infra.settings import EndpointSettings
from rollout.analysis.split import compatible
from rollout.project import Project, StackConfig
from rollout.release import NotVerifiedError, Releases


@pytest.mark.parametrize(
    "counts",
    [
        {"1.0.0": 180, "2.0.0": 20},
        {"1.0.0": 160, "2.0.0": 40},
        {"1.0.0": 198, "2.0.0": 2},
    ],
)
def test_what_chance_can_do_is_compatible(counts: dict[str, int]) -> None:
    assert compatible({"1.0.0": 90, "2.0.0": 10}, counts)


@pytest.mark.parametrize(
    "counts",
    [
        {"1.0.0": 100, "2.0.0": 100},
        {"1.0.0": 200},
        {"1.0.0": 179, "2.0.0": 20, "3.0.0": 1},
        {"9.9.9": 200},
    ],
    ids=["even", "all at one", "one that has no weight", "one that is no variant"],
)
def test_what_chance_cannot_do_is_not(counts: dict[str, int]) -> None:
    assert not compatible({"1.0.0": 90, "2.0.0": 10, "3.0.0": 0}, counts)


def test_a_version_with_the_whole_weight_answers_every_request() -> None:
    assert compatible({"1.0.0": 0, "2.0.0": 7}, {"2.0.0": 200})
    assert not compatible({"1.0.0": 0, "2.0.0": 7}, {"1.0.0": 1, "2.0.0": 199})


def test_no_answer_says_nothing() -> None:
    assert compatible({"1.0.0": 1}, {})


def test_draws_by_the_weights_are_never_called_wrong_in_ten_thousand_rounds() -> None:
    draws, weights = random.Random(7), {"1.0.0": 89, "2.0.0": 10, "3.0.0": 1}
    wrong = sum(
        not compatible(weights, Counter(draws.choices([*weights], [*weights.values()], k=200))) for _ in range(10_000)
    )
    assert wrong == 0


def test_a_bound_of_one_in_a_hundred_is_kept_too() -> None:
    draws, weights = random.Random(7), {"1.0.0": 70, "2.0.0": 30}
    wrong = sum(
        not compatible(weights, Counter(draws.choices([*weights], [*weights.values()], k=100)), 0.01)
        for _ in range(5_000)
    )
    assert 0 < wrong < 50


# -- verification


class StandInClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        raise NotImplementedError

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class StandInObserver:
    """A data plane that has the weights, and splits requests as told, one answer after the other."""

    def __init__(self, *splits: dict[str, int] | None) -> None:
        self._splits = list(splits)

    def traffic(self, team: str, model: str) -> Traffic:
        return {"weights": {"1.0.0": 90, "2.0.0": 10}, "shadow": {}}

    def split(self, team: str, model: str, requests: int) -> dict[str, int] | None:
        return self._splits.pop(0) if len(self._splits) > 1 else self._splits[0]


class ObservedReleases(Releases):
    def __init__(self, observer: StandInObserver) -> None:
        super().__init__(cast("Project", None), clock=StandInClock())
        self._observer = observer

    def observer(self, stack: StackConfig) -> Observer:
        return cast("Observer", self._observer)


def verify(*splits: dict[str, int] | None) -> None:
    variants = [{"version": "1.0.0", "weight": 90}, {"version": "2.0.0", "weight": 10}]
    settings = EndpointSettings.model_validate({"environment": "dev", "model": "tumour", "variants": variants})
    endpoint = SimpleNamespace(team="diagnostics", address="diagnostics/dev.tumour", endpoint=settings)
    ObservedReleases(StandInObserver(*splits)).verify(cast("StackConfig", endpoint))


def test_weights_are_verified_by_the_split_that_requests_see() -> None:
    verify({"1.0.0": 182, "2.0.0": 18})
    verify(None)


def test_a_gateway_may_be_late() -> None:
    verify({"1.0.0": 200}, {"1.0.0": 200}, {"1.0.0": 182, "2.0.0": 18})


def test_a_split_by_other_weights_is_not_verified_and_both_are_told() -> None:
    with pytest.raises(NotVerifiedError) as caught:
        verify({"1.0.0": 200})
    assert "asked for 1.0.0=90 2.0.0=10" in str(caught.value)
    assert "of 200 requests through it were answered: 1.0.0=200" in str(caught.value)
