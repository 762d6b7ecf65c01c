"""Builds the Prometheus recording rules that make the metrics of the catalogue. Pure.

A data plane is described by what it counts (`DataPlane`); everything derived from that is the same for all. Counters
are first brought into one form, in which errors are counted from 0 as soon as there are requests. Most data planes
have no error counter before the first error, and a counter that appears with the value 7 has not grown, for Prometheus.

Reference: https://prometheus.io/docs/prometheus/latest/configuration/recording_rules/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from infra.monitoring.catalogue import ENDPOINT_LABELS, NODE_LABELS, PERCENTILES, VERSION_LABELS, WINDOWS
from infra.single_node.machine.stats import ERRORS, LATENCY, SHADOW, VARIANT

Rule = dict[str, Any]


@dataclass(frozen=True)
class DataPlane:
    """What a data plane counts, as PromQL. Counters keep the label `instance` of whoever counted."""

    requests: str
    """Counter by team, model, version: requests of a version's share."""
    errors: str
    """Counter by team, model, version: those that the version did not answer well."""
    endpoint_errors: str
    """Counter by team, model: those that failed for the client."""
    buckets: str
    """Selector of a histogram by team, model, version: milliseconds that requests took."""
    own: str
    """Follows `buckets`, or a rate of them, to leave out what other versions answered; may be empty."""
    shadow_requests: str
    """Counter by team, model, version: copies of requests."""
    shadow_errors: str
    """Counter by team, model, version: those that the version did not answer well."""
    shadow_buckets: str
    """Selector of a histogram by team, model, version: milliseconds that the copies took."""
    in_flight: str
    """Gauge by team, model, version: requests that servers are at."""


def _sum(labels: Sequence[str], vector: str) -> str:
    return f"sum by ({', '.join(labels)}) ({vector})"


_COUNTED = (*VERSION_LABELS, "instance")
# Paths without an endpoint are the router's own to answer, and have no version.
_ENDED = f'{LATENCY}_count{{version!=""}}'
_SERIES = f"on ({', '.join(VERSION_LABELS)}, answered_by)"
# One element for each version, labelled as the series of what it answered itself.
_OWN = f'label_replace(group by ({", ".join(VERSION_LABELS)}) ({_ENDED}), "answered_by", "$1", "version", "(.+)")'
_COPIES = f'role="{SHADOW}"'

ROUTER = DataPlane(
    requests=_sum(_COUNTED, _ENDED),
    errors=_sum(_COUNTED, f"({ERRORS} and {_SERIES} {_OWN}) or ({_ENDED} unless {_SERIES} {_OWN})"),
    endpoint_errors=_sum((*ENDPOINT_LABELS, "instance"), f'{ERRORS}{{version!=""}}'),
    buckets=f'{LATENCY}_bucket{{version!=""}}',
    own=f"and {_SERIES} {_OWN}",
    shadow_requests=_sum((*_COUNTED, "protocol"), f"envoy_cluster_upstream_rq_completed{{{_COPIES}}}"),
    shadow_errors=_sum(
        (*_COUNTED, "protocol"), f'envoy_cluster_upstream_rq_xx{{{_COPIES}, envoy_response_code_class="5"}}'
    ),
    shadow_buckets=f"envoy_cluster_upstream_rq_time_bucket{{{_COPIES}}}",
    in_flight=f'envoy_cluster_upstream_rq_active{{role="{VARIANT}"}}',
)
"""The single node's Envoy, with the statistics of `infra/single_node/machine/stats.py`."""


def recording_rules(data_plane: DataPlane = ROUTER) -> dict[str, Any]:
    """A Prometheus rule file, as a document. Its groups are evaluated at Prometheus's own interval."""
    requests = [*_counters(data_plane), *_rates(data_plane), *_latencies(data_plane), *_in_flight(data_plane)]
    return {
        "groups": [{"name": "requests", "rules": requests}, {"name": "resources", "rules": [*_resources()]}],
    }


def rules_text(data_plane: DataPlane = ROUTER) -> str:
    """The rule file's text, in YAML."""
    return yaml.safe_dump(recording_rules(data_plane), sort_keys=False, width=1000)


