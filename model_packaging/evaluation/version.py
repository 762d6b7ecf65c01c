"""Evaluates one version from start to end: its server, its answers, its metrics. Runs wherever an engine puts it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from infra.errors import UserError
from model_packaging.errors import AnswerRefused
from model_packaging.evaluation.client import Client
from model_packaging.evaluation.metrics import (
    Certainty,
    ClassScores,
    Measured,
    class_metrics,
    class_scores,
    confusion_matrix,
    label_metrics,
    roc_curves,
    score_metrics,
    value_metrics,
)
from model_packaging.evaluation.objectives import choose_threshold
from model_packaging.evaluation.outputs import Answer
from model_packaging.evaluation.paired import Judged
from model_packaging.evaluation.plan import Plan
from model_packaging.evaluation.results import Evaluation, Failure, Latency, Threshold
from model_packaging.evaluation.server import running_server
from model_packaging.evaluation.targets import encode, split

_DISAGREEMENT = 0.05
"""The share of rows whose label is not their highest score's class from which on a reader is told."""


@dataclass(frozen=True)
class Progress:
    """How far one version is."""

    model: str
    version: str
    stage: Literal["waiting", "starting", "predicting", "measuring", "done", "failed"]
    rows: int = 0
    """That were answered."""
    total: int = 0
    """Rows of the data set."""


Notify = Callable[[Progress], None]


@dataclass(frozen=True)
class Outcome:
    """An evaluation, and what it takes to compare it with others row by row."""

    evaluation: Evaluation
    judged: Judged


@dataclass(frozen=True)
class _Answers:
    """Of all rows, in the data set's order; and what it took to get them."""

    answer: Answer
    latency: Latency | None
    start_seconds: float
    predict_seconds: float


def run_version(plan: Plan, scratch: Path, neighbours: int | None, notify: Notify) -> Outcome | Failure:
    """Evaluates one version, and never raises but for what ends the whole process.

    Args:
        plan: from `plan_all`.
        scratch: an empty folder, for the server's log.
        neighbours: how many other servers of this evaluation may run on the machine meanwhile, if that is known.
        notify: is told how far it is.
    """
    request = plan.request

    def tell(stage: Literal["starting", "predicting", "measuring", "done", "failed"], rows: int = 0) -> None:
        notify(Progress(request.model, request.version, stage, rows, plan.dataset.rows))

    try:
        outcome = _judge(plan, _ask(plan, scratch, neighbours, tell))
    except UserError as error:
        reason = str(error)
    except Exception:
        # It must not take the other versions' results with it.
        reason = f"an error that is not yours to mend:\n{traceback.format_exc()}"
    else:
        tell("done", plan.dataset.rows)
        return outcome
    tell("failed")
    return Failure(model=request.model, version=request.version, reason=reason)


def _ask(plan: Plan, scratch: Path, neighbours: int | None, tell: Callable[..., None]) -> _Answers:
    options = plan.options
    tell("starting")
    with (
        running_server(plan.request, scratch, options.ready_timeout) as server,
        Client(server, plan.request, tuple(tensor for tensor, _ in plan.inputs.sources), plan.roles, options) as client,
    ):
        tell("predicting")
        answered = 0

        def done(rows: int) -> None:
            nonlocal answered
            answered += rows
            tell("predicting", answered)

        started = time.monotonic()
        answers = list(client.predict(plan.inputs.batches(plan.dataset, options.batch_rows), done))
        predict_seconds = time.monotonic() - started
        latency = None
        if options.latency_requests:
            tell("measuring", answered)
            first = next(plan.inputs.batches(plan.dataset, options.batch_rows))
            latency = client.measure_latency(first, neighbours)
    return _Answers(_joined(answers), latency, server.start_seconds, predict_seconds)


def _joined(answers: list[Answer]) -> Answer:
    def joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
        given = [part for part in parts if part is not None]
        if len({part.shape[1:] for part in given}) > 1 or len({part.dtype.kind for part in given}) > 1:
            raise AnswerRefused("the server answered batches of rows in different shapes or kinds")
        return np.concatenate(given) if given else None

    return Answer(
        joined([answer.labels for answer in answers]),
        joined([answer.scores for answer in answers]),
        joined([answer.values for answer in answers]),
    )


def _judge(plan: Plan, answers: _Answers) -> Outcome:
    truth = plan.truth()
    if plan.roles.task == "regression":
        return _judge_values(plan, truth, answers)
    return _judge_labels(plan, truth, answers)


def _judge_values(plan: Plan, truth: np.ndarray, answers: _Answers) -> Outcome:
    answered = answers.answer.values
    assert answered is not None
    measured = value_metrics(truth, answered, _certainty(plan))
    evaluation = _evaluation(plan, answers, measured, rows=len(truth))
    return Outcome(evaluation, Judged(evaluation.name, errors=answered - truth))


