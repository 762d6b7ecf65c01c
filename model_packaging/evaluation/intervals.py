"""Confidence intervals: Wilson's for proportions, the bootstrap for everything else.

Sources: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927); B. Efron and
R. Tibshirani, "An Introduction to the Bootstrap" (1993), percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from model_packaging.evaluation.results import Interval

_MOST_RESAMPLES = 1000
_FEWEST_RESAMPLES = 200
_MOST_DRAWS = 50_000_000


def wilson(successes: int, trials: int, confidence: float) -> Interval:
    """Of a share of independent rows."""
    from scipy.stats import binomtest  # noqa: PLC0415

    found = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(low=float(found.low), high=float(found.high), method="Wilson")


def bootstrap_counts(
    counts: np.ndarray, statistics: Callable[[np.ndarray], np.ndarray], confidence: float, seed: int
) -> list[Interval | None]:
    """Of statistics that depend on how many rows fall into each cell alone, as those of a confusion matrix do.

    Drawing rows again is drawing the counts from a multinomial distribution, so it costs the same for any number.

    Args:
        counts: whole numbers of any shape.
        statistics: from counts of shape (resamples, *shape) to values of shape (resamples, statistics).
        confidence: the intervals', 0.95 say.
        seed: of the draws.
    """
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts.ravel() / total, size=_MOST_RESAMPLES)
    return _percentiles(statistics(drawn.reshape(-1, *counts.shape)), confidence)


def bootstrap_rows(
    rows: int, statistics: Callable[[np.ndarray], list[float]], confidence: float, seed: int
) -> list[Interval | None]:
    """Of any statistics of weighted rows: 1,000 resamples of up to 50,000 rows, fewer (at least 200) of more.

    Args:
        rows: how many there are.
        statistics: from how often each row is drawn, of shape (rows,), to their values; NaN where one is undefined.
        confidence: the intervals', 0.95 say.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    resamples = min(_MOST_RESAMPLES, max(_FEWEST_RESAMPLES, _MOST_DRAWS // rows))
    # Versions are evaluated side by side: threads of one would wait for those of another, at many times the cost.
    with threadpool_limits(1):
        values = [
            statistics(np.bincount(generator.integers(rows, size=rows), minlength=rows).astype(np.float64))
            for _ in range(resamples)
        ]
    return _percentiles(np.array(values), confidence)


def _percentiles(values: np.ndarray, confidence: float) -> list[Interval | None]:
    return [_percentile(column, confidence) for column in values.T]


def _percentile(values: np.ndarray, confidence: float) -> Interval | None:
    """None where most resamples have no value, as with a class of one row."""
    defined = values[~np.isnan(values)]
    if len(defined) < len(values) / 2:
        return None
    low, high = np.quantile(defined, ((1 - confidence) / 2, (1 + confidence) / 2)).tolist()
    return Interval(low=low, high=high, method=f"bootstrap, {len(values)} resamples")
