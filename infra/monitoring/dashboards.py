"""Grafana's dashboards, made from the catalogue: an environment's fleet, an endpoint, a version, its GPUs. Pure.

Reference: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from infra.monitoring.catalogue import METRICS, PERCENTILES

Dashboard = dict[str, Any]

DATA_SOURCE = "lepton-prometheus"
"""The `uid` of the Prometheus that all panels ask."""

FLEET, ENDPOINT, VERSION, NODES = "lepton-fleet", "lepton-endpoint", "lepton-version", "lepton-nodes"
"""The dashboards' `uid`s: links to them last."""

_SCHEMA_VERSION = 39
"""That of Grafana 11, which newer ones migrate."""
_COLUMNS, _HEIGHT = 24, 8
_UNITS = {
    "1/s": "reqps", "ratio": "percentunit", "ms": "ms", "requests": "short", "s": "s", "cores": "short",
    "bytes": "bytes", "replicas": "short",
}  # fmt: skip
_METRICS = {metric.name: metric for metric in METRICS}
_SOURCE = {"type": "prometheus", "uid": DATA_SOURCE}

_OF_ENDPOINT = 'team="$team",model="$model"'
_OF_VERSION = f'{_OF_ENDPOINT},version="$version"'


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph over time, or a table of how it is now."""

    title: str
    metric: str
    """The metric of the catalogue that it is of: what it means, and its unit."""
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 12


def dashboard_path(team: str, model: str) -> str:
    """Path and query of an endpoint's dashboard, to be put after Grafana's own URL."""
    return f"/d/{ENDPOINT}?{urlencode({'var-team': team, 'var-model': model})}"


def dashboards() -> list[Dashboard]:
    return [_fleet(), _endpoint(), _version(), _nodes()]


def _fleet() -> Dashboard:
    by_endpoint = "{{team}}/{{model}}"
    return _dashboard(
        FLEET,
        "Fleet",
        [
            _each("Requests", "endpoint:requests:rate1m", "", by_endpoint),
            _each("Error ratio", "endpoint:errors:ratio1m", "", by_endpoint),
            _each("Latency, p95", "endpoint:latency_ms:p95_1m", "", by_endpoint),
            _each("Requests in flight", "endpoint:in_flight:sum", "", by_endpoint),
            Panel(
                "Versions that fail most",
                "version:errors:ratio5m",
                (Query("topk(20, version:errors:ratio5m > 0)", ""),),
                "table",
            ),
            Panel(
                "Versions without a ready replica",
                "version:replicas:ready",
                (Query("version:replicas:ready == 0 and version:replicas:desired > 0", ""),),
                "table",
            ),
        ],
        variables=[],
    )


def _endpoint() -> Dashboard:
    share = (
        f"version:requests:rate1m{{{_OF_ENDPOINT}}} / on (team, model) group_left () "
        f"(sum by (team, model) (version:requests:rate1m{{{_OF_ENDPOINT}}}) > 0)"
    )
    return _dashboard(
        ENDPOINT,
        "Endpoint",
        [
            _each("Requests a version", "version:requests:rate1m", _OF_ENDPOINT, "{{version}}"),
            Panel("Share of the requests", "version:errors:ratio1m", (Query(share, "{{version}}"),)),
            _each("Error ratio a version", "version:errors:ratio1m", _OF_ENDPOINT, "{{version}}"),
            _each("Error ratio for clients", "endpoint:errors:ratio1m", _OF_ENDPOINT, "clients"),
            *(
                _each(
                    f"Latency a version, {name}", f"version:latency_ms:{name}_1m", _OF_ENDPOINT, "{{version}}", width=8
                )
                for name in PERCENTILES
            ),
            _each("Requests in flight", "version:in_flight:sum", _OF_ENDPOINT, "{{version}}"),
            _each("Ready replicas", "version:replicas:ready", _OF_ENDPOINT, "{{version}}"),
        ],
        variables=["team", "model"],
    )


def _version() -> Dashboard:
    latency = tuple(Query(f"version:latency_ms:{name}_1m{{{_OF_VERSION}}}", name) for name in PERCENTILES)
    replicas = tuple(Query(f"version:replicas:{name}{{{_OF_VERSION}}}", name) for name in ("desired", "ready"))
    return _dashboard(
        VERSION,
        "Version",
        [
            _each("Requests", "version:requests:rate1m", _OF_VERSION, "requests"),
            _each("Error ratio", "version:errors:ratio1m", _OF_VERSION, "errors"),
            Panel("Latency", "version:latency_ms:p95_1m", latency),
            _each("Requests in flight", "version:in_flight:sum", _OF_VERSION, "in flight"),
            Panel("Replicas", "version:replicas:ready", replicas),
            _each("Processors", "version:cpu:cores", _OF_VERSION, "cores"),
            _each("Memory", "version:memory:bytes", _OF_VERSION, "memory"),
        ],
        variables=["team", "model", "version"],
    )


def _nodes() -> Dashboard:
    of_node, of_gpu = "{{instance}}", "{{instance}} GPU {{gpu}}"
    return _dashboard(
        NODES,
        "Nodes and GPUs",
        [
            _each("GPUs at work", "node:gpu:ratio", "", of_gpu),
            _each("GPU memory in use", "node:gpu_memory:ratio", "", of_gpu),
            _each("Processors in use", "node:cpu:ratio", "", of_node),
            _each("Memory in use", "node:memory:ratio", "", of_node),
            _each("Disk in use", "node:disk:ratio", "", of_node),
        ],
        variables=[],
    )


def _each(title: str, metric: str, selector: str, legend: str, width: int = 12) -> Panel:
    """All series of a metric, or those that a selector leaves."""
    expression = f"{metric}{{{selector}}}" if selector else metric
    return Panel(title, metric, (Query(expression, legend),), width=width)


# -- Grafana's JSON


def _dashboard(uid: str, title: str, panels: Sequence[Panel], variables: Sequence[str]) -> Dashboard:
    return {
        "uid": uid,
        "title": title,
        "tags": ["lepton"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_variable(name, variables[:number]) for number, name in enumerate(variables)]},
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "title": "lepton", "tags": ["lepton"], "asDropdown": True, "includeVars": True}
        ],
        "panels": _laid_out(panels),
    }


def _variable(name: str, before: Sequence[str]) -> dict[str, Any]:
    """One that is chosen among what there is for the variables before it."""
    selector = ",".join(f'{label}="${label}"' for label in before)
    query = f"label_values(version:replicas:desired{{{selector}}}, {name})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": False,
        "includeAll": False,
    }


def _laid_out(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """From left to right, and on the next row where there is no room."""
    drawn: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        drawn.append(_panel(number, panel, x, y))
        x += panel.width
    return drawn


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    metric = _METRICS[panel.metric]
    table = panel.kind == "table"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": metric.description,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": _UNITS[metric.unit], "min": 0}, "overrides": []},
        "options": {} if table else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "instant": table,
                "range": not table,
                "format": "table" if table else "time_series",
            }
            for index, query in enumerate(panel.queries)
        ],
    }