def _judge_labels(plan: Plan, truth: np.ndarray, answers: _Answers) -> Outcome:
    by, count, notes = _certainty(plan), len(plan.classes), list[str]()
    scores = _scores(plan, answers.answer)
    answered = scores.answered if scores is not None else None
    if answers.answer.labels is not None:
        labelled = _codes(plan, answers.answer.labels)
        if answered is not None and (differing := float((labelled != answered).mean())) > _DISAGREEMENT:
            notes.append(
                f"the label is not the class of the highest score in {differing:.1%} of the rows; "
                f"check that the scores' columns are in the order {', '.join(map(str, plan.classes))}"
            )
        answered = labelled
    assert answered is not None
    selection, report = split(truth, plan.options)
    threshold = None
    if scores is not None and plan.options.objective is not None:
        threshold = _threshold(plan, truth, scores, selection, report)
        if threshold is None:
            notes.append(f"no threshold meets the objective {plan.options.objective} on {len(selection)} rows")
    truth, answered = truth[report], answered[report]
    measured = label_metrics(truth, answered, count, plan.positive, by)
    roc = ()
    if scores is not None:
        scores = scores.rows(report)
        measured |= score_metrics(truth, scores, plan.positive, by)
        roc = roc_curves(truth, scores, plan.classes, plan.positive)
        if not scores.are_probabilities:
            notes.append("the scores are no probabilities (in [0, 1], summing to 1), so there is no log-loss")
    absent = [label for code, label in enumerate(plan.classes) if not (truth == code).any()]
    if absent:
        notes.append(f"no row is of class {', '.join(map(str, absent))}; the means over classes leave it out")
    evaluation = _evaluation(
        plan,
        answers,
        measured,
        rows=len(report),
        classes=plan.classes,
        positive=None if plan.positive is None else plan.classes[plan.positive],
        confusion=tuple(map(tuple, confusion_matrix(truth, answered, count).tolist())),
        per_class=class_metrics(truth, answered, plan.classes),
        roc=roc,
        threshold=threshold,
        notes=tuple(notes),
    )
    return Outcome(evaluation, Judged(evaluation.name, is_right=answered == truth))


def _threshold(
    plan: Plan, truth: np.ndarray, scores: ClassScores, selection: np.ndarray, report: np.ndarray
) -> Threshold | None:
    objective, positive = plan.options.objective, plan.positive
    assert objective is not None
    assert positive is not None
    column = scores.columns[:, positive]
    choice = choose_threshold(objective, truth[selection] == positive, column[selection])
    if choice is None:
        return None
    decided = np.where(column[report] >= choice.threshold, positive, 1 - positive)
    measured = label_metrics(truth[report], decided, 2, positive, _certainty(plan))
    return Threshold(
        objective=str(objective),
        positive=plan.classes[positive],
        value=choice.threshold,
        objective_value=choice.value,
        selection_rows=len(selection),
        same_rows=plan.options.selection_share == 0,
        metrics=measured.metrics,
        intervals=measured.intervals,
        confusion=tuple(map(tuple, confusion_matrix(truth[report], decided, 2).tolist())),
    )


def _scores(plan: Plan, answer: Answer) -> ClassScores | None:
    if answer.scores is None:
        return None
    width = 2 if answer.scores.ndim == 1 else answer.scores.shape[1]
    if width != len(plan.classes):
        raise AnswerRefused(
            f"the scores tell {width} classes apart, and the data has {', '.join(map(repr, plan.classes))}; "
            "state the classes in the order of the scores"
        )
    return class_scores(answer.scores, plan.positive)


def _codes(plan: Plan, labels: np.ndarray) -> np.ndarray:
    """Labels as answered, as codes; of numbers where the classes are text, they are positions in the classes stated."""
    if labels.dtype.kind == "i" and isinstance(plan.classes[0], str):
        if not plan.options.classes:
            raise AnswerRefused(
                f"labels are answered as numbers such as {labels[0]}, and the data has text such as "
                f"{plan.classes[0]!r}; state the classes in the order of the numbers"
            )
        codes = np.where((labels >= 0) & (labels < len(plan.classes)), labels, -1).astype(np.int32)
    else:
        codes = encode(labels, plan.classes)
    if (codes < 0).any():
        raise AnswerRefused(
            f"the label {labels[codes < 0][0].item()!r} was answered, which is none of the classes "
            f"{', '.join(map(repr, plan.classes))}; state all classes that the version knows"
        )
    return codes


def _certainty(plan: Plan) -> Certainty:
    return Certainty(plan.options.confidence, plan.options.seed)


def _evaluation(plan: Plan, answers: _Answers, measured: Measured, **found: object) -> Evaluation:
    return Evaluation.model_validate(
        {
            "model": plan.request.model,
            "version": plan.request.version,
            "digest": plan.request.digest,
            "dataset": plan.dataset.reference,
            "task": plan.roles.task,
            "metrics": measured.metrics,
            "intervals": measured.intervals,
            "confidence": plan.options.confidence,
            "latency": answers.latency,
            "start_seconds": answers.start_seconds,
            "predict_seconds": answers.predict_seconds,
            **found,
        }
    )