def _counters(plane: DataPlane) -> Iterator[Rule]:
    # Never one sum of both sources: where a shadow ends, its counter goes, and the sum would seem to start anew.
    for source, requests, errors in (
        ("client", plane.requests, plane.errors),
        ("shadow", plane.shadow_requests, plane.shadow_errors),
    ):
        yield _rule("version:requests:total", requests, source=source)
        yield _rule("version:errors:total", f"{errors} or 0 * {requests}", source=source)
    for source, labels, buckets in (
        ("client", _COUNTED, f"{plane.buckets} {plane.own}"),
        ("shadow", (*_COUNTED, "protocol"), plane.shadow_buckets),
    ):
        yield _rule("version:latency_ms:bucket", _sum((*labels, "le"), buckets), source=source)
    none = f"0 * {_sum((*ENDPOINT_LABELS, 'instance'), plane.requests)}"
    yield _rule("endpoint:errors:total", f"{plane.endpoint_errors} or {none}")


def _rates(plane: DataPlane) -> Iterator[Rule]:
    for window in WINDOWS:
        for level, labels, requests, errors in (
            ("version", VERSION_LABELS, "version:requests:total", "version:errors:total"),
            ("endpoint", ENDPOINT_LABELS, 'version:requests:total{source="client"}', "endpoint:errors:total"),
        ):
            yield _rule(f"{level}:requests:rate{window}", _sum(labels, _fresh_rate(requests, window)))
            yield _rule(f"{level}:errors:rate{window}", _sum(labels, _fresh_rate(errors, window)))
            yield _rule(
                f"{level}:errors:ratio{window}",
                # Of two counters read one after the other, the errors may be a request ahead.
                f"clamp_max({level}:errors:rate{window} / ({level}:requests:rate{window} > 0), 1)",
            )


def _latencies(plane: DataPlane) -> Iterator[Rule]:
    for window in WINDOWS:
        clients, copies = _fresh_rate(plane.buckets, window), _fresh_rate(plane.shadow_buckets, window)
        for level, labels, rates in (
            ("version", VERSION_LABELS, f"({clients} {plane.own}) or {copies}"),
            ("endpoint", ENDPOINT_LABELS, clients),
        ):
            per_bucket = _sum((*labels, "le"), rates)
            for percentile, quantile in PERCENTILES.items():
                # A percentile of no requests is NaN, and so not >= 0.
                expression = f"histogram_quantile({quantile}, {per_bucket}) >= 0"
                yield _rule(f"{level}:latency_ms:{percentile}_{window}", expression)


def _in_flight(plane: DataPlane) -> Iterator[Rule]:
    yield _rule("version:in_flight:sum", _sum(VERSION_LABELS, plane.in_flight))
    yield _rule("endpoint:in_flight:sum", _sum(ENDPOINT_LABELS, plane.in_flight))


def _resources() -> Iterator[Rule]:
    """Of the node's exporter, `infra/single_node/machine/exporter.py`."""
    idle = _sum(NODE_LABELS, _fresh_rate('lepton_node_cpu_seconds_total{mode=~"idle|iowait"}', "1m"))
    every = _sum(NODE_LABELS, _fresh_rate("lepton_node_cpu_seconds_total", "1m"))
    yield _rule("node:cpu:ratio", f"clamp_min(1 - {idle} / ({every} > 0), 0)")
    for what, labels in (("memory", NODE_LABELS), ("disk", NODE_LABELS), ("gpu_memory", (*NODE_LABELS, "gpu"))):
        used = _sum(labels, f'lepton_node_{what}_bytes{{state="used"}}')
        yield _rule(f"node:{what}:ratio", f"{used} / {_sum(labels, f'lepton_node_{what}_bytes')}")
    yield _rule("node:gpu:ratio", _sum((*NODE_LABELS, "gpu"), "lepton_node_gpu_utilisation_ratio"))
    yield _rule("version:cpu_seconds:total", _sum(_COUNTED, "lepton_version_cpu_seconds_total"))
    yield _rule("version:cpu:cores", _sum(VERSION_LABELS, _fresh_rate("lepton_version_cpu_seconds_total", "1m")))
    yield _rule("version:memory:bytes", _sum(VERSION_LABELS, "lepton_version_memory_bytes"))


def _fresh_rate(counter: str, window: str) -> str:
    """A rate that ends with its counter, not a window later: a dead source leaves no figures that look alive."""
    return f"(rate({counter}[{window}]) and {counter})"


def _rule(record: str, expression: str, **labels: str) -> Rule:
    rule: Rule = {"record": record, "expr": expression}
    return rule | {"labels": labels} if labels else rule
