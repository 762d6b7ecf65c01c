"""Chooses the score from which on a row is called positive, for a stated objective."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Quantity = Literal["f1", "accuracy", "youden", "recall", "precision", "cost"]

FORMS = "f1, accuracy, youden, recall@precision=0.9, precision@recall=0.9, cost:fp=1,fn=5"

_NUMBER = r"\d+(?:\.\d+)?"
_CONSTRAINED = re.compile(rf"(recall|precision)@(precision|recall)=({_NUMBER})")
_COST = re.compile(rf"cost:fp=({_NUMBER}),fn=({_NUMBER})")


@dataclass(frozen=True)
class Objective:
    """What a threshold is chosen for: the highest `quantity`, or the lowest cost."""

    quantity: Quantity
    at_least: float = 0.0
    """What the other of precision and recall must reach."""
    false_positive: float = field(default=1.0)
    """Cost of one."""
    false_negative: float = field(default=1.0)
    """Cost of one."""

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Reads one of FORMS.

        `youden` is Youden's J, recall + specificity - 1. `recall@precision=0.9` is the highest recall of which the
        precision is at least 0.9. A cost counts false positives and false negatives at the prices given.

        Raises:
            ValueError: for anything else.
        """
        if text in ("f1", "accuracy", "youden"):
            return cls(text)
        if (found := _CONSTRAINED.fullmatch(text)) and found[1] != found[2] and 0 < float(found[3]) <= 1:
            return cls("recall" if found[1] == "recall" else "precision", at_least=float(found[3]))
        if (found := _COST.fullmatch(text)) and float(found[1]) + float(found[2]) > 0:
            return cls("cost", false_positive=float(found[1]), false_negative=float(found[2]))
        raise ValueError(f"{text!r} is no objective; one is {FORMS}")

    def __str__(self) -> str:
        match self.quantity:
            case "recall":
                return f"recall@precision={self.at_least:g}"
            case "precision":
                return f"precision@recall={self.at_least:g}"
            case "cost":
                return f"cost:fp={self.false_positive:g},fn={self.false_negative:g}"
            case _:
                return self.quantity

    def values(self, counts: Counts) -> np.ndarray:
        """What the objective is worth at each threshold, more being better; -inf where its constraint isn't met."""
        import numpy as np  # noqa: PLC0415 - options name objectives, and start without it

        match self.quantity:
            case "f1":
                return 2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn)
            case "accuracy":
                return (counts.tp + counts.tn) / (counts.positives + counts.negatives)
            case "youden":
                return counts.recall - counts.fp / counts.negatives
            case "recall":
                return np.where(counts.precision >= self.at_least, counts.recall, -np.inf)
            case "precision":
                return np.where(counts.recall >= self.at_least, counts.precision, -np.inf)
            case "cost":
                total = self.false_positive * counts.fp + self.false_negative * counts.fn
                return -total / (counts.positives + counts.negatives)


@dataclass(frozen=True)
class Counts:
    """True and false positives at each of a number of thresholds: arrays of shape (thresholds,)."""

    tp: np.ndarray
    fp: np.ndarray
    positives: int
    negatives: int

    @property
    def fn(self) -> np.ndarray:
        return self.positives - self.tp

    @property
    def tn(self) -> np.ndarray:
        return self.negatives - self.fp

    @property
    def recall(self) -> np.ndarray:
        return self.tp / self.positives

    @property
    def precision(self) -> np.ndarray:
        """0 where nothing is called positive."""
        import numpy as np  # noqa: PLC0415

        return self.tp / np.maximum(self.tp + self.fp, 1)


@dataclass(frozen=True)
class Choice:
    """A threshold, and what the objective is worth with it on the rows that it was chosen on."""

    threshold: float
    value: float
    """The quantity; of a cost, the mean cost a row."""


def choose_threshold(objective: Objective, is_positive: np.ndarray, scores: np.ndarray) -> Choice | None:
    """The best threshold on rows of which both classes are there; None where none meets the objective's constraint.

    A row is called positive where its score is at least the threshold. Of equally good thresholds it is the one with
    the better constrained quantity, then the highest. It lies midway between two scores of the data, so that a score
    which differs in its last digit changes nothing.

    Args:
        objective: what to choose for.
        is_positive: shape (rows,), boolean.
        scores: shape (rows,), finite.
    """
    import numpy as np  # noqa: PLC0415
    from sklearn.metrics import roc_curve  # noqa: PLC0415

    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    # Every distinct score from the highest down, after one that is above all.
    fpr, tpr, candidates = roc_curve(is_positive, scores, drop_intermediate=False)
    counts = Counts(np.rint(tpr * positives), np.rint(fpr * negatives), positives, negatives)
    values = objective.values(counts)
    other = {"recall": counts.precision, "precision": counts.recall}.get(objective.quantity, np.zeros(len(values)))
    # The last key counts first; of all equals the first is the highest threshold.
    best = int(np.lexsort((np.arange(len(values)), -other, -values))[0])
    if np.isneginf(values[best]):
        return None
    value = float(values[best])
    return Choice(_between(candidates, best), -value if objective.quantity == "cost" else value)


def _between(candidates: np.ndarray, best: int) -> float:
    import numpy as np  # noqa: PLC0415

    if best == 0:
        return float(np.nextafter(candidates[1], np.inf))
    chosen = float(candidates[best])
    if best == len(candidates) - 1:
        return chosen
    below = float(candidates[best + 1])
    middle = below + (chosen - below) / 2
    return middle if below < middle else chosen
