"""Which updates of an endpoint a rollout's fence lets through."""

from __future__ import annotations

from typing import Any

import pytest

from infra.settings.fence import Fence

WEIGHTS = {"1.0.0": 90, "1.1.0": 10}
BEFORE = {"1.0.0": 100, "1.1.0": 0}


def fence(follows: dict[str, Any] | None, driver: str = "a") -> Fence:
    return Fence.model_validate({"id": "x", "driver": driver, "step": 1, "phase": "moving", "follows": follows})


def outputs(weights: dict[str, int], driver: str | None = None) -> dict[str, Any]:
    # As the engine returns them: in any order, without what is null, and every number a float.
    found = {name: float(weight) for name, weight in reversed(weights.items())}
    made: dict[str, Any] = {"url": "http://…", "weights": found}
    return made | ({"rollout": {"id": "x", "driver": driver, "step": 0.0}} if driver else {})


@pytest.mark.parametrize(
    ("follows", "found"),
    [
        ({"weights": BEFORE, "driver": None}, outputs(BEFORE)),
        ({"weights": BEFORE, "driver": "a"}, outputs(BEFORE, "a")),
        ({"weights": BEFORE, "driver": "b"}, outputs(BEFORE, "b")),
        ({"weights": BEFORE, "driver": None}, outputs(WEIGHTS, "a")),
        ({"weights": BEFORE, "driver": None}, {}),
        (None, outputs({"2.0.0": 1}, "b")),
    ],
    ids=["the first of a rollout", "its own", "one taken over", "repeated", "a stack that is not up", "anything"],
)
def test_an_update_that_follows_what_is_there_is_let_through(follows: dict[str, Any], found: dict[str, Any]) -> None:
    assert fence(follows).refusal(WEIGHTS, found) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (outputs({"1.0.0": 1, "1.1.0": 0}, "a"), "it has 1.0.0=1 1.1.0=0 by driver a"),
        (outputs({"1.0.0": 100}, "a"), "it has 1.0.0=100 by driver a"),
        (outputs(BEFORE, "b"), "it has 1.0.0=100 1.1.0=0 by driver b"),
        (outputs(BEFORE), "it has 1.0.0=100 1.1.0=0 by no rollout"),
        (outputs(WEIGHTS, "b"), "it has 1.0.0=90 1.1.0=10 by driver b"),
    ],
    ids=["other weights", "fewer variants", "another driver", "no driver any more", "its weights by another"],
)
def test_any_other_is_refused_with_what_there_is_and_what_it_follows(found: dict[str, Any], words: str) -> None:
    refusal = fence({"weights": BEFORE, "driver": "a"}).refusal(WEIGHTS, found)
    assert refusal is not None
    assert words in refusal
    assert "by driver a follows 1.0.0=100 1.1.0=0 by driver a" in refusal
