"""The metrics that every mode provides: names, units and labels, written once.

Names are `level:metric:operation`. A window at the end of a name says over how long a rate, ratio or percentile goes.
A metric without data is absent: nothing here is ever NaN, and a version without requests has no error ratio, not one
of 0. It is absent too as soon as the data plane is not scraped any longer, though its window still holds older samples.

Counters of requests are absent until the first one, whatever weight a version has, and then start with what there were
until they were first read: whoever has seen the metrics without them may take that for growth from 0, and increase()
does not.

An error is a request that was answered 5xx (or with the like in gRPC), or broken off, or not answered. A version's
requests are those of its share, and copies of requests where it is a shadow. One that another version had to answer in
its place is an error of the version, and none of the endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["1/s", "ratio", "ms", "requests", "s", "cores", "bytes", "replicas"]

VERSION_LABELS = ("team", "model", "version")
ENDPOINT_LABELS = ("team", "model")
NODE_LABELS = ("instance",)
GPU_LABELS = ("instance", "gpu")

WINDOWS = {"1m": 60, "5m": 300}
"""The windows of rates, ratios and percentiles, by the name they have in metrics; in seconds."""

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Metric:
    """One recorded series a combination of its labels."""

    name: str
    unit: Unit
    labels: tuple[str, ...]
    description: str


def _of_requests(level: str, labels: tuple[str, ...], whose: str) -> list[Metric]:
    metrics: list[Metric] = []
    for window in WINDOWS:
        metrics += [
            Metric(f"{level}:requests:rate{window}", "1/s", labels, f"Requests {whose}, over {window}."),
            Metric(f"{level}:errors:rate{window}", "1/s", labels, f"Errors {whose}, over {window}."),
            Metric(
                f"{level}:errors:ratio{window}",
                "ratio",
                labels,
                f"Errors among the requests {whose}, 0 to 1, over {window}; absent without requests.",
            ),
        ]
        metrics += [
            Metric(
                f"{level}:latency_ms:{percentile}_{window}",
                "ms",
                labels,
                f"{percentile} of the time from request to answer's end, failed ones too, over {window}; "
                "absent without requests.",
            )
            for percentile in PERCENTILES
        ]
    in_flight = Metric(
        f"{level}:in_flight:sum",
        "requests",
        labels,
        f"Requests {whose} that servers are at now; their mean over "
        "1m, of those that have ended, where the data plane has no gauge.",
    )
    return [*metrics, in_flight]


VERSION_METRICS: tuple[Metric, ...] = (
    Metric(
        "version:requests:total",
        "requests",
        (*VERSION_LABELS, "source"),
        "Counter of the version's requests; take increase() of it, summed over its other labels. Source is 'client', "
        "or 'shadow' for copies.",
    ),
    Metric(
        "version:errors:total",
        "requests",
        (*VERSION_LABELS, "source"),
        "Counter of the errors among version:requests:total, 0 from the first request on.",
    ),
    Metric(
        "version:latency_ms:bucket",
        "requests",
        (*VERSION_LABELS, "source", "le"),
        "Counter of the requests among version:requests:total that took at most `le` milliseconds from request to "
        "answer's end, failed ones too; le '+Inf' has them all. Left out are those that another version answered in "
        "its place, and those that no server could be asked for.",
    ),
    *_of_requests("version", VERSION_LABELS, "of the version"),
    Metric(
        "version:cpu_seconds:total",
        "s",
        VERSION_LABELS,
        "Counter of the processor time that its servers took; summed over its other labels.",
    ),
    Metric("version:cpu:cores", "cores", VERSION_LABELS, "Processor time that its servers take, over 1m."),
    Metric("version:memory:bytes", "bytes", VERSION_LABELS, "Resident memory of its servers."),
    Metric("version:replicas:desired", "replicas", VERSION_LABELS, "Replicas that it is to have."),
    Metric("version:replicas:ready", "replicas", VERSION_LABELS, "Replicas that may be sent requests."),
)

ENDPOINT_METRICS: tuple[Metric, ...] = (
    Metric(
        "endpoint:errors:total",
        "requests",
        ENDPOINT_LABELS,
        "Counter of the endpoint's errors, 0 from the first request on; summed over its other labels.",
    ),
    *_of_requests("endpoint", ENDPOINT_LABELS, "of the endpoint's clients"),
)

NODE_METRICS: tuple[Metric, ...] = (
    Metric("node:cpu:ratio", "ratio", NODE_LABELS, "Processor time in use, of all cores, over 1m."),
    Metric("node:memory:ratio", "ratio", NODE_LABELS, "Memory that is not available to a new process."),
    Metric("node:disk:ratio", "ratio", NODE_LABELS, "Space in use where the node keeps its files."),
    Metric("node:gpu:ratio", "ratio", GPU_LABELS, "Time in which the GPU was at work; absent without one."),
    Metric("node:gpu_memory:ratio", "ratio", GPU_LABELS, "Memory in use on the GPU; absent without one."),
)

METRICS: tuple[Metric, ...] = (*VERSION_METRICS, *ENDPOINT_METRICS, *NODE_METRICS)
