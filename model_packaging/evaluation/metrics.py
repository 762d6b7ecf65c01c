"""What answers are worth against the truth: scikit-learn's metrics, with intervals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics

from model_packaging.evaluation.intervals import bootstrap_counts, bootstrap_rows, wilson
from model_packaging.evaluation.options import Label
from model_packaging.evaluation.results import ClassMetrics, Interval, RocCurve

_PROBABILITY_TOLERANCE = 1e-3
_MOST_ROC_POINTS = 200
_PRF = ("precision", "recall", "f1")
_UNDEFINED: dict[str, Any] = {"zero_division": 0}
"""What a class that was never answered has as precision."""


@dataclass(frozen=True)
class Measured:
    """Metrics by name, and intervals of those that have one."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]

    def __or__(self, other: Measured) -> Measured:
        return Measured(self.metrics | other.metrics, self.intervals | other.intervals)


@dataclass(frozen=True)
class Certainty:
    """How the intervals are made."""

    confidence: float
    seed: int


@dataclass(frozen=True)
class ClassScores:
    """A score for each class."""

    columns: np.ndarray
    """Shape (rows, classes)."""
    are_probabilities: bool
    """Whether each row lies in [0, 1] and sums to 1; then it does so exactly."""

    @property
    def answered(self) -> np.ndarray:
        """The code of each row's highest score."""
        return self.columns.argmax(axis=1).astype(np.int32)

    def rows(self, chosen: np.ndarray) -> ClassScores:
        return ClassScores(self.columns[chosen], self.are_probabilities)


def class_scores(scores: np.ndarray, positive: int | None) -> ClassScores:
    """Scores as answered, one a class or one a row (the positive class's), as one a class.

    A lone score is a probability if all lie in [0, 1]; else the decision is at 0, as of a margin.
    """
    if scores.ndim == 1:
        are_probabilities = bool(((scores >= 0) & (scores <= 1)).all())
        other = 1 - scores if are_probabilities else -scores
        columns = (other, scores) if positive == 1 else (scores, other)
        return ClassScores(np.column_stack(columns), are_probabilities)
    sums = scores.sum(axis=1, keepdims=True)
    are_probabilities = bool((scores >= 0).all() and (np.abs(sums - 1) <= _PROBABILITY_TOLERANCE).all())
    # Those of 32 bits miss 1 by a little, which scikit-learn warns of.
    return ClassScores(scores / sums if are_probabilities else scores, are_probabilities)


def confusion_matrix(truth: np.ndarray, answered: np.ndarray, classes: int) -> np.ndarray:
    """Rows by true class, columns by the answered one."""
    return metrics.confusion_matrix(truth, answered, labels=range(classes))


def label_metrics(
    truth: np.ndarray, answered: np.ndarray, classes: int, positive: int | None, by: Certainty
) -> Measured:
    """Accuracy; precision, recall and F1 of the positive class of two, and their macro and weighted means over classes.

    A class that was never answered has precision 0. The means are over classes that are in the data or the answers.
    Accuracy, and the positive class's precision and recall, are shares of rows and have Wilson's intervals (precision
    given how many rows were called positive); the others have the bootstrap's.

    Args:
        truth, answered: codes of the classes, of shape (rows,).
        classes: how many there are.
        positive: the positive one's code, of two.
        by: how intervals are made.
    """
    confusion = confusion_matrix(truth, answered, classes)
    found = {"accuracy": float(metrics.accuracy_score(truth, answered))}
    intervals = {"accuracy": wilson(int(np.trace(confusion)), int(confusion.sum()), by.confidence)}
    names, sampled = list[str](), list[Interval | None]()
    if positive is not None:
        own = metrics.precision_recall_fscore_support(truth, answered, labels=[positive], average=None, **_UNDEFINED)
        found |= {name: float(np.asarray(value)[0]) for name, value in zip(_PRF, own[:3], strict=True)}
        names.append("f1")
        sampled += bootstrap_counts(confusion, lambda drawn: _prf(drawn)[2][:, [positive]], by.confidence, by.seed)
        right = int(confusion[positive, positive])
        shares = {"precision": int(confusion[:, positive].sum()), "recall": int(confusion[positive].sum())}
        intervals |= {name: wilson(right, rows, by.confidence) for name, rows in shares.items() if rows}
    averages: dict[str, str] = {"_macro": "macro", "_weighted": "weighted"}
    for suffix, average in averages.items():
        means = metrics.precision_recall_fscore_support(truth, answered, average=average, **_UNDEFINED)
        found |= {f"{name}{suffix}": float(value) for name, value in zip(_PRF, means[:3], strict=True)}
    names += [f"{name}{suffix}" for suffix in averages for name in _PRF]
    sampled += bootstrap_counts(confusion, _means, by.confidence, by.seed)
    intervals |= {name: interval for name, interval in zip(names, sampled, strict=True) if interval is not None}
    return Measured(found, intervals)


