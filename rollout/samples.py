"""What versions did between two looks: counts, read from the metrics of any mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counts:
    """Ended requests of one version between two looks."""

    requests: int = 0
    errors: int = 0
    latency_ms: Mapping[float, int] = field(default_factory=dict[float, int])
    """Requests that took at most so many milliseconds, by upper bound (cumulative; `inf` has them all)."""
    cpu_seconds: float = 0.0
    """Processor time that its servers took; 0 where nothing says."""


@dataclass(frozen=True)
class Look:
    """What was seen since the look before it."""

    at: float
    """Seconds since the epoch."""
    seconds: float
    """Since the look before."""
    counts: Mapping[str, Counts] = field(default_factory=dict[str, Counts])
    """By version. A version without requests has zeros; one that nothing is known of is absent."""
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """By gate of metric `promql`, by version: the query's value over the look's own time."""
    weights: Mapping[str, int] = field(default_factory=dict[str, int])
    """As the data plane had them."""
    problem: str = ""
    """Why there is nothing to see, if so: no data, a dead metrics server, a stale series. Never a pass."""
