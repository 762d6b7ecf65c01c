"""Metrics and intervals are those that scikit-learn and SciPy give, computed here another way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from model_packaging.evaluation.intervals import bootstrap_counts, bootstrap_rows, wilson
from model_packaging.evaluation.metrics import (
    Certainty,
    _means,
    _weighted_auc,
    class_scores,
    label_metrics,
    roc_curves,
    score_metrics,
    value_metrics,
)
from model_packaging.evaluation.paired import Judged, compare

BY = Certainty(confidence=0.95, seed=0)


@pytest.fixture(scope="module")
def three() -> tuple[np.ndarray, np.ndarray]:
    """Codes of three classes, and probabilities that lean to them: shapes (300,) and (300, 3)."""
    generator = np.random.default_rng(1)
    truth = generator.integers(3, size=300)
    weights = generator.random((300, 3)) + np.eye(3)[truth] * 0.7
    return truth, weights / weights.sum(axis=1, keepdims=True)


def test_means_over_three_classes_are_scikit_learns(three: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = three
    answered = probabilities.argmax(axis=1)
    found = label_metrics(truth, answered, 3, None, BY).metrics
    assert found["accuracy"] == metrics.accuracy_score(truth, answered)
    assert found["precision_macro"] == pytest.approx(metrics.precision_score(truth, answered, average="macro"))
    assert found["recall_weighted"] == pytest.approx(metrics.recall_score(truth, answered, average="weighted"))
    assert found["f1_macro"] == pytest.approx(metrics.f1_score(truth, answered, average="macro"))
    assert "f1" not in found


def test_areas_and_log_loss_of_three_classes_are_scikit_learns(three: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = three
    found = score_metrics(truth, class_scores(probabilities, None), None, BY).metrics
    assert found == {
        "roc_auc_macro": pytest.approx(metrics.roc_auc_score(truth, probabilities, multi_class="ovr")),
        "roc_auc_weighted": pytest.approx(
            metrics.roc_auc_score(truth, probabilities, multi_class="ovr", average="weighted")
        ),
        "log_loss": pytest.approx(metrics.log_loss(truth, probabilities)),
    }


def test_what_the_bootstrap_resamples_are_the_metrics_themselves(three: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = three
    answered = probabilities.argmax(axis=1)
    found = label_metrics(truth, answered, 3, None, BY).metrics
    [means] = _means(metrics.confusion_matrix(truth, answered)[None])
    names = [f"{name}_{mean}" for mean in ("macro", "weighted") for name in ("precision", "recall", "f1")]
    assert means.tolist() == pytest.approx([found[name] for name in names])


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=20).filter(
        lambda rows: len({positive for positive, _, drawn in rows if drawn}) == 2
    )
)
def test_the_area_of_drawn_rows_is_scikit_learns_with_weights(rows: list[tuple[bool, int, int]]) -> None:
    positive, scores, drawn = (np.array(column) for column in zip(*rows, strict=True))
    expected = metrics.roc_auc_score(positive, scores, sample_weight=drawn)
    assert _weighted_auc(positive, scores.astype(float))(drawn.astype(float)) == pytest.approx(expected)


def test_a_class_that_no_row_has_leaves_the_others_areas(three: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = three
    kept = truth != 2
    found = score_metrics(truth[kept], class_scores(probabilities[kept], None), None, BY).metrics
    areas = [metrics.roc_auc_score(truth[kept] == code, probabilities[kept, code]) for code in (0, 1)]
    assert found["roc_auc_macro"] == pytest.approx(np.mean(areas))


def test_scores_that_are_no_probabilities_have_no_log_loss() -> None:
    truth = np.array([0, 1, 0, 1])
    found = score_metrics(truth, class_scores(np.array([-3.0, 2.0, 0.5, 0.7]), 1), 1, BY).metrics
    assert found == {"roc_auc": 1.0}


def test_a_lone_score_is_the_positive_class_s_whichever_that_is() -> None:
    assert class_scores(np.array([0.9, 0.2]), 0).answered.tolist() == [0, 1]
    assert class_scores(np.array([0.9, 0.2]), 1).answered.tolist() == [1, 0]


def test_a_curve_of_many_points_is_thinned_and_keeps_its_area() -> None:
    generator = np.random.default_rng(2)
    truth = generator.integers(2, size=20_000)
    scores = np.clip(generator.normal(0.4 + 0.2 * truth, 0.15), 0, 1)
    [curve] = roc_curves(truth, class_scores(scores, 1), ("no", "yes"), 1)
    assert len(curve.false_positive_rate) <= 200
    assert (curve.false_positive_rate[0], curve.true_positive_rate[-1]) == (0.0, 1.0)
    assert metrics.auc(curve.false_positive_rate, curve.true_positive_rate) == pytest.approx(curve.area, abs=1e-3)


def test_values_are_judged_as_scikit_learn_does() -> None:
    generator = np.random.default_rng(3)
    truth = generator.normal(100, 20, 200)
    answered = truth + generator.normal(0, 5, 200)
    found = value_metrics(truth, answered, BY)
    assert found.metrics == {
        "mae": pytest.approx(metrics.mean_absolute_error(truth, answered)),
        "rmse": pytest.approx(metrics.root_mean_squared_error(truth, answered)),
        "r2": pytest.approx(metrics.r2_score(truth, answered)),
    }
    assert all(interval.low < found.metrics[name] < interval.high for name, interval in found.intervals.items())


def test_values_that_never_vary_have_no_r2() -> None:
    assert set(value_metrics(np.full(5, 2.0), np.arange(5.0), BY).metrics) == {"mae", "rmse"}


def test_wilson_s_interval_is_the_published_one() -> None:
    # R. G. Newcombe (1998), table I: 81 of 263.
    found = wilson(81, 263, 0.95)
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_bootstrap_intervals_of_a_mean_hold_it_as_often_as_they_say() -> None:
    generator = np.random.default_rng(4)
    held = 0
    for number in range(60):
        values = generator.normal(10, 3, 80)
        [found] = bootstrap_rows(80, lambda drawn, values=values: [float(drawn @ values / 80)], 0.9, number)
        assert found is not None
        held += found.low <= 10 <= found.high
    # Binomial(60, 0.9) lies in here in all but one of a thousand runs; the seed is fixed besides.
    assert 46 <= held <= 60


def test_counts_and_rows_give_the_same_interval_up_to_chance() -> None:
    right = np.arange(400) < 300
    [by_rows] = bootstrap_rows(400, lambda drawn: [float(drawn @ right / 400)], 0.95, 1)
    [by_counts] = bootstrap_counts(np.array([300, 100]), lambda drawn: drawn[:, :1] / 400, 0.95, 1)
    assert by_rows is not None
    assert by_counts is not None
    assert (by_rows.low, by_rows.high) == pytest.approx((by_counts.low, by_counts.high), abs=0.01)


def test_the_same_seed_gives_the_same_interval() -> None:
    truth = np.array([0, 1] * 20)
    scores = class_scores(np.linspace(0, 1, 40), 1)
    assert score_metrics(truth, scores, 1, BY) == score_metrics(truth, scores, 1, BY)


def right(*wrong: int) -> np.ndarray:
    return ~np.isin(np.arange(20), wrong)


def test_a_comparison_is_mc_nemar_s_exact_test() -> None:
    [found] = compare([Judged("a:1", is_right=right(0, 1, 2, 3, 4, 5, 6, 7)), Judged("a:2", is_right=right(0, 10))], BY)
    assert (found.only_baseline_right, found.only_version_right) == (1, 7)
    # Twice the chance of at most 1 of 8 at a half each: 2 x 9 / 256.
    assert found.p_value == pytest.approx(18 / 256)
    assert found.difference == pytest.approx(0.3)
    assert found.interval.low < 0.3 < found.interval.high


def test_versions_that_agree_do_not_differ() -> None:
    [found] = compare([Judged("a:1", is_right=right(3)), Judged("a:2", is_right=right(3))], BY)
    assert (found.difference, found.p_value) == (0, 1)


def test_p_values_of_several_comparisons_are_adjusted() -> None:
    judged = [
        Judged("a:1", is_right=right(*range(8))),
        Judged("a:2", is_right=right(0)),
        Judged("a:3", is_right=right(9)),
    ]
    first, second = compare(judged, BY)
    low, high = sorted([first, second], key=lambda comparison: comparison.p_value)
    assert low.p_value_adjusted == pytest.approx(2 * low.p_value)
    assert high.p_value_adjusted == pytest.approx(max(high.p_value, 2 * low.p_value))


def test_regressors_are_compared_by_their_absolute_errors() -> None:
    errors = np.linspace(-1, 1, 30)
    [found] = compare([Judged("a:1", errors=errors), Judged("a:2", errors=errors * 2)], BY)
    assert found.metric == "mae"
    assert found.difference == pytest.approx(np.abs(errors).mean())
    assert found.p_value < 0.001
