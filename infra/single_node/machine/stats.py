"""What the router counts for each model version: its clusters' statistics by name and label, and its requests.

Envoy writes a statistic as `cluster.NAME.upstream_rq_total` and finds labels in it by regular expressions. Its own
expression takes a cluster's name to end at the first dot, which would cut `1.0.0` short and put the rest into the
metric's name. Here every part of the name ends with a bar, which no team, model or version can hold.

A failover cluster counts answers as its own, whichever version gave them, so clusters' statistics can't say how a
version does behind one. Requests are therefore counted where they end, by who was drawn and who answered: by the stats
access logger (Envoy 1.39 or newer).

References:
https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/metrics/v3/stats.proto
https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/extensions/access_loggers/stats/v3/stats.proto
"""

from __future__ import annotations

from typing import Any

VARIANT = "variant"
"""Role of a version's own cluster: the servers that answer for it. In-flight requests are counted here."""
FAILOVER = "failover"
"""Role of a cluster that tries a version's servers, then the baseline's."""
SHADOW = "shadow"
"""Role of a cluster that gets copies of requests. These end nowhere, so only its own statistics count them: it is one
of its own (an aggregate of the version's VARIANT cluster), so that they stay apart from requests with a client."""

LABELS = ("role", "protocol", "team", "model", "version")
"""Labels of each cluster statistic, in the order in which a cluster's name holds their values."""

METADATA = "lepton"
"""Namespace of what this project writes into Envoy's metadata."""

LATENCY = "envoy_lepton_latency_ms"
"""Histogram of ended requests: milliseconds from the request to its answer's end, answered or not.

Labels: `team`, `model`, `version`, whose share the request was, and `answered_by`, the version whose server was last
asked: not the same behind a failover, and empty where there was no server to ask."""
ERRORS = "envoy_lepton_errors"
"""Counter, with the labels of LATENCY: requests answered 5xx (or the like in gRPC), broken off, or not answered at all.
There is no series until the first."""

FLUSH_INTERVAL = "1s"
"""The bootstrap's `stats_flush_interval`: histograms are shown as of the last flush."""

# A step is at most a half in the range of usual answers: a percentile lies between two bounds that are not far apart.
BUCKETS_MS = (
    0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500,
    600, 800, 1000, 1250, 1500, 2000, 2500, 3000, 4000, 5000, 7500, 10000, 15000, 20000, 30000, 60000, 120000, 300000,
    600000,
)  # fmt: skip

# Those of Envoy's own tags that the statistics of an HTTP router have.
_OWN_TAGS = (
    "envoy.response_code",
    "envoy.response_code_class",
    "envoy.http_conn_manager_prefix",
    "envoy.listener_address",
    "envoy.rds_route_config",
    "envoy.virtual_host",
    "envoy.worker_id",
)


def cluster_name(role: str, team: str, model: str, version: str, protocol: str = "http") -> str:
    """Names a cluster so that its statistics carry the LABELS, e.g. `variant|http|diagnostics|tumour|1.0.0|`.

    A version that speaks gRPC too has a second cluster, with protocol `grpc` and the same role: one label apart, so
    that the two are never one series, and a sum over the role counts both.

    Raises:
        ValueError: where a value could not be told from its neighbours.
    """
    values = (role, protocol, team, model, version)
    for label, value in zip(LABELS, values, strict=True):
        if not value or "|" in value or ":" in value:
            # Envoy replaces colons in statistics' names.
            raise ValueError(f"a cluster's {label} is not empty and holds no '|' or ':', given {value!r}")
    return "".join(f"{value}|" for value in values)


def cluster_metadata(team: str, model: str, version: str) -> dict[str, Any]:
    """The `metadata` of every cluster of a version, whatever its role: whose share its requests are.

    Its endpoints say in theirs who answers: key `version` in the same namespace.
    """
    return {"filter_metadata": {METADATA: {"team": team, "model": model, "version": version}}}


