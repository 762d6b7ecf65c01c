"""The threshold that is chosen is the best there is, by brute force over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model_packaging.evaluation.objectives import Objective, choose_threshold

OBJECTIVES = ("f1", "accuracy", "youden", "recall@precision=0.7", "precision@recall=0.6", "cost:fp=1,fn=4.5")

# Few distinct scores, so that there are ties.
ROWS = st.lists(st.tuples(st.booleans(), st.integers(-4, 9).map(lambda tenths: tenths / 10)), min_size=2, max_size=30)


def worth(objective: str, positive: np.ndarray, called: np.ndarray) -> float:
    """The objective of a decision, written down once more without the code under test; -inf if it isn't allowed."""
    tp, fp = int((positive & called).sum()), int((~positive & called).sum())
    fn, tn = int((positive & ~called).sum()), int((~positive & ~called).sum())
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn)
    match objective:
        case "f1":
            return 2 * tp / (2 * tp + fp + fn)
        case "accuracy":
            return (tp + tn) / len(positive)
        case "youden":
            return recall + tn / (tn + fp) - 1
        case "recall@precision=0.7":
            return recall if precision >= 0.7 else -np.inf
        case "precision@recall=0.6":
            return precision if recall >= 0.6 else -np.inf
        case _:
            return -(fp + 4.5 * fn) / len(positive)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(rows=ROWS)
def test_no_other_threshold_is_better(objective: str, rows: list[tuple[bool, float]]) -> None:
    positive, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    assume(positive.any() and not positive.all())
    best = max(worth(objective, positive, scores >= threshold) for threshold in [*scores, np.inf])
    chosen = choose_threshold(Objective.parse(objective), positive, scores)
    if chosen is None:
        assert best == -np.inf
        return
    assert worth(objective, positive, scores >= chosen.threshold) == pytest.approx(best)
    assert (-chosen.value if objective.startswith("cost") else chosen.value) == pytest.approx(best)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(rows=ROWS)
def test_the_threshold_is_a_number_that_json_can_hold(objective: str, rows: list[tuple[bool, float]]) -> None:
    positive, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    assume(positive.any() and not positive.all())
    chosen = choose_threshold(Objective.parse(objective), positive, scores)
    assert chosen is None or np.isfinite(chosen.threshold)


def test_a_threshold_lies_between_two_scores() -> None:
    chosen = choose_threshold(Objective("f1"), np.array([False, False, True, True]), np.array([0.1, 0.2, 0.6, 0.9]))
    assert chosen is not None
    assert chosen.threshold == pytest.approx(0.4)


def test_of_equal_recalls_the_most_precise_is_taken() -> None:
    positive = np.array([False, True, False, True, True])
    chosen = choose_threshold(Objective.parse("recall@precision=0.5"), positive, np.array([0.1, 0.4, 0.2, 0.5, 0.6]))
    assert chosen is not None
    assert 0.2 < chosen.threshold <= 0.4


def test_a_constraint_that_nothing_meets_gives_no_threshold() -> None:
    positive = np.array([True, False])
    assert choose_threshold(Objective.parse("recall@precision=0.9"), positive, np.array([0.1, 0.9])) is None


@pytest.mark.parametrize("text", [*OBJECTIVES, "recall@precision=1", "cost:fp=0,fn=1"])
def test_an_objective_is_written_as_it_is_read(text: str) -> None:
    assert str(Objective.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "f2", "recall@recall=0.5", "recall@precision=2", "recall@precision=0", "cost:fp=0,fn=0", "cost:fp=1"]
)
def test_what_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no objective; one is f1, accuracy"):
        Objective.parse(text)
