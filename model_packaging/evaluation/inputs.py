"""Makes a version's input tensors of a data set's columns, by the version's own signature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from model_packaging.errors import DatasetRefused, EvaluationRefused
from model_packaging.evaluation.dataset import Dataset, listed
from model_packaging.evaluation.options import Options
from model_packaging.package import Datatype, Signature, Tensor


@dataclass(frozen=True)
class InputPlan:
    """Which columns each input tensor is made of."""

    sources: tuple[tuple[Tensor, tuple[str, ...]], ...]
    most_rows: int | None
    """A request may hold; None: any number."""

    def batches(self, dataset: Dataset, rows: int) -> Iterator[list[np.ndarray]]:
        """The tensors of at most `rows` rows at a time, in the signature's order.

        Raises:
            DatasetRefused: as `Dataset.batches`.
        """
        types: dict[str, Datatype] = {name: tensor.datatype for tensor, names in self.sources for name in names}
        for batch in dataset.batches(types, min(rows, self.most_rows or rows)):
            yield [_tensor(tensor, [batch[name] for name in names]) for tensor, names in self.sources]


def plan_inputs(signature: Signature, dataset: Dataset, options: Options) -> InputPlan:
    """Finds the columns of every input tensor.

    The only input of a signature takes the array of its name, or else the feature columns side by side. Where there
    are several, each takes the column or array of its name.

    Raises:
        EvaluationRefused: an input takes a number of rows of its own.
        DatasetRefused: columns are missing, or are not as many as the signature asks for.
    """
    for tensor in signature.inputs:
        if tensor.shape[:1] not in ((-1,), (1,)):
            raise EvaluationRefused(
                f"input {tensor.name!r} has shape {list(tensor.shape)}: its first dimension is the rows of a request, "
                "which must be -1 (any number) or 1 for a version to be evaluated"
            )
    first, *others = signature.inputs
    if others:
        if options.features:
            raise EvaluationRefused(
                f"features are given, but the signature has {len(signature.inputs)} inputs "
                f"({', '.join(tensor.name for tensor in signature.inputs)}), each taking the column of its name"
            )
        dataset.require(tuple(tensor.name for tensor in signature.inputs), "column or array for input")
        sources = [(tensor, (tensor.name,)) for tensor in signature.inputs]
    else:
        sources = [(first, _columns(first, dataset, options))]
    for tensor, names in sources:
        _check_shape(tensor, names, dataset)
    single = any(tensor.shape[:1] == (1,) for tensor in signature.inputs)
    return InputPlan(tuple(sources), 1 if single else None)


def _columns(tensor: Tensor, dataset: Dataset, options: Options) -> tuple[str, ...]:
    if options.features:
        dataset.require(options.features, "feature column")
        if options.target in options.features:
            raise EvaluationRefused(f"the target {options.target!r} is among the features; a version must not see it")
        return options.features
    if tensor.name in dataset.shapes and tensor.name != options.target:
        return (tensor.name,)
    names = tuple(name for name in dataset.shapes if name != options.target)
    if not names:
        raise DatasetRefused(f"{dataset.file.path} has no column besides the target {options.target!r}")
    return names


def _check_shape(tensor: Tensor, names: tuple[str, ...], dataset: Dataset) -> None:
    shapes = [dataset.shapes[name] for name in names]
    wanted = tensor.shape[1:]
    if all(shape == () for shape in shapes):
        given = () if len(names) == 1 and wanted in ((), (1,), (-1,)) else (len(names),)
        wanted = () if given == () else wanted
    elif len(names) == 1:
        given = shapes[0]
    else:
        raise DatasetRefused(
            f"{dataset.file.path}: input {tensor.name!r} is one tensor, and there is no array of that name; "
            f"the arrays {', '.join(names)} are not one value a row, and can't be put side by side"
        )
    if len(given) != len(wanted) or any(own not in (-1, size) for own, size in zip(wanted, given, strict=True)):
        what = (
            f"{len(names)} columns ({listed(names)})"
            if len(names) > 1
            else f"{', '.join(names)}, of shape {[-1, *given]}"
        )
        raise DatasetRefused(
            f"{dataset.file.path}: input {tensor.name!r} has shape {list(tensor.shape)} and would be made of {what}; "
            "name the columns that it takes as features, or give the data set an array of that shape"
        )


def _tensor(tensor: Tensor, columns: list[np.ndarray]) -> np.ndarray:
    if len(columns) > 1:
        return np.column_stack(columns)
    return columns[0].reshape(-1, 1) if columns[0].ndim == 1 and len(tensor.shape) == 2 else columns[0]
