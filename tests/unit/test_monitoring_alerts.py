"""The alerts, as Prometheus itself evaluates them: each fires when it should, and not before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.monitoring.alerts import ALERTS, alerts_text
from infra.monitoring.catalogue import METRICS
from tests.unit.promtool import Promtool

ENDPOINT = {"team": "diagnostics", "model": "tumour"}
V1 = ENDPOINT | {"version": "1.0.0"}
V2 = ENDPOINT | {"version": "2.0.0"}

GATEWAY_UP = {'up{job="gateway",instance="g"}': "1x400"}


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    return Promtool(tmp_path, {"alerts.yml": alerts_text()})


def series(name: str, labels: Mapping[str, str]) -> str:
    pairs = [f'{label}="{value}"' for label, value in labels.items()]
    return f"{name}{{{','.join(pairs)}}}"


def firing(alert: str, labels: Mapping[str, str], summary: str) -> tuple[dict[str, str], dict[str, str]]:
    (found,) = [one for one in ALERTS if one.name == alert]
    annotations = {"summary": summary, "runbook": f"docs/monitoring.md#{alert.lower()}"}
    return {**labels, "severity": found.severity}, annotations


def busy(*versions: Mapping[str, str], rate: float = 10) -> dict[str, str]:
    return {series("version:requests:rate5m", version): f"{rate}x400" for version in versions}


def test_promtool_accepts_the_alerts(promtool: Promtool):
    promtool.lint()


def test_alerts_ask_for_the_catalogues_metrics_and_prometheus_own_only():
    known = {metric.name for metric in METRICS} | {"up", "prometheus_rule_evaluation_failures_total"}
    for alert in ALERTS:
        named = set(
            re.findall(r"\b(?:version|endpoint|node):[a-z0-9_]+:[a-z0-9_]+|\bup\b|\bprometheus_\w+", alert.expression)
        )
        assert named
        assert named <= known, alert.name


def test_every_alert_has_a_section_in_the_runbook():
    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    sections = {line.removeprefix("### ").lower() for line in text.splitlines() if line.startswith("### ")}
    assert {alert.anchor for alert in ALERTS} <= sections


def test_an_endpoint_that_answers_nobody_is_told_after_a_minute(promtool: Promtool):
    metrics = {
        series("endpoint:errors:ratio1m", ENDPOINT): "0x4 1x40",
        series("endpoint:requests:rate1m", ENDPOINT): "10x100",
    }
    promtool.check_alerts(metrics, "EndpointDown", [], at="2m")
    alert = firing("EndpointDown", ENDPOINT, "diagnostics/tumour answers no request.")
    promtool.check_alerts(metrics, "EndpointDown", [alert], at="3m")


def test_an_endpoint_whose_few_requests_fail_is_not_down(promtool: Promtool):
    metrics = {
        series("endpoint:errors:ratio1m", ENDPOINT): "1x40",
        series("endpoint:requests:rate1m", ENDPOINT): "0.1x100",
    }
    promtool.check_alerts(metrics, "EndpointDown", [], at="5m")


def test_an_endpoint_with_many_errors_is_told(promtool: Promtool):
    metrics = {
        series("endpoint:errors:ratio5m", ENDPOINT): "0.08x400",
        series("endpoint:requests:rate5m", ENDPOINT): "10x400",
    }
    alert = firing("EndpointErrors", ENDPOINT, "8% of the requests to diagnostics/tumour fail.")
    promtool.check_alerts(metrics, "EndpointErrors", [alert], at="6m")


def test_a_version_that_fails_more_than_its_sibling_is_told(promtool: Promtool):
    metrics = busy(V1, V2) | {
        series("version:errors:ratio5m", V1): "0.01x400",
        series("version:errors:ratio5m", V2): "0.05x400",
    }
    alert = firing(
        "VersionErrors", V2, "diagnostics/tumour 2.0.0 fails 4% more of its requests than its endpoint's best version."
    )
    promtool.check_alerts(metrics, "VersionErrors", [alert], at="6m")


def test_a_version_alone_is_not_compared_with_anything(promtool: Promtool):
    metrics = busy(V1) | {series("version:errors:ratio5m", V1): "0.5x400"}
    promtool.check_alerts(metrics, "VersionErrors", [], at="10m")


def test_a_version_with_a_handful_of_requests_is_no_measure_for_others(promtool: Promtool):
    metrics = (
        busy(V1)
        | busy(V2, rate=0.01)
        | {
            series("version:errors:ratio5m", V1): "0.05x400",
            series("version:errors:ratio5m", V2): "0x400",
        }
    )
    promtool.check_alerts(metrics, "VersionErrors", [], at="10m")


def test_a_version_much_slower_than_its_sibling_is_told(promtool: Promtool):
    metrics = busy(V1, V2) | {
        series("version:latency_ms:p95_5m", V1): "40x400",
        series("version:latency_ms:p95_5m", V2): "200x400",
    }
    alert = firing(
        "VersionSlow",
        V2,
        "diagnostics/tumour 2.0.0 answers 95 % of its requests within 200 ms: more than twice what its endpoint's "
        "fastest version needs.",
    )
    promtool.check_alerts(metrics, "VersionSlow", [alert], at="11m")


def test_some_milliseconds_more_are_not_slow(promtool: Promtool):
    metrics = busy(V1, V2) | {
        series("version:latency_ms:p95_5m", V1): "3x400",
        series("version:latency_ms:p95_5m", V2): "40x400",
    }
    promtool.check_alerts(metrics, "VersionSlow", [], at="15m")


def replicas(version: Mapping[str, str], desired: int, ready: int) -> dict[str, str]:
    return {
        series("version:replicas:desired", version): f"{desired}x400",
        series("version:replicas:ready", version): f"{ready}x400",
    }


def served(version: Mapping[str, str]) -> dict[str, str]:
    return {series("version:requests:total", {**version, "source": "client", "instance": "g"}): "0+10x40 400x400"}


def test_a_version_that_serves_and_has_no_ready_replica_is_told(promtool: Promtool):
    alert = firing("VersionNotReady", V1, "diagnostics/tumour 1.0.0 is to serve, and has no replica that is ready.")
    promtool.check_alerts(served(V1) | replicas(V1, 2, 0), "VersionNotReady", [alert], at="20m")


@pytest.mark.parametrize(
    "metrics",
    [
        pytest.param(served(V1) | replicas(V1, 2, 1), id="one replica is ready"),
        pytest.param(served(V1) | replicas(V1, 0, 0), id="scaled down on purpose"),
        pytest.param(replicas(V1, 2, 0), id="being deployed"),
        pytest.param(served(V2) | replicas(V1, 2, 0), id="its sibling serves"),
    ],
)
def test_no_replica_is_missed_where_none_has_to_serve(promtool: Promtool, metrics: dict[str, str]):
    promtool.check_alerts(metrics, "VersionNotReady", [], at="20m")


@pytest.mark.parametrize("job", ["router", "gateway"])
def test_a_gateway_that_does_not_answer_is_told(promtool: Promtool, job: str):
    labels = {"job": job, "instance": "10.0.0.1:9100"}
    summary = "Nobody counts requests at 10.0.0.1:9100: no gate passes, and no other alert of endpoints can fire."
    alert = firing("GatewayNotScraped", labels, summary)
    promtool.check_alerts({series("up", labels): "1x4 0x40"}, "GatewayNotScraped", [alert], at="5m")


def test_no_gateway_at_all_is_told(promtool: Promtool):
    summary = "Nobody counts requests: no gate passes, and no other alert of endpoints can fire."
    promtool.check_alerts({}, "GatewayNotScraped", [firing("GatewayNotScraped", {}, summary)], at="5m")


def test_a_gateway_that_answers_is_fine(promtool: Promtool):
    promtool.check_alerts(GATEWAY_UP, "GatewayNotScraped", [], at="5m")


def test_rules_that_fail_are_told(promtool: Promtool):
    labels = {"rule_group": "/etc/prometheus-rules/rules.yml;requests", "instance": "localhost:9090"}
    summary = f"Prometheus could not evaluate {labels['rule_group']}: what it records is missing."
    metrics = {series("prometheus_rule_evaluation_failures_total", labels): "0+1x100"}
    promtool.check_alerts(metrics, "RulesFail", [firing("RulesFail", labels, summary)], at="10m")


def test_a_full_gpu_is_told(promtool: Promtool):
    labels = {"instance": "node-a", "gpu": "3"}
    summary = "GPU 3 of node-a has 97% of its memory in use."
    metrics = {series("node:gpu_memory:ratio", labels): "0.97x100"}
    promtool.check_alerts(metrics, "GpuMemoryFull", [firing("GpuMemoryFull", labels, summary)], at="11m")


def test_a_full_disk_is_told(promtool: Promtool):
    labels = {"instance": "node-a"}
    metrics = {series("node:disk:ratio", labels): "0.93x100", series("node:disk:ratio", {"instance": "b"}): "0.8x100"}
    alert = firing("DiskFull", labels, "node-a has 93% of its disk in use.")
    promtool.check_alerts(metrics, "DiskFull", [alert], at="11m")
