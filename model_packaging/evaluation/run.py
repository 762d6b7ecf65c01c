"""Evaluates versions on a held-out data set: the one function that commands call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_packaging.errors import EvaluationRefused
from model_packaging.evaluation.dataset import open_dataset
from model_packaging.evaluation.engines.engine import Engine
from model_packaging.evaluation.engines.local import LocalEngine
from model_packaging.evaluation.metrics import Certainty
from model_packaging.evaluation.options import EvaluationRequest, Options
from model_packaging.evaluation.paired import compare
from model_packaging.evaluation.plan import plan_all
from model_packaging.evaluation.results import EvaluationRun, Failure
from model_packaging.evaluation.version import Notify, Outcome


def evaluate(
    requests: Sequence[EvaluationRequest],
    dataset: Path,
    options: Options,
    engine: Engine | None = None,
    notify: Notify = lambda _: None,
) -> EvaluationRun:
    """Evaluates every version on the rows of `dataset`, each through its own server.

    Args:
        requests: the versions. The first that is evaluated is what the others are compared with.
        dataset: a `.csv`, `.parquet` or `.npz` file.
        options: how it is read, and what is measured.
        engine: where; left out, one version at a time on this machine.
        notify: is told of progress, in this process.

    Returns:
        What was found. A version whose server or answers fail is among its `failures`, and harms no other.

    Raises:
        DatasetRefused, EvaluationRefused: before any server starts.
        EngineMissing: the engine can't run here.
    """
    if not requests:
        raise EvaluationRefused("no version is named; name at least one")
    names = [f"{request.model}:{request.version}" for request in requests]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationRefused(f"{twice[0]} is named twice; name each version once")
    data = open_dataset(dataset)
    resolved = [request.model_copy(update={"folder": request.folder.resolve()}) for request in requests]
    found = (engine or LocalEngine()).run(plan_all(resolved, data, options), notify)
    outcomes = [one for one in found if isinstance(one, Outcome)]
    tasks = {outcome.evaluation.task for outcome in outcomes}
    # A regressor and a classifier of one data set have no metric in common.
    comparable = [outcome.judged for outcome in outcomes] if len(tasks) == 1 else []
    return EvaluationRun(
        dataset=data.reference,
        evaluations=tuple(outcome.evaluation for outcome in outcomes),
        failures=tuple(one for one in found if isinstance(one, Failure)),
        comparisons=compare(comparable, Certainty(options.confidence, options.seed)),
    )
