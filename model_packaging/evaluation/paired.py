"""Compares versions row by row: they answered the same rows, so what both get right or wrong says nothing. Pure.

Sources: Q. McNemar, "Note on the sampling error of the difference between correlated proportions" (1947), in its exact
binomial form; F. Wilcoxon, "Individual Comparisons by Ranking Methods" (1945); S. Holm, "A Simple Sequentially
Rejective Multiple Test Procedure" (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, wilcoxon

from model_packaging.evaluation.intervals import bootstrap_counts, bootstrap_rows
from model_packaging.evaluation.metrics import Certainty
from model_packaging.evaluation.results import Comparison, Interval


@dataclass(frozen=True)
class Judged:
    """How a version did on each row that the metrics are about, the same rows for all versions."""

    name: str
    is_right: np.ndarray | None = None
    """Of a classifier: shape (rows,), boolean."""
    errors: np.ndarray | None = None
    """Of a regressor: how far off each answer is, shape (rows,)."""


def compare(judged: Sequence[Judged], by: Certainty) -> tuple[Comparison, ...]:
    """Every version with the first, by accuracy or mean absolute error.

    Classifiers by McNemar's exact test on the rows that just one of the two gets right; regressors by Wilcoxon's
    signed-rank test on the absolute errors. The p-values are adjusted by Holm's method for there being several.
    """
    if len(judged) < 2:
        return ()
    baseline, *others = judged
    found = [_compare(baseline, other, by) for other in others]
    adjusted = _holm([comparison.p_value for comparison in found])
    return tuple(
        comparison.model_copy(update={"p_value_adjusted": p}) for comparison, p in zip(found, adjusted, strict=True)
    )


def _compare(baseline: Judged, other: Judged, by: Certainty) -> Comparison:
    if baseline.is_right is not None and other.is_right is not None:
        return _compare_labels(baseline.name, baseline.is_right, other.name, other.is_right, by)
    assert baseline.errors is not None
    assert other.errors is not None
    return _compare_values(baseline.name, np.abs(baseline.errors), other.name, np.abs(other.errors), by)


def _compare_labels(baseline: str, first: np.ndarray, version: str, second: np.ndarray, by: Certainty) -> Comparison:
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    rows = len(first)
    cells = np.array([only_first, only_second, rows - only_first - only_second])
    [interval] = bootstrap_counts(
        cells, lambda drawn: ((drawn[:, 1] - drawn[:, 0]) / rows)[:, None], by.confidence, by.seed
    )
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return _comparison(
        baseline, version, rows, "McNemar, exact", p_value, interval,
        metric="accuracy", difference=(only_second - only_first) / rows,
        only_baseline_right=only_first, only_version_right=only_second,
    )  # fmt: skip


def _compare_values(baseline: str, first: np.ndarray, version: str, second: np.ndarray, by: Certainty) -> Comparison:
    differences = second - first
    rows = len(differences)
    [interval] = bootstrap_rows(rows, lambda drawn: [float(drawn @ differences / rows)], by.confidence, by.seed)
    p_value = _wilcoxon(differences) if differences.any() else 1.0
    return _comparison(
        baseline, version, rows, "Wilcoxon, signed rank", p_value, interval,
        metric="mae", difference=float(differences.mean()),
    )  # fmt: skip


def _wilcoxon(differences: np.ndarray) -> float:
    result: Any = wilcoxon(differences)
    return float(result.pvalue)


def _comparison(
    baseline: str, version: str, rows: int, test: str, p_value: float, interval: Interval | None, **found: object
) -> Comparison:
    return Comparison.model_validate(
        {
            "baseline": baseline, "version": version, "rows": rows, "test": test, "p_value": p_value,
            "p_value_adjusted": p_value, "interval": interval, **found,
        }
    )  # fmt: skip


def _holm(p_values: Sequence[float]) -> list[float]:
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1)
    return adjusted.tolist()
