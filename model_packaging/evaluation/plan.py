"""What evaluating one version takes, found and checked against the data before any server starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.errors import UserError
from model_packaging.errors import EvaluationRefused
from model_packaging.evaluation.dataset import Dataset
from model_packaging.evaluation.inputs import InputPlan, plan_inputs
from model_packaging.evaluation.options import EvaluationRequest, Label, Options
from model_packaging.evaluation.outputs import Roles, find_roles
from model_packaging.evaluation.targets import (
    as_labels,
    as_values,
    encode,
    positive_code,
    resolve_classes,
    split,
)


@dataclass(frozen=True)
class Plan:
    """How one version's requests are made and its answers read. Can be sent to another process."""

    request: EvaluationRequest
    dataset: Dataset
    options: Options
    inputs: InputPlan
    roles: Roles
    classes: tuple[Label, ...]
    """In the order of the scores; of a classifier."""
    positive: int | None
    """Position in `classes`, of two."""

    def truth(self) -> np.ndarray:
        """Codes of the classes, or values, of shape (rows,)."""
        target = self.dataset.target(self.options.target)
        what = _what(self.dataset, self.options)
        if self.roles.task == "regression":
            return as_values(target, what)
        return encode(as_labels(target, what), self.classes)


def plan(request: EvaluationRequest, dataset: Dataset, options: Options, target: np.ndarray) -> Plan:
    """Plans one version's evaluation.

    Raises:
        EvaluationRefused: the version's signature or server, or an option, does not allow it.
        DatasetRefused: the data set does not have what the version takes.
    """
    signature = request.package.signature
    if signature is None:
        raise EvaluationRefused(
            "its package has no signature, by which columns become input tensors; add one to package.yaml"
        )
    if request.serving.protocol != "oip-v2":
        raise EvaluationRefused(
            f"its server speaks {request.serving.protocol!r}; labels and values come by the protocol 'oip-v2' alone"
        )
    if not request.folder.is_dir():
        raise EvaluationRefused(f"{request.folder} is no folder; unpack the version's artifact there")
    inputs = plan_inputs(signature, dataset, options)
    roles = find_roles(signature, options, target.dtype.kind)
    what = _what(dataset, options)
    if roles.task == "regression":
        as_values(target, what)
        if options.objective is not None:
            raise EvaluationRefused(f"objective {options.objective} chooses between two classes; a regressor has none")
        return Plan(request, dataset, options, inputs, roles, (), None)
    labels = as_labels(target, what)
    classes = resolve_classes(labels, roles.width, options, what)
    positive = positive_code(classes, options)
    if options.objective is not None:
        if positive is None:
            raise EvaluationRefused(
                f"objective {options.objective} chooses between two classes; here are {len(classes)}"
            )
        if roles.scores is None:
            raise EvaluationRefused(
                f"objective {options.objective} needs scores to set a threshold on, and no output holds them; "
                "state which does"
            )
        split(encode(labels, classes), options)
    return Plan(request, dataset, options, inputs, roles, classes, positive)


def plan_all(requests: list[EvaluationRequest], dataset: Dataset, options: Options) -> list[Plan]:
    """Plans every version, and reads the whole data set once for each set of inputs among them.

    Raises:
        EvaluationRefused, DatasetRefused: as `plan`, naming the version; or a value of the data can't be sent.
    """
    target = dataset.target(options.target)
    plans: list[Plan] = []
    for request in requests:
        try:
            plans.append(plan(request, dataset, options, target))
        except UserError as error:
            raise type(error)(f"{request.model}:{request.version}: {error}") from error
    for inputs in {found.inputs for found in plans}:
        for _ in inputs.batches(dataset, options.batch_rows):
            pass
    return plans


def _what(dataset: Dataset, options: Options) -> str:
    return f"{dataset.file.path}: target {options.target!r}"
