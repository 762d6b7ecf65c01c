"""Builds the Prometheus recording rules that make the metrics of the catalogue. Pure.

A data plane is described by what it counts (`DataPlane`); everything derived from that is the same for all. Counters
are first brought into one form, in which errors are counted from 0 as soon as there are requests. Most data planes
have no error counter before the first error, and a counter that appears with the value 7 has not grown, for Prometheus.

Reference: https://prometheus.io/docs/prometheus/latest/configuration/recording_rules/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from infra.monitoring.catalogue import ENDPOINT_LABELS, PERCENTILES, VERSION_LABELS, WINDOWS
from infra.monitoring.data_plane import CLIENT, SHADOW, DataPlane
from infra.monitoring.promql import fresh_rate, sum_by

Rule = dict[str, Any]


def recording_rules(data_plane: DataPlane) -> dict[str, Any]:
    """A Prometheus rule file, as a document. Its groups are evaluated at Prometheus's own interval."""
    requests = [*_counters(data_plane), *_rates(), *_latencies(data_plane), *_in_flight(data_plane)]
    return {
        "groups": [{"name": "requests", "rules": requests}, {"name": "resources", "rules": [*_resources(data_plane)]}],
    }


def rules_text(data_plane: DataPlane) -> str:
    """The rule file's text, in YAML."""
    return yaml.safe_dump(recording_rules(data_plane), sort_keys=False, width=1000)


def _counters(plane: DataPlane) -> Iterator[Rule]:
    # Never one sum of both sources: where a shadow ends, its counter goes, and the sum would seem to start anew.
    sources = [(CLIENT, plane.requests, plane.errors, plane.buckets)]
    if plane.copies is not None:
        sources.append((SHADOW, plane.copies.requests, plane.copies.errors, plane.copies.buckets))
    for source, requests, errors, _ in sources:
        yield _rule("version:requests:total", requests, source=source)
        yield _rule("version:errors:total", f"{errors} or 0 * {requests}", source=source)
    for source, _, _, buckets in sources:
        yield _rule("version:latency_ms:bucket", buckets, source=source)
    none = f"0 * {sum_by((*ENDPOINT_LABELS, 'instance'), plane.requests)}"
    yield _rule("endpoint:errors:total", f"{plane.endpoint_errors} or {none}")


def _rates() -> Iterator[Rule]:
    for window in WINDOWS:
        for level, labels, requests, errors in (
            ("version", VERSION_LABELS, "version:requests:total", "version:errors:total"),
            ("endpoint", ENDPOINT_LABELS, f'version:requests:total{{source="{CLIENT}"}}', "endpoint:errors:total"),
        ):
            yield _rule(f"{level}:requests:rate{window}", sum_by(labels, fresh_rate(requests, window)))
            yield _rule(f"{level}:errors:rate{window}", sum_by(labels, fresh_rate(errors, window)))
            yield _rule(
                f"{level}:errors:ratio{window}",
                # Of two counters read one after the other, the errors may be a request ahead.
                f"clamp_max({level}:errors:rate{window} / ({level}:requests:rate{window} > 0), 1)",
            )


def _latencies(plane: DataPlane) -> Iterator[Rule]:
    for window in WINDOWS:
        for level, labels, rates in (
            ("version", VERSION_LABELS, plane.version_latency(window)),
            ("endpoint", ENDPOINT_LABELS, plane.endpoint_latency(window)),
        ):
            per_bucket = sum_by((*labels, "le"), rates)
            for percentile, quantile in PERCENTILES.items():
                # A percentile of no requests is NaN, and so not >= 0.
                expression = f"histogram_quantile({quantile}, {per_bucket}) >= 0"
                yield _rule(f"{level}:latency_ms:{percentile}_{window}", expression)


def _in_flight(plane: DataPlane) -> Iterator[Rule]:
    yield _rule("version:in_flight:sum", sum_by(VERSION_LABELS, plane.in_flight))
    yield _rule("endpoint:in_flight:sum", sum_by(ENDPOINT_LABELS, plane.in_flight))


def _resources(plane: DataPlane) -> Iterator[Rule]:
    used = plane.resources
    yield _rule("node:cpu:ratio", used.node_cpu_ratio)
    yield _rule("node:memory:ratio", used.node_memory_ratio)
    yield _rule("node:disk:ratio", used.node_disk_ratio)
    yield _rule("node:gpu_memory:ratio", used.node_gpu_memory_ratio)
    yield _rule("node:gpu:ratio", used.node_gpu_ratio)
    yield _rule("version:cpu_seconds:total", used.version_cpu_seconds)
    yield _rule("version:cpu:cores", used.version_cpu_cores)
    yield _rule("version:memory:bytes", used.version_memory_bytes)
    yield _rule("version:replicas:desired", used.replicas_desired)
    yield _rule("version:replicas:ready", used.replicas_ready)


def _rule(record: str, expression: str, **labels: str) -> Rule:
    rule: Rule = {"record": record, "expr": expression}
    return rule | {"labels": labels} if labels else rule
