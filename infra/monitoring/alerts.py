"""The alerts, in every mode the same: they ask for metrics of the catalogue, and for Prometheus's own. Pure.

What a gate judges in a rollout is not said again here: alerts look at what has been released, all the time, and each
one is something that somebody has to do something about. `docs/monitoring.md` says what.

Reference: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

RUNBOOK = "docs/monitoring.md"

_LEAST_RATE = 0.2
"""Requests a second below which ratios and percentiles over 5m say little."""
_OF_ENDPOINT = "on (team, model) group_left ()"
_OF_VERSION = "on (team, model, version)"
_BUSY = f"version:requests:rate5m > {_LEAST_RATE}"
_MODEL = "{{ $labels.team }}/{{ $labels.model }}"
_VERSION = f"{_MODEL} {{{{ $labels.version }}}}"
_PERCENT = "{{ $value | humanizePercentage }}"


@dataclass(frozen=True)
class Alert:
    """Something that somebody has to look at."""

    name: str
    expression: str
    lasting: str
    """How long it has to be so, as Prometheus writes durations."""
    severity: Literal["critical", "warning"]
    """`critical`: clients get no answers, or nobody would notice. `warning`: it is to be seen to in working hours."""
    summary: str

    @property
    def anchor(self) -> str:
        """Of its section in the runbook."""
        return self.name.lower()


def _best(metric: str) -> str:
    """The least that a version of the same endpoint with enough requests has of a metric."""
    return f"min by (team, model) ({metric} and {_BUSY})"


ALERTS: tuple[Alert, ...] = (
    Alert(
        "EndpointDown",
        f"endpoint:errors:ratio1m == 1 and endpoint:requests:rate1m > {_LEAST_RATE}",
        "1m",
        "critical",
        f"{_MODEL} answers no request.",
    ),
    Alert(
        "EndpointErrors",
        f"endpoint:errors:ratio5m > 0.05 and endpoint:requests:rate5m > {_LEAST_RATE}",
        "5m",
        "critical",
        f"{_PERCENT} of the requests to {_MODEL} fail.",
    ),
    Alert(
        "VersionErrors",
        f"(version:errors:ratio5m - {_OF_ENDPOINT} {_best('version:errors:ratio5m')} > 0.02) and {_BUSY}",
        "5m",
        "warning",
        f"{_VERSION} fails {_PERCENT} more of its requests than its endpoint's best version.",
    ),
    Alert(
        "VersionSlow",
        f"(version:latency_ms:p95_5m > {_OF_ENDPOINT} (2 * {_best('version:latency_ms:p95_5m')} + 50)) and {_BUSY}",
        "10m",
        "warning",
        f"{_VERSION} answers 95 % of its requests within {{{{ $value | humanize }}}} ms: more than twice what its "
        "endpoint's fastest version needs.",
    ),
    Alert(
        "VersionNotReady",
        "version:replicas:ready == 0 "
        f"and {_OF_VERSION} version:replicas:desired > 0 "
        f"and {_OF_VERSION} sum by (team, model, version) "
        '(increase(version:requests:total{source="client"}[1h])) > 0',
        "2m",
        "critical",
        f"{_VERSION} is to serve, and has no replica that is ready.",
    ),
    Alert(
        "GatewayNotScraped",
        'up{job=~"router|gateway"} == 0 or absent(up{job=~"router|gateway"})',
        "2m",
        "critical",
        "Nobody counts requests{{ with $labels.instance }} at {{ . }}{{ end }}: no gate passes, and no other alert of "
        "endpoints can fire.",
    ),
    Alert(
        "RulesFail",
        "increase(prometheus_rule_evaluation_failures_total[5m]) > 0",
        "5m",
        "critical",
        "Prometheus could not evaluate {{ $labels.rule_group }}: what it records is missing.",
    ),
    Alert(
        "GpuMemoryFull",
        "node:gpu_memory:ratio > 0.95",
        "10m",
        "warning",
        f"GPU {{{{ $labels.gpu }}}} of {{{{ $labels.instance }}}} has {_PERCENT} of its memory in use.",
    ),
    Alert(
        "DiskFull",
        "node:disk:ratio > 0.9",
        "10m",
        "warning",
        f"{{{{ $labels.instance }}}} has {_PERCENT} of its disk in use.",
    ),
)


def alert_rules() -> dict[str, Any]:
    """A Prometheus rule file, as a document."""
    return {"groups": [{"name": "alerts", "rules": [_rule(alert) for alert in ALERTS]}]}


def alerts_text() -> str:
    """The rule file's text, in YAML."""
    return yaml.safe_dump(alert_rules(), sort_keys=False, width=1000)


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": f"{RUNBOOK}#{alert.anchor}"},
    }
