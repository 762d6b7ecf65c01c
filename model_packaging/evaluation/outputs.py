"""Which of a version's outputs holds labels, scores or values, and what an answer says in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from model_packaging.errors import AnswerRefused, EvaluationRefused
from model_packaging.evaluation.options import Options, Task
from model_packaging.package import Signature, Tensor

_FLOATS = ("FP16", "FP32", "FP64", "BF16")


@dataclass(frozen=True)
class Roles:
    """The outputs that are asked for, by what they hold."""

    task: Task
    labels: Tensor | None = None
    scores: Tensor | None = None
    values: Tensor | None = None

    @property
    def outputs(self) -> list[Tensor]:
        return [tensor for tensor in (self.labels, self.scores, self.values) if tensor is not None]

    @property
    def width(self) -> int | None:
        """How many classes the scores tell apart, as far as the signature says."""
        if self.scores is None:
            return None
        if _is_one_a_row(self.scores):
            return 2
        return self.scores.shape[1] if self.scores.shape[1] != -1 else None


@dataclass(frozen=True)
class Answer:
    """What a server said of a number of rows."""

    labels: np.ndarray | None = None
    """Shape (rows,): whole numbers, or text."""
    scores: np.ndarray | None = None
    """Shape (rows, classes), float64; of one score a row, (rows,)."""
    values: np.ndarray | None = None
    """Shape (rows,), float64."""


def find_roles(signature: Signature, options: Options, target_kind: str) -> Roles:
    """Finds the outputs by the options, or else by the only output that has the form of each.

    Labels are one integer, boolean or text a row. Scores are floating-point numbers, a column for each class; or one a
    row, the positive class's, where nothing else can be the answer: beside labels, it may be the confidence in them.
    Values are one floating-point number a row.

    Args:
        signature: the version's.
        options: what was stated.
        target_kind: NumPy's letter for the target column: integer `i`, floating `f` or text `U`.

    Raises:
        EvaluationRefused: an output that was stated isn't there, or several or none have the form.
    """
    one_float = [t for t in signature.outputs if t.datatype in _FLOATS and _is_one_a_row(t)]
    labels = _role("labels", options.labels, signature, _label_outputs(signature))
    wide = [t for t in signature.outputs if t.datatype in _FLOATS and len(t.shape) == 2 and not _is_one_a_row(t)]
    task = options.task or _task(options, labels, wide, one_float, target_kind)
    if task == "regression":
        values = _role("values", options.values, signature, one_float)
        if values is None:
            raise EvaluationRefused(f"no output holds one number a row; state which has the values: {_all(signature)}")
        return Roles(task, values=values)
    scores = _role("scores", options.scores, signature, wide or ([] if labels else one_float))
    if labels is None and scores is None:
        raise EvaluationRefused(
            f"no output holds labels or scores; state which: {_all(signature)}. Labels are integers, booleans or text"
        )
    return Roles(task, labels=labels, scores=scores)


def _label_outputs(signature: Signature) -> list[Tensor]:
    return [t for t in signature.outputs if t.datatype not in _FLOATS and _is_one_a_row(t)]


def _task(
    options: Options, labels: Tensor | None, wide: list[Tensor], one_float: list[Tensor], target_kind: str
) -> Task:
    if options.values is not None:
        return "regression"
    if labels is not None or wide or options.scores is not None or target_kind == "U" or not one_float:
        return "classification"
    if target_kind == "f":
        return "regression"
    raise EvaluationRefused(
        f"output {one_float[0].name!r} is one number a row and the target is integers: that can be a class's score or "
        "a regressor's value; state the task, classification or regression"
    )


def _role(role: str, stated: str | None, signature: Signature, fitting: list[Tensor]) -> Tensor | None:
    if stated is not None:
        for tensor in signature.outputs:
            if tensor.name == stated:
                return tensor
        raise EvaluationRefused(f"{role} are to be in output {stated!r}; the signature has {_all(signature)}")
    if len(fitting) > 1:
        raise EvaluationRefused(f"several outputs can hold the {role}: {_names(fitting)}; state which")
    return fitting[0] if fitting else None


def read_answer(document: object, roles: Roles, rows: int) -> Answer:
    """Reads an inference response of the Open Inference Protocol V2.

    Raises:
        AnswerRefused: an output is missing, or is not of as many rows, or holds what its role can't.
    """
    outputs = cast("dict[str, Any]", document).get("outputs") if isinstance(document, dict) else None
    if not isinstance(outputs, list):
        raise AnswerRefused(f"the answer is no inference response, it has no list of outputs: {document!s:.200}")
    given: dict[object, dict[str, Any]] = {
        output.get("name"): output for output in cast("list[object]", outputs) if isinstance(output, dict)
    }
    return Answer(
        labels=_array(given, roles.labels, rows, "labels"),
        scores=_array(given, roles.scores, rows, "scores"),
        values=_array(given, roles.values, rows, "values"),
    )


def _array(given: dict[object, dict[str, Any]], tensor: Tensor | None, rows: int, role: str) -> np.ndarray | None:
    if tensor is None:
        return None
    output = given.get(tensor.name)
    if output is None:
        raise AnswerRefused(f"the answer has no output {tensor.name!r}; it has {', '.join(map(str, given)) or 'none'}")
    try:
        array = np.array(output["data"]).reshape(output["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerRefused(f"output {tensor.name!r} holds data that doesn't fit its shape: {error!r}") from None
    if array.ndim == 0 or len(array) != rows:
        raise AnswerRefused(f"output {tensor.name!r} has shape {list(array.shape)} for {rows} rows")
    if role != "scores" or (array.ndim == 2 and array.shape[1] == 1):
        if array.size != rows:
            raise AnswerRefused(f"output {tensor.name!r} has shape {list(array.shape)}: {role} are one a row")
        array = array.reshape(rows)
    return _labels(array, tensor) if role == "labels" else _numbers(array, tensor)


def _labels(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind in "biu":
        return array.astype(np.int64)
    if array.dtype.kind == "f" and np.array_equal(whole := array.astype(np.int64), array):
        return whole
    raise AnswerRefused(
        f"output {tensor.name!r} holds {array.ravel().tolist()[0]!r}: a label is a whole number or text"
    )


def _numbers(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    if array.ndim > 2 or array.dtype.kind not in "biuf":
        raise AnswerRefused(f"output {tensor.name!r} holds {array.dtype} of shape {list(array.shape)}, not numbers")
    if not np.isfinite(array).all():
        raise AnswerRefused(f"output {tensor.name!r} holds NaN or an infinity")
    return array.astype(np.float64)


def _is_one_a_row(tensor: Tensor) -> bool:
    return len(tensor.shape) > 0 and tensor.shape[1:] in ((), (1,))


def _all(signature: Signature) -> str:
    return _names(signature.outputs)


def _names(tensors: list[Tensor] | tuple[Tensor, ...]) -> str:
    return ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)
