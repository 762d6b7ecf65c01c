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
        ({"weights": WEIGHTS, "driver": "a"}, outputs(WEIGHTS, "a")),
        (None, outputs(BEFORE, "a")),
        (None, {}),
    ],
    ids=[
        "the first of a rollout",
        "its own",
        "one taken over",
        "repeated",
        "a stack that is not up",
        "what is in force",
        "its driver's, whatever that was",
        "nothing on a stack that is not up",
    ],
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


@pytest.mark.parametrize(("step", "phase"), [(0, "baking"), (0, "finishing"), (1, "waiting")])
@pytest.mark.parametrize("driver", [None, "b"], ids=["of no rollout", "of another driver"])
def test_a_rollout_that_has_set_weights_follows_its_own_driver_alone(step: int, phase: str, driver: str | None) -> None:
    follower = Fence(id="x", driver="a", step=step, phase=phase)
    refusal = follower.refusal(WEIGHTS, outputs(WEIGHTS, driver))
    assert refusal is not None
    assert "by driver a follows what driver a has set in rollout x" in refusal


def test_a_rollout_that_has_set_nothing_follows_anything() -> None:
    assert Fence(id="x", driver="a", step=0, phase="preparing").refusal(WEIGHTS, outputs({"2.0.0": 1}, "b")) is None


def test_weights_of_the_same_driver_in_another_rollout_are_not_followed() -> None:
    assert Fence(id="y", driver="a", step=1, phase="moving").refusal(WEIGHTS, outputs(WEIGHTS, "a")) is not None