def _prf(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, of confusion matrices of shape (resamples, classes, classes)."""
    right = np.diagonal(confusion, axis1=1, axis2=2)
    actual, answered = confusion.sum(axis=2), confusion.sum(axis=1)
    return (
        right / np.maximum(answered, 1),
        right / np.maximum(actual, 1),
        2 * right / np.maximum(actual + answered, 1),
    )


def _means(confusion: np.ndarray) -> np.ndarray:
    """Macro and weighted means of `_prf`, of shape (resamples, 6)."""
    actual, answered = confusion.sum(axis=2), confusion.sum(axis=1)
    present = (actual + answered) > 0
    weights = (present / present.sum(axis=1, keepdims=True), actual / actual.sum(axis=1, keepdims=True))
    return np.stack([(values * weight).sum(axis=1) for weight in weights for values in _prf(confusion)], axis=1)


def class_metrics(truth: np.ndarray, answered: np.ndarray, classes: Sequence[Label]) -> tuple[ClassMetrics, ...]:
    """Of each class against all others."""
    precision, recall, f1, rows = map(
        np.asarray,
        metrics.precision_recall_fscore_support(truth, answered, labels=range(len(classes)), **_UNDEFINED),
    )
    return tuple(
        ClassMetrics(
            label=label, rows=int(rows[code]), precision=float(precision[code]), recall=float(recall[code]),
            f1=float(f1[code]),
        )
        for code, label in enumerate(classes)
    )  # fmt: skip


def score_metrics(truth: np.ndarray, scores: ClassScores, positive: int | None, by: Certainty) -> Measured:
    """ROC-AUC, of more than two classes as means of each against the rest; and log-loss, where they are probabilities.

    All intervals are the bootstrap's. AUC is left out where no class has rows both in and out of it.

    Args:
        truth: codes of the classes, of shape (rows,).
        scores: of those rows.
        positive: the positive one's code, of two.
        by: how intervals are made.
    """
    curves = [(truth == code, scores.columns[:, code]) for code in _separable(truth, scores, positive)]
    found: dict[str, float] = {}
    statistics: list[tuple[tuple[str, ...], Callable[[np.ndarray], list[float]]]] = []
    if curves:
        areas = np.array([metrics.roc_auc_score(is_class, column) for is_class, column in curves])
        weighted = [_weighted_auc(is_class, column) for is_class, column in curves]
        if positive is not None:
            found["roc_auc"] = float(areas[0])
            statistics.append((("roc_auc",), lambda drawn: [weighted[0](drawn)]))
        else:
            shares = np.array([is_class.mean() for is_class, _ in curves])
            shares /= shares.sum()
            found |= {"roc_auc_macro": float(areas.mean()), "roc_auc_weighted": float(areas @ shares)}

            def both(drawn: np.ndarray) -> list[float]:
                drawn_areas = np.array([area(drawn) for area in weighted])
                return [float(drawn_areas.mean()), float(drawn_areas @ shares)]

            statistics.append((("roc_auc_macro", "roc_auc_weighted"), both))
    if scores.are_probabilities:
        found["log_loss"] = float(metrics.log_loss(truth, scores.columns, labels=range(scores.columns.shape[1])))
        given = scores.columns[np.arange(len(truth)), truth]
        losses = -np.log(np.clip(given, np.finfo(np.float64).eps, None))
        statistics.append((("log_loss",), lambda drawn: [float(drawn @ losses / len(losses))]))
    return Measured(found, _bootstrap(len(truth), statistics, by))


def roc_curves(
    truth: np.ndarray, scores: ClassScores, classes: Sequence[Label], positive: int | None
) -> tuple[RocCurve, ...]:
    """Of the positive class of two, or of each of more against the rest."""
    curves: list[RocCurve] = []
    for code in _separable(truth, scores, positive):
        fpr, tpr, _ = metrics.roc_curve(truth == code, scores.columns[:, code])
        shown = np.unique(np.linspace(0, len(fpr) - 1, _MOST_ROC_POINTS).astype(int))
        curves.append(
            RocCurve(
                label=classes[code],
                false_positive_rate=tuple(fpr[shown].tolist()),
                true_positive_rate=tuple(tpr[shown].tolist()),
                area=float(metrics.auc(fpr, tpr)),
            )
        )
    return tuple(curves)


def value_metrics(truth: np.ndarray, answered: np.ndarray, by: Certainty) -> Measured:
    """MAE, RMSE and R² of a regressor, with the bootstrap's intervals. R² is left out where the truth never varies."""
    errors = answered - truth
    found = {
        "mae": float(metrics.mean_absolute_error(truth, answered)),
        "rmse": float(metrics.root_mean_squared_error(truth, answered)),
    }
    rows, absolute, squared = len(truth), np.abs(errors), errors**2
    statistics: list[tuple[tuple[str, ...], Callable[[np.ndarray], list[float]]]] = [
        (("mae", "rmse"), lambda drawn: [float(drawn @ absolute / rows), float(np.sqrt(drawn @ squared / rows))])
    ]
    if len(truth) > 1 and np.ptp(truth) > 0:
        found["r2"] = float(metrics.r2_score(truth, answered))
        centred = truth - truth.mean()

        def r2(drawn: np.ndarray) -> list[float]:
            spread = drawn @ centred**2 - (drawn @ centred) ** 2 / rows
            return [float(1 - drawn @ squared / spread) if spread > 0 else float("nan")]

        statistics.append((("r2",), r2))
    return Measured(found, _bootstrap(rows, statistics, by))


def _separable(truth: np.ndarray, scores: ClassScores, positive: int | None) -> list[int]:
    """The classes that have a curve: of two the positive one, and none that every row or no row is of."""
    codes = range(scores.columns.shape[1]) if positive is None else [positive]
    return [code for code in codes if 0 < (truth == code).sum() < len(truth)]


def _bootstrap(
    rows: int, statistics: list[tuple[tuple[str, ...], Callable[[np.ndarray], list[float]]]], by: Certainty
) -> dict[str, Interval]:
    if not statistics:
        return {}
    names = [name for own, _ in statistics for name in own]
    sampled = bootstrap_rows(
        rows, lambda drawn: [value for _, values in statistics for value in values(drawn)], by.confidence, by.seed
    )
    return {name: interval for name, interval in zip(names, sampled, strict=True) if interval is not None}


def _weighted_auc(is_class: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], float]:
    """The area for rows drawn a number of times each: sorts once, where scikit-learn would for every resample."""
    order = np.argsort(scores)
    ordered, positive = scores[order], is_class[order]
    ties = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def area(drawn: np.ndarray) -> float:
        weights = drawn[order]
        positives = np.add.reduceat(weights * positive, ties)
        negatives = np.add.reduceat(weights * ~positive, ties)
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives / 2
        return float(positives @ below / pairs) if pairs else float("nan")

    return area
