"""The true labels of a data set, as codes into a list of classes, and how its rows are split."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from model_packaging.errors import DatasetRefused, EvaluationRefused
from model_packaging.evaluation.dataset import listed
from model_packaging.evaluation.options import Label, Options

_WHOLE = re.compile(r"-?\d+")


def as_labels(values: np.ndarray, what: str) -> np.ndarray:
    """A target column as labels: whole numbers (int64) or text.

    Raises:
        DatasetRefused: it holds fractions.
    """
    if values.dtype.kind == "f":
        whole = values.astype(np.int64)
        if not np.array_equal(whole, values):
            raise DatasetRefused(
                f"{what} holds fractions such as {values[whole != values][0]:g}, which are no labels; "
                "name the column of the labels, or evaluate as a regression"
            )
        return whole
    return values


def as_values(values: np.ndarray, what: str) -> np.ndarray:
    """A target column as the numbers that a regressor answers, float64.

    Raises:
        DatasetRefused: it holds text.
    """
    if values.dtype.kind not in "iuf":
        raise DatasetRefused(f"{what} holds text such as {values[0].item()!r}; a regression needs numbers")
    return values.astype(np.float64)


def resolve_classes(labels: np.ndarray, width: int | None, options: Options, what: str) -> tuple[Label, ...]:
    """The classes in the order of the scores' columns: those stated, or those that follow from data and scores.

    Args:
        labels: of every row, from `as_labels`.
        width: how many classes the scores tell apart; None where that is not known.
        options: what was stated.
        what: names the column, for errors.

    Raises:
        DatasetRefused: a row's label is none of the classes, or all rows are of one class.
        EvaluationRefused: the classes don't follow, or are not as many as the scores.
    """
    found: list[Label] = np.unique(labels).tolist()
    if options.classes:
        classes = _stated(options.classes, found)
        if width not in (None, len(classes)):
            raise EvaluationRefused(
                f"classes are {listed(map(repr, classes))}, but the scores tell {width} classes apart"
            )
    elif width is not None and all(isinstance(label, int) and 0 <= label < width for label in found):
        classes = tuple(range(width))
    elif width in (None, len(found)):
        classes = tuple(found)
    else:
        raise EvaluationRefused(
            f"{what} holds the labels {listed(map(repr, found))}, and the scores tell {width} classes apart; "
            "state the classes in the order of the scores"
        )
    unknown = [label for label in found if label not in classes]
    if unknown:
        row = int(np.argmax(labels == unknown[0])) + 1
        raise DatasetRefused(
            f"{what} holds {unknown[0]!r} in row {row}, which is none of the classes {listed(map(repr, classes))}"
        )
    if len(found) < 2:
        raise DatasetRefused(f"{what} is {found[0]!r} in every row; there is nothing to tell apart")
    return classes


def positive_code(classes: Sequence[Label], options: Options) -> int | None:
    """Which of two classes counts as positive; None where there are more.

    Raises:
        EvaluationRefused: the stated one is none of two classes.
    """
    if options.positive is None:
        return 1 if len(classes) == 2 else None
    positive = _stated((options.positive,), classes)[0]
    if len(classes) != 2 or positive not in classes:
        raise EvaluationRefused(
            f"positive is {positive!r}: it is one of two classes, and these are {listed(map(repr, classes))}"
        )
    return classes.index(positive)


def encode(labels: np.ndarray, classes: Sequence[Label]) -> np.ndarray:
    """Labels as positions in `classes`, -1 for what is none of them. Shape (rows,), int32."""
    unique, inverse = np.unique(labels, return_inverse=True)
    positions = {label: code for code, label in enumerate(classes)}
    return np.array([positions.get(label, -1) for label in unique.tolist()], dtype=np.int32)[inverse]


def split(codes: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Rows that choose the threshold, and rows that the metrics are about: sorted, with like shares of each class.

    Raises:
        DatasetRefused: a class has too few rows to be in both.
    """
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    rows = np.arange(len(codes))
    if options.objective is None or options.selection_share == 0:
        return rows, rows
    try:
        selection, report = train_test_split(
            rows, train_size=options.selection_share, stratify=codes, random_state=options.seed
        )
    except ValueError as error:
        raise DatasetRefused(
            f"{len(rows)} rows can't be split into {options.selection_share:g} that choose the threshold and the rest "
            f"that is reported on: {error}; give more rows of each class, or another selection share"
        ) from None
    for part in (selection, report):
        if len(np.unique(codes[part])) < len(np.unique(codes)):
            raise DatasetRefused(
                f"{len(rows)} rows are too few to have every class both among those that choose the threshold and "
                "among the rest; give more rows of each class, or another selection share"
            )
    return np.sort(selection), np.sort(report)


def _stated(stated: Sequence[Label], like: Sequence[Label]) -> tuple[Label, ...]:
    """Labels from a command line, of the kind that the data has."""
    if all(isinstance(label, int) for label in like):
        return tuple(
            int(label) if isinstance(label, str) and label.lstrip("-").isdecimal() else label for label in stated
        )
    return tuple(map(str, stated))