def stats_config() -> dict[str, Any]:
    """The bootstrap's `stats_config`: envoy.config.metrics.v3.StatsConfig, as JSON."""
    tags: list[dict[str, str]] = [{"tag_name": label, "regex": _label_regex(label)} for label in LABELS]
    # Clusters of other makes keep Envoy's own label.
    tags.append({"tag_name": "envoy.cluster_name", "regex": r"^cluster\.(([^.|]+)\.)"})
    tags.extend({"tag_name": name} for name in _OWN_TAGS)
    return {
        "use_all_default_tags": False,
        "stats_tags": tags,
        "histogram_bucket_settings": [
            {"match": match, "buckets": list(BUCKETS_MS)}
            for match in (
                {"suffix": ".upstream_rq_time"},
                {"prefix": "lepton.latency_ms"},  # This name ends with its labels.
            )
        ],
        # A second copy of every answer's count and time, told apart by a header that nothing here sets.
        "stats_matcher": {
            "exclusion_list": {
                "patterns": [
                    {"safe_regex": {"regex": rf"cluster\.([^|]+\|){{{len(LABELS)}}}\.(external|internal)\..*"}}
                ]
            }
        },
    }


def access_log() -> list[dict[str, Any]]:
    """The `access_log` of the HTTP connection manager that routes requests: it counts them as each ends.

    Every request passes here, so it is one histogram and a few comparisons: a tenth of the time that Envoy has for a
    request, where filters in CEL took four tenths.
    """
    labels = {name: f"%CLUSTER_METADATA({METADATA}:{name})%" for name in ("team", "model", "version")}
    labels["answered_by"] = f"%UPSTREAM_METADATA({METADATA}:version)%"
    latency = {"stat": _stat("latency_ms", labels), "unit": "Milliseconds", "value_format": "%DURATION%"}
    errors = {"stat": _stat("errors", labels), "value_fixed": 1}
    return [_logger({"histograms": [latency]}), _logger({"counters": [errors]}, condition=_FAILED)]


def _label_regex(label: str) -> str:
    # Envoy takes the outer group out of the metric's name, and the inner one for the label's value.
    name = "".join((r"([^|]+)" if part == label else r"[^|]+") + r"\|" for part in LABELS)
    return rf"^cluster\.({name}\.)"


def _stat(name: str, labels: dict[str, str]) -> dict[str, Any]:
    tags = [{"name": label, "value_format": value} for label, value in labels.items()]
    return {"name": name, "tags": tags}


def _logger(stats: dict[str, Any], condition: dict[str, Any] | None = None) -> dict[str, Any]:
    logger: dict[str, Any] = {
        "name": "envoy.access_loggers.stats",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config",
            "stats_scope": {"prefix": "lepton"},
            **stats,
        },
    }
    return logger if condition is None else logger | {"filter": condition}


def _status(comparison: str, status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"lepton.access_log.status_{comparison.lower()}_{status}"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}


_FAILED = {
    "or_filter": {
        "filters": [
            _status("GE", 500),
            # Without an answer: the client did not wait any longer.
            _status("EQ", 0),
            # An answer that began well and then broke off, or fell silent, keeps its status.
            {"response_flag_filter": {"flags": ["UC", "UR", "UPE", "UT", "UMSDR", "SI"]}},
            {
                "and_filter": {
                    "filters": [
                        {
                            "header_filter": {
                                "header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
                            }
                        },
                        {
                            "grpc_status_filter": {
                                # Those that google.rpc.Code maps to 5xx.
                                "statuses": [
                                    "UNKNOWN",
                                    "DEADLINE_EXCEEDED",
                                    "UNIMPLEMENTED",
                                    "INTERNAL",
                                    "UNAVAILABLE",
                                    "DATA_LOSS",
                                ]
                            }
                        },
                    ]
                }
            },
        ]
    }
}
"""Which requests are errors."""
