"""What an evaluation found, as documents that can be kept as JSON."""

from __future__ import annotations

from typing import Literal

from infra.settings.values import Settings
from model_packaging.evaluation.options import Label, Task
from model_packaging.manifest import VersionName


class DatasetReference(Settings):
    """The data that versions were judged on."""

    path: str
    digest: str
    """SHA-256 of the file."""
    rows: int


class Interval(Settings):
    """A confidence interval of a metric."""

    low: float
    high: float
    method: str


class ClassMetrics(Settings):
    """How well one class is told from the others."""

    label: Label
    rows: int
    precision: float
    recall: float
    f1: float


class RocCurve(Settings):
    """Points of a receiver operating characteristic from (0, 0) to (1, 1), thinned to what a plot can show."""

    label: Label
    """The class that counts as positive."""
    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]
    area: float


class Threshold(Settings):
    """The decision threshold that was chosen, and what it does on the rows that all metrics are about."""

    objective: str
    positive: Label
    value: float
    """A row is called positive where its score is at least this."""
    objective_value: float
    """On the rows that the threshold was chosen on; of a cost, the mean cost a row."""
    selection_rows: int
    same_rows: bool
    """Whether the metrics are of the very rows that the threshold was chosen on, which flatters them."""
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    confusion: tuple[tuple[int, ...], ...]


class Latency(Settings):
    """Milliseconds from sending a request of one row to having read its whole answer, over loopback HTTP.

    One request at a time over one connection that stays open, after the data set had warmed the server up. JSON was
    encoded before; the answer's is not decoded. For latencies to be compared, evaluate one version at a time.
    """

    requests: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    neighbours: int | None
    """Other servers of the same evaluation that may have been at work on the machine meanwhile; None: not known."""


class Evaluation(VersionName):
    """How one version did."""

    digest: str | None
    """Of its artifact."""
    dataset: DatasetReference
    task: Task
    rows: int
    """That the metrics are about: all, or those that the threshold was not chosen on."""
    metrics: dict[str, float]
    """Of the answers as served: what the server's labels, or the highest scores, say."""
    intervals: dict[str, Interval]
    confidence: float
    classes: tuple[Label, ...] = ()
    positive: Label | None = None
    """Of two classes."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Rows by true class, columns by the answered one, in the order of `classes`."""
    per_class: tuple[ClassMetrics, ...] = ()
    roc: tuple[RocCurve, ...] = ()
    threshold: Threshold | None = None
    latency: Latency | None = None
    start_seconds: float
    """Until the server was ready."""
    predict_seconds: float
    """For all rows of the data set."""
    notes: tuple[str, ...] = ()
    """What a reader must know about the numbers."""

    @property
    def name(self) -> str:
        return f"{self.model}:{self.version}"

    def flat_metrics(self) -> dict[str, float]:
        """Every number by one name each, as the catalogue keeps them."""
        flat = dict(self.metrics)
        if self.threshold is not None:
            flat["threshold"] = self.threshold.value
            flat |= {f"{name}_at_threshold": value for name, value in self.threshold.metrics.items()}
        if self.latency is not None:
            flat |= {f"latency_{point}_ms": getattr(self.latency, f"{point}_ms") for point in ("p50", "p95", "p99")}
        return flat


class Failure(VersionName):
    """Why a version has no evaluation."""

    reason: str

    @property
    def name(self) -> str:
        return f"{self.model}:{self.version}"


class Comparison(Settings):
    """A version against the baseline, row by row."""

    baseline: str
    version: str
    metric: Literal["accuracy", "mae"]
    rows: int
    difference: float
    """The version's metric less the baseline's."""
    interval: Interval
    only_baseline_right: int | None = None
    """Rows; of classifiers."""
    only_version_right: int | None = None
    test: str
    p_value: float
    """How often chance alone would make the two differ at least as much, were they equally good."""
    p_value_adjusted: float
    """By Holm's method, for the number of comparisons in this run."""


class EvaluationRun(Settings):
    """All versions of one run, in the order in which they were asked for."""

    dataset: DatasetReference
    evaluations: tuple[Evaluation, ...]
    failures: tuple[Failure, ...]
    comparisons: tuple[Comparison, ...]
    """Of every other version with the first that was evaluated."""
