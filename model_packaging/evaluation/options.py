"""What an evaluation is asked: which versions, and how their answers are to be read and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from infra.settings.values import Digest, Seconds, Settings
from infra.settings.version import ServerSettings
from model_packaging.evaluation.objectives import Objective
from model_packaging.manifest import VersionName
from model_packaging.package import Package, Text

Task = Literal["classification", "regression"]
Label = int | str


def _objective(value: object) -> object:
    return Objective.parse(value) if isinstance(value, str) else value


class EvaluationRequest(VersionName):
    """One version to evaluate."""

    folder: Path
    """Its artifact, unpacked."""
    package: Package
    server: ServerSettings | None = None
    """What serves it in production; left out, what its package names, or MLServer."""
    digest: Digest | None = None
    """Of its artifact, for the result to name."""

    @property
    def serving(self) -> ServerSettings:
        return self.package.serving(self.server)


class Options(Settings):
    """How a data set is read, and what is measured on it."""

    target: Text
    """The column, or array, that holds the true label or value of each row."""
    features: tuple[Text, ...] = ()
    """The columns of a version's single input tensor, in its order; left out, every column but the target."""
    task: Task | None = None
    """Left out, what the signature's outputs say."""
    labels: Text | None = None
    """The output that holds one label a row; left out, the signature's only output of integers, booleans or text."""
    scores: Text | None = None
    """The output that holds a score for each class; left out, the signature's only output that has its shape."""
    values: Text | None = None
    """A regressor's output; left out, the signature's only one with one number a row."""
    classes: tuple[Label, ...] = ()
    """The labels in the order of the scores' columns; left out, the data's own in ascending order."""
    positive: Label | None = None
    """Of two classes, the one that precision, recall, F1 and the threshold are about; left out, the second."""
    objective: Annotated[Objective, BeforeValidator(_objective), PlainSerializer(str)] | None = None
    """Choose the decision threshold for this: see `Objective.parse`."""
    selection_share: float = Field(default=0.5, ge=0, lt=1)
    """The share of the rows that choose the threshold, and are left out of all metrics; 0: the same rows do both."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals around the metrics."""
    seed: int = Field(default=0, ge=0)
    """Of the split and of the bootstrap: the same seed gives the same results."""
    batch_rows: int = Field(default=256, ge=1, le=100_000)
    """Rows a request."""
    concurrency: int = Field(default=1, ge=1, le=256)
    """Requests in flight to one server."""
    latency_requests: int = Field(default=200, ge=0)
    """Requests of one row each whose latency is measured, one after another; 0: none."""
    ready_timeout: Seconds = 120.0
    request_timeout: Seconds = 60.0

    @model_validator(mode="after")
    def _classes_are_two_or_more(self) -> Options:
        if self.classes and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise ValueError(f"classes are two or more different labels, but given are {list(self.classes)}")
        return self
