"""The recording rules, as Prometheus itself evaluates them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from infra.monitoring.catalogue import METRICS
from infra.monitoring.data_planes.single_node import SINGLE_NODE
from infra.monitoring.rules import recording_rules, rules_text
from tests.unit.promtool import Promtool

V1 = 'team="diagnostics",model="tumour",version="1.0.0"'
V2 = 'team="diagnostics",model="tumour",version="2.0.0-rc.1"'
ENDPOINT = 'team="diagnostics",model="tumour"'
OTHER = 'team="radiology",model="tumour",version="1.0.0"'

Check = Callable[..., None]


def count(version: str, answered_by: str) -> str:
    return f'envoy_lepton_latency_ms_count{{{version},answered_by="{answered_by}",instance="router"}}'


def errors(version: str, answered_by: str) -> str:
    return f'envoy_lepton_errors{{{version},answered_by="{answered_by}",instance="router"}}'


def bucket(version: str, answered_by: str, bound_ms: str) -> str:
    return f'envoy_lepton_latency_ms_bucket{{{version},answered_by="{answered_by}",instance="router",le="{bound_ms}"}}'


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    return Promtool(tmp_path, {"rules.yml": rules_text(SINGLE_NODE)})


@pytest.fixture
def check(promtool: Promtool) -> Check:
    return promtool.check


# -- the rule file


def test_promtool_accepts_the_rule_file(promtool: Promtool):
    promtool.lint()


def test_the_rules_record_what_the_catalogue_lists_and_nothing_else():
    recorded = {rule["record"] for group in recording_rules(SINGLE_NODE)["groups"] for rule in group["rules"]}
    assert recorded == {metric.name for metric in METRICS}


def test_the_rule_text_holds_the_rule_document():
    assert yaml.safe_load(rules_text(SINGLE_NODE)) == recording_rules(SINGLE_NODE)


# -- requests and errors


def test_a_versions_request_rate_is_in_requests_per_second(check: Check):
    check(
        {count(V1, "1.0.0"): "0+20x100"},
        {
            "version:requests:rate1m": {V1: 10},
            "endpoint:requests:rate1m": {ENDPOINT: 10},
        },
    )


def test_the_error_ratio_is_errors_over_requests(check: Check):
    check(
        {count(V1, "1.0.0"): "0+20x200", errors(V1, "1.0.0"): "0+1x200"},
        {
            "version:errors:ratio1m": {V1: 0.05},
            "version:errors:ratio5m": {V1: 0.05},
            "endpoint:errors:ratio1m": {ENDPOINT: 0.05},
        },
        at="6m",
    )


def test_the_error_ratio_without_errors_is_zero(check: Check):
    check({count(V1, "1.0.0"): "0+20x100"}, {"version:errors:ratio1m": {V1: 0}})


def test_the_error_ratio_is_one_where_every_request_fails(check: Check):
    check(
        {count(V1, "1.0.0"): "0+20x100", errors(V1, "1.0.0"): "0+20x100"},
        {"version:errors:ratio1m": {V1: 1}},
    )


def test_errors_that_come_together_in_one_scrape_are_all_counted_though_their_series_is_new(check: Check):
    check(
        {count(V1, "1.0.0"): "0+20x100", errors(V1, "1.0.0"): "_x50 7+0x50"},
        {"round(version:errors:rate1m * 58)": {V1: 7}},
    )


def test_a_request_that_no_server_could_be_asked_for_is_an_error(check: Check):
    check(
        {count(V1, "1.0.0"): "0+15x100", count(V1, ""): "0+5x100", errors(V1, ""): "0+5x100"},
        {
            "version:errors:ratio1m": {V1: 0.25},
            "endpoint:errors:ratio1m": {ENDPOINT: 0.25},
        },
    )


def test_a_request_that_another_version_had_to_answer_is_an_error_of_the_version_only(check: Check):
    check(
        {count(V1, "1.0.0"): "0+80x100", count(V2, "2.0.0-rc.1"): "0+15x100", count(V2, "1.0.0"): "0+5x100"},
        {
            "version:errors:ratio1m": {
                V1: 0,
                V2: 0.25,
            },
            "endpoint:errors:ratio1m": {ENDPOINT: 0},
        },
    )


def test_a_request_that_fails_with_another_version_too_is_one_error(check: Check):
    check(
        {count(V2, "2.0.0-rc.1"): "0+15x100", count(V2, "1.0.0"): "0+5x100", errors(V2, "1.0.0"): "0+5x100"},
        {
            "version:errors:ratio1m": {V2: 0.25},
            "endpoint:errors:ratio1m": {ENDPOINT: 0.25},
        },
    )


def test_versions_of_an_endpoint_are_kept_apart(check: Check):
    check(
        {
            count(V1, "1.0.0"): "0+90x100",
            count(V2, "2.0.0-rc.1"): "0+10x100",
            errors(V2, "2.0.0-rc.1"): "0+5x100",
        },
        {
            "version:requests:rate1m": {
                V1: 45,
                V2: 5,
            },
            "version:errors:ratio1m": {
                V1: 0,
                V2: 0.5,
            },
            "endpoint:errors:ratio1m": {ENDPOINT: 0.05},
        },
    )


def test_teams_with_a_model_of_the_same_name_are_kept_apart(check: Check):
    check(
        {count(V1, "1.0.0"): "0+20x100", count(OTHER, "1.0.0"): "0+10x100", errors(OTHER, "1.0.0"): "0+10x100"},
        {
            "version:errors:ratio1m": {
                V1: 0,
                OTHER: 1,
            },
        },
    )


def test_a_version_without_requests_has_no_error_ratio_and_no_latency(check: Check):
    check(
        {
            count(V1, "1.0.0"): "500+0x100",
            errors(V1, "1.0.0"): "3+0x100",
            bucket(V1, "1.0.0", "10"): "500+0x100",
            bucket(V1, "1.0.0", "+Inf"): "500+0x100",
        },
        {
            "version:requests:rate1m": {V1: 0},
            "version:errors:ratio1m": None,
            "endpoint:errors:ratio1m": None,
            "version:latency_ms:p50_1m": None,
            "endpoint:latency_ms:p99_1m": None,
        },
    )


def test_without_any_series_nothing_is_recorded(check: Check):
    check({}, {'{__name__=~"(version|endpoint|node):.*"}': None})


def test_figures_end_when_the_router_is_not_scraped_any_longer(check: Check):
    check(
        {
            count(V1, "1.0.0"): "0+20x55 stale",
            bucket(V1, "1.0.0", "10"): "0+20x55 stale",
            bucket(V1, "1.0.0", "+Inf"): "0+20x55 stale",
            f'lepton_version_cpu_seconds_total{{{V1},instance="node"}}': "0+3x55 stale",
        },
        {'{__name__=~"(version|endpoint):.*"}': None},
    )


def test_a_restart_of_the_router_leaves_the_rates_right(check: Check):
    check(
        {
            # 20 and 1 at the first scrape after the restart: as many as at any other.
            count(V1, "1.0.0"): "1000+20x45 20+20x50",
            errors(V1, "1.0.0"): "50+1x45 1+1x50",
        },
        {
            "version:requests:rate1m": {V1: 10},
            "version:errors:ratio1m": {V1: 0.05},
        },
    )


def test_requests_that_no_endpoint_was_found_for_are_not_counted(check: Check):
    check(
        {
            count(V1, "1.0.0"): "0+20x100",
            'envoy_lepton_latency_ms_count{instance="router"}': "0+100x100",
            'envoy_lepton_errors{instance="router"}': "0+100x100",
        },
        {
            "version:requests:rate1m": {V1: 10},
            "endpoint:errors:rate1m": {ENDPOINT: 0},
        },
    )


def test_what_failover_clusters_count_of_the_same_requests_is_not_counted_again(check: Check):
    clusters = {
        f'envoy_cluster_upstream_rq_{what}{{role="{role}",protocol="http",{V1},instance="router"}}': "0+20x100"
        for what in ("completed", "total", "active")
        for role in ("failover", "variant")
    }
    check(
        {count(V1, "1.0.0"): "0+20x100"} | clusters,
        {
            "version:requests:rate1m": {V1: 10},
            "endpoint:requests:rate1m": {ENDPOINT: 10},
        },
    )


def test_requests_in_flight_are_summed_over_protocols_and_counted_where_the_servers_are(check: Check):
    active = "envoy_cluster_upstream_rq_active"
    check(
        {
            f'{active}{{role="variant",protocol="http",{V1}}}': "3x100",
            f'{active}{{role="variant",protocol="grpc",{V1}}}': "4x100",
            f'{active}{{role="failover",protocol="http",{V1}}}': "3x100",
            f'{active}{{role="variant",protocol="http",{V2}}}': "1x100",
        },
        {
            "version:in_flight:sum": {V1: 7, V2: 1},
            "endpoint:in_flight:sum": {ENDPOINT: 8},
        },
    )


# -- shadows


def shadow(metric: str, labels: str = "") -> str:
    return f'envoy_cluster_upstream_rq_{metric}{{role="shadow",protocol="http",{V2},instance="router"{labels}}}'


def test_copies_of_requests_count_for_the_shadow_and_not_for_the_endpoint(check: Check):
    check(
        {
            count(V1, "1.0.0"): "0+20x100",
            shadow("completed"): "0+10x100",
            shadow("xx", ',envoy_response_code_class="2"'): "0+8x100",
            shadow("xx", ',envoy_response_code_class="5"'): "0+2x100",
        },
        {
            "version:requests:rate1m": {
                V1: 10,
                V2: 5,
            },
            "version:errors:ratio1m": {
                V1: 0,
                V2: 0.2,
            },
            "endpoint:requests:rate1m": {ENDPOINT: 10},
            "endpoint:errors:ratio1m": {ENDPOINT: 0},
        },
    )


def test_a_shadow_has_latencies(check: Check):
    check(
        {
            shadow("time_bucket", ',le="10"'): "0+10x100",
            shadow("time_bucket", ',le="20"'): "0+20x100",
            shadow("time_bucket", ',le="+Inf"'): "0+20x100",
        },
        {
            "version:latency_ms:p50_1m": {V2: 10},
            "endpoint:latency_ms:p50_1m": None,
        },
    )


def test_the_rate_is_no_greater_when_a_shadow_of_a_serving_version_ends(check: Check):
    check(
        {count(V2, "2.0.0-rc.1"): "100000+20x100", shadow("completed"): "5000+10x50 stale"},
        {"version:requests:rate1m": {V2: 10}},
    )


# -- latencies


def test_buckets_are_counters_of_what_the_version_answered_itself(check: Check):
    check(
        {
            count(V2, "2.0.0-rc.1"): "0+10x100",
            bucket(V2, "2.0.0-rc.1", "10"): "0+8x100",
            bucket(V2, "2.0.0-rc.1", "+Inf"): "0+10x100",
            count(V2, "1.0.0"): "0+90x100",
            bucket(V2, "1.0.0", "10"): "0+90x100",
            bucket(V2, "1.0.0", "+Inf"): "0+90x100",
            count(V2, ""): "0+5x100",
            bucket(V2, "", "10"): "0+5x100",
            bucket(V2, "", "+Inf"): "0+5x100",
        },
        {
            "version:latency_ms:bucket": {
                f'instance="router",source="client",{V2},le="10"': 8 * 60,
                f'instance="router",source="client",{V2},le="+Inf"': 10 * 60,
            },
        },
    )


def test_buckets_of_copies_are_apart_from_those_of_clients(check: Check):
    check(
        {
            count(V2, "2.0.0-rc.1"): "0+10x100",
            bucket(V2, "2.0.0-rc.1", "+Inf"): "0+10x100",
            shadow("time_bucket", ',le="+Inf"'): "0+3x100",
        },
        {
            'sum by (source) (version:latency_ms:bucket{le="+Inf"})': {
                'source="client"': 10 * 60,
                'source="shadow"': 3 * 60,
            },
        },
    )


def test_percentiles_lie_within_their_buckets(check: Check):
    # Of 100 requests a scrape: 50 up to 10 ms, 45 more up to 20, 5 more up to 100.
    check(
        {
            bucket(V1, "1.0.0", "10"): "0+50x100",
            bucket(V1, "1.0.0", "20"): "0+95x100",
            bucket(V1, "1.0.0", "100"): "0+100x100",
            bucket(V1, "1.0.0", "+Inf"): "0+100x100",
            count(V1, "1.0.0"): "0+100x100",
        },
        {
            "version:latency_ms:p50_1m": {V1: 10},
            "version:latency_ms:p95_1m": {V1: 20},
            "version:latency_ms:p99_1m": {V1: 84},
            "endpoint:latency_ms:p99_5m": {ENDPOINT: 84},
        },
    )


def test_what_another_version_answered_counts_for_the_endpoints_latency_only(check: Check):
    check(
        {
            count(V2, "2.0.0-rc.1"): "0+10x100",
            bucket(V2, "2.0.0-rc.1", "10"): "0+10x100",
            bucket(V2, "2.0.0-rc.1", "1000"): "0+10x100",
            bucket(V2, "2.0.0-rc.1", "+Inf"): "0+10x100",
            count(V2, "1.0.0"): "0+90x100",
            bucket(V2, "1.0.0", "10"): "0+0x100",
            bucket(V2, "1.0.0", "1000"): "0+90x100",
            bucket(V2, "1.0.0", "+Inf"): "0+90x100",
        },
        {
            "version:latency_ms:p99_1m": {V2: 9.9},
            "endpoint:latency_ms:p99_1m": {ENDPOINT: 989},
        },
    )


# -- the node


def test_the_processors_ratio_is_what_is_neither_idle_nor_waiting(check: Check):
    check(
        {
            'lepton_node_cpu_seconds_total{instance="node",mode="user"}': "0+1x100",
            'lepton_node_cpu_seconds_total{instance="node",mode="idle"}': "0+2x100",
            'lepton_node_cpu_seconds_total{instance="node",mode="iowait"}': "0+1x100",
        },
        {"node:cpu:ratio": {'instance="node"': 0.25}},
    )


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_ratios_of_space_are_used_over_all(check: Check, what: str):
    check(
        {
            f'lepton_node_{what}_bytes{{instance="node",state="used"}}': "25x100",
            f'lepton_node_{what}_bytes{{instance="node",state="free"}}': "75x100",
        },
        {f"node:{what}:ratio": {'instance="node"': 0.25}},
    )


def test_each_gpu_has_ratios_of_its_own(check: Check):
    check(
        {
            'lepton_node_gpu_utilisation_ratio{instance="node",gpu="0"}': "0.5x100",
            'lepton_node_gpu_utilisation_ratio{instance="node",gpu="1"}': "0x100",
            'lepton_node_gpu_memory_bytes{instance="node",gpu="0",state="used"}': "30x100",
            'lepton_node_gpu_memory_bytes{instance="node",gpu="0",state="free"}': "10x100",
        },
        {
            "node:gpu:ratio": {
                'instance="node",gpu="0"': 0.5,
                'instance="node",gpu="1"': 0,
            },
            "node:gpu_memory:ratio": {'instance="node",gpu="0"': 0.75},
        },
    )


def test_a_versions_processor_time_is_in_cores_and_its_memory_in_bytes(check: Check):
    check(
        {
            f'lepton_version_cpu_seconds_total{{{V1},instance="node"}}': "0+3x100",
            f'lepton_version_memory_bytes{{{V1},instance="node"}}': "4096x100",
        },
        {
            "sum without (instance) (version:cpu_seconds:total)": {V1: 180},
            "version:cpu:cores": {V1: 1.5},
            "version:memory:bytes": {V1: 4096},
        },
    )


def test_the_replicas_of_a_version_are_told_once_though_each_protocol_has_a_cluster(check: Check):
    def servers(protocol: str, metric: str) -> str:
        return f'envoy_cluster_membership_{metric}{{role="variant",protocol="{protocol}",{V1},instance="router"}}'

    check(
        {
            servers("http", "total"): "3x100",
            servers("http", "healthy"): "2x100",
            servers("grpc", "total"): "3x100",
            servers("grpc", "healthy"): "1x100",
        },
        {"version:replicas:desired": {V1: 3}, "version:replicas:ready": {V1: 2}},
    )
