"""The recording rules of gateways' data planes, over series as the real exporters write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from infra.cluster.names import version_namespace
from infra.monitoring.catalogue import METRICS
from infra.monitoring.data_planes import GATEWAYS
from infra.monitoring.rules import recording_rules, rules_text
from tests.unit.promtool import Promtool

LONG = "2.0.0-rc.1"
V1 = 'team="diagnostics",model="tumour",version="1.0.0"'
V2 = f'team="diagnostics",model="tumour",version="{LONG}"'
ENDPOINT = 'team="diagnostics",model="tumour"'
NAMESPACES = {
    V1: version_namespace("prod", "diagnostics", "tumour", "1.0.0"),
    V2: version_namespace("prod", "diagnostics", "tumour", LONG),
}
PODS = {V1: "10.0.0.1", V2: "10.0.0.2"}
ELSEWHERE = version_namespace("dev", "diagnostics", "tumour", "1.0.0")
"""The first version, in another environment of the same cluster."""
TRAEFIK, ISTIO, ENVOY = "traefik", "istio", "envoy-gateway"


def annotations_of(version: str, environment: str, namespace: str) -> str:
    """As kube-state-metrics shows those of a version's Service."""
    labels = ",".join(f"annotation_lepton_{label}" for label in version.split(","))
    labels = f'annotation_lepton_environment="{environment}",{labels}'
    return f'kube_service_annotations{{namespace="{namespace}",service="server",{labels}}}'


def state_metrics() -> dict[str, str]:
    """What kube-state-metrics shows of the two versions, and of a Service that is none."""
    series = {'kube_service_annotations{namespace="default",service="kubernetes",uid="0"}': "1x200"}
    for number, (version, namespace) in enumerate(NAMESPACES.items()):
        pod = f'namespace="{namespace}",pod="server-{number}",uid="{number}"'
        series |= {
            annotations_of(version, "prod", namespace): "1x200",
            f'kube_pod_info{{{pod},pod_ip="{PODS[version]}",node="node-a",host_network="false"}}': "1x200",
            f"kube_pod_created{{{pod}}}": f"{100 + number}x200",
        }
    return series


def replicas(namespace: str) -> str:
    return f'kube_deployment_spec_replicas{{namespace="{namespace}",deployment="server"}}'


def promtool(folder: Path, gateway: str) -> Promtool:
    return Promtool(folder, {"rules.yml": rules_text(GATEWAYS[gateway]("prod"))})


def traefik(
    metric: str, version: str, code: str = "200", *, rest: str = "", protocol: str = "http", port: str = ""
) -> str:
    service = f"{NAMESPACES[version]}-server-{port or 'http-8080'}@kubernetesgateway"
    labels = f'code="{code}",protocol="{protocol}",service="{service}",instance="10.9.9.9:9100",job="gateway"'
    method = "" if "method" in rest else ',method="POST"'
    return f"traefik_service_{metric}{{{labels}{method}{rest}}}"


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_promtool_accepts_the_rule_file(gateway: str, tmp_path: Path):
    promtool(tmp_path, gateway).lint()


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_the_rules_record_what_the_catalogue_lists_and_nothing_else(gateway: str):
    plane = GATEWAYS[gateway]("prod")
    rules = recording_rules(plane)
    assert {rule["record"] for group in rules["groups"] for rule in group["rules"]} == {one.name for one in METRICS}
    assert yaml.safe_load(rules_text(plane)) == rules


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_without_any_requests_nothing_is_recorded_of_them(gateway: str, tmp_path: Path):
    promtool(tmp_path, gateway).check(
        state_metrics(), {'{__name__=~"(version|endpoint):(requests|errors|latency_ms|in_flight):.*"}': None}
    )


# -- Traefik


def test_traefiks_requests_are_counted_for_the_version_that_the_services_annotations_name(tmp_path: Path):
    promtool(tmp_path, TRAEFIK).check(
        state_metrics()
        | {
            traefik("requests_total", V1): "0+18x100",
            traefik("requests_total", V1, "500"): "0+2x100",
            traefik("requests_total", V2): "0+2x100",
        },
        {
            "version:requests:rate1m": {V1: 10, V2: 1},
            "version:errors:ratio1m": {V1: 0.1, V2: 0},
            "endpoint:requests:rate1m": {ENDPOINT: 11},
            "endpoint:errors:rate1m": {ENDPOINT: 1},
        },
    )


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_of_two_environments_in_one_cluster_each_prometheus_counts_its_own_versions(gateway: str, tmp_path: Path):
    """They may share a gateway, and kube-state-metrics shows Services of the whole cluster to both."""
    pod = f'namespace="{ELSEWHERE}",pod="server-5",uid="5"'
    counted = {
        "traefik": traefik("requests_total", V1),
        "istio": istio("requests_total", V1),
        "envoy-gateway": envoy("endpoint_rq_success", SHARED, V1),
    }[gateway]
    series = state_metrics() | {
        annotations_of(V1, "dev", ELSEWHERE): "1x200",
        f'kube_pod_info{{{pod},pod_ip="10.0.0.5"}}': "1x200",
        f"kube_pod_created{{{pod}}}": "105x200",
        counted: "0+20x100",
        counted.replace(NAMESPACES[V1], ELSEWHERE).replace(PODS[V1], "10.0.0.5"): "0+4x100",
        replicas(NAMESPACES[V1]): "3x100",
        replicas(ELSEWHERE): "1x100",
    }
    if gateway == "envoy-gateway":
        none = envoy("endpoint_rq_error", SHARED, V1)
        series |= {none: "0x100", none.replace(PODS[V1], "10.0.0.5"): "0x100"}
    for environment, rate, count in (("prod", 10, 3), ("dev", 2, 1)):
        Promtool(tmp_path, {"rules.yml": rules_text(GATEWAYS[gateway](environment))}).check(
            series, {"version:requests:rate1m": {V1: rate}, "version:replicas:desired": {V1: count}}
        )


def test_traefiks_counters_of_several_instances_stay_apart_and_are_summed_as_rates(tmp_path: Path):
    one = traefik("requests_total", V1)
    promtool(tmp_path, TRAEFIK).check(
        state_metrics() | {one: "0+20x100", one.replace("10.9.9.9", "10.9.9.8"): "5000+10x20 0+10x79"},
        {
            "count(version:requests:total)": {"": 2},
            "version:requests:rate1m": {V1: 15},
        },
    )


def test_probes_by_head_are_no_clients_requests(tmp_path: Path):
    promtool(tmp_path, TRAEFIK).check(
        state_metrics()
        | {
            traefik("requests_total", V1): "0+20x100",
            traefik("requests_total", V1, "503", rest=',method="GET"'): "0+20x100",
        },
        {"version:requests:rate1m": {V1: 10}, "version:errors:ratio1m": {V1: 0}},
    )


def test_a_request_that_a_client_gave_up_is_an_error(tmp_path: Path):
    promtool(tmp_path, TRAEFIK).check(
        state_metrics() | {traefik("requests_total", V1): "0+15x100", traefik("requests_total", V1, "499"): "0+5x100"},
        {"version:errors:ratio1m": {V1: 0.25}},
    )


def test_grpc_statuses_that_are_the_servers_fault_are_errors_and_others_are_not(tmp_path: Path):
    def grpc(code: str) -> str:
        return traefik("requests_total", V1, code, protocol="grpc", port="8081-grpc")

    promtool(tmp_path, TRAEFIK).check(
        state_metrics() | {grpc("0"): "0+10x100", grpc("5"): "0+5x100", grpc("14"): "0+5x100"},
        {"version:errors:ratio1m": {V1: 0.25}},
    )


def test_seconds_become_milliseconds_whatever_buckets_traefik_was_given(tmp_path: Path):
    bounds = {"0.0025": 2.5, "0.005": 5, "0.1": 100, "0.25": 250, "0.3": 300, "1": 1000, "1.2": 1200, "5.0": 5000}
    series = {
        traefik("request_duration_seconds_bucket", V1, rest=f',le="{bound}"'): f"0+{10 * number}x100"
        for number, bound in enumerate((*bounds, "+Inf"))
    }
    recorded = {
        f'{V1},source="client",instance="10.9.9.9:9100",le="{"+Inf" if bound == float("inf") else f"{bound:g}"}"': (
            600.0 * number
        )
        for number, bound in enumerate((*bounds.values(), float("inf")))
    }
    promtool(tmp_path, TRAEFIK).check(state_metrics() | series, {"version:latency_ms:bucket": recorded})


def test_traefiks_percentiles_are_in_milliseconds(tmp_path: Path):
    def bucket(bound: str) -> str:
        return traefik("request_duration_seconds_bucket", V1, rest=f',le="{bound}"')

    promtool(tmp_path, TRAEFIK).check(
        state_metrics()
        | {
            bucket("0.01"): "0+50x100",
            bucket("0.02"): "0+95x100",
            bucket("0.1"): "0+100x100",
            bucket("+Inf"): "0+100x100",
        },
        {
            "version:latency_ms:p50_1m": {V1: 10},
            "version:latency_ms:p95_1m": {V1: 20},
            "version:latency_ms:p99_5m": {V1: 84},
            "endpoint:latency_ms:p99_1m": {ENDPOINT: 84},
        },
    )


def test_the_mean_of_traefiks_requests_in_flight_is_the_time_that_they_took(tmp_path: Path):
    # Two seconds apart, ten requests of a second each.
    promtool(tmp_path, TRAEFIK).check(
        state_metrics() | {traefik("request_duration_seconds_sum", V1): "0+10x100"},
        {"version:in_flight:sum": {V1: 5}, "endpoint:in_flight:sum": {ENDPOINT: 5}},
    )


def test_services_of_others_are_not_counted(tmp_path: Path):
    labels = 'code="200",method="POST",protocol="http",instance="t"'
    promtool(tmp_path, TRAEFIK).check(
        {
            **state_metrics(),
            f'traefik_service_requests_total{{{labels},service="shop-server-http-8080@kubernetesgateway"}}': "0+9x100",
            f'traefik_service_requests_total{{{labels},service="dashboard@internal"}}': "0+9x100",
        },
        {"version:requests:total": None},
    )


def test_figures_end_when_the_gateway_is_not_scraped_any_longer(tmp_path: Path):
    promtool(tmp_path, TRAEFIK).check(
        state_metrics()
        | {
            traefik("requests_total", V1): "0+20x55 stale",
            traefik("request_duration_seconds_bucket", V1, rest=',le="+Inf"'): "0+20x55 stale",
            traefik("request_duration_seconds_sum", V1): "0+20x55 stale",
        },
        {'{__name__=~"(version|endpoint):.*"}': None},
    )


# -- Istio


def istio(metric: str, version: str, code: str = "200", rest: str = "") -> str:
    return (
        f'istio_{metric}{{reporter="source",source_workload="lepton-istio",destination_service_name="server",'
        f'destination_service_namespace="{NAMESPACES[version]}",request_protocol="http",response_code="{code}",'
        f'response_flags="-",instance="10.9.9.9:15020"{rest}}}'
    )


def test_istios_requests_are_counted_once_though_both_sides_report_them(tmp_path: Path):
    sidecar = istio("requests_total", V1).replace('reporter="source"', 'reporter="destination"')
    promtool(tmp_path, ISTIO).check(
        state_metrics()
        | {
            istio("requests_total", V1): "0+16x100",
            istio("requests_total", V1, "503"): "0+2x100",
            istio("requests_total", V1, "0"): "0+2x100",
            istio("requests_total", V2, rest=',grpc_response_status="0"'): "0+10x100",
            istio("requests_total", V2, rest=',grpc_response_status="14"'): "0+10x100",
            sidecar: "0+16x100",
        },
        {
            "version:requests:rate1m": {V1: 10, V2: 10},
            "version:errors:ratio1m": {V1: 0.2, V2: 0.5},
            "endpoint:errors:rate1m": {ENDPOINT: 7},
        },
    )


def test_istios_times_are_in_milliseconds_already(tmp_path: Path):
    def bucket(bound: str) -> str:
        return istio("request_duration_milliseconds_bucket", V1, rest=f',le="{bound}"')

    promtool(tmp_path, ISTIO).check(
        state_metrics()
        | {
            bucket("10"): "0+50x100",
            bucket("25"): "0+100x100",
            bucket("+Inf"): "0+100x100",
            istio("request_duration_milliseconds_sum", V1): "0+10000x100",
        },
        {"version:latency_ms:p50_1m": {V1: 10}, "version:in_flight:sum": {V1: 5}},
    )


# -- Envoy Gateway


def envoy(metric: str, cluster: str, version: str | None = None, rest: str = "") -> str:
    endpoint = f',envoy_endpoint_address="{PODS[version]}:8080"' if version else ""
    return f'envoy_cluster_{metric}{{envoy_cluster_name="{cluster}",instance="10.9.9.9:19001"{endpoint}{rest}}}'


SHARED = "httproute/diagnostics-prod-0/tumour/rule/0"
"""A rule whose backends have no filters: they share a cluster."""
APART = [f"httproute/diagnostics-prod-0/tumour/rule/1/backend/{number}" for number in (0, 1)]
COPIES = "httproute/diagnostics-prod-0/tumour/rule/1-mirror-0"


def test_envoy_gateways_requests_are_counted_by_the_pods_that_got_them(tmp_path: Path):
    promtool(tmp_path, ENVOY).check(
        state_metrics()
        | {
            envoy("endpoint_rq_success", APART[0], V1): "0+18x100",
            envoy("endpoint_rq_error", APART[0], V1): "0+2x100",
            envoy("endpoint_rq_success", SHARED, V1): "0+10x100",
            envoy("endpoint_rq_error", SHARED, V1): "0x100",
            envoy("endpoint_rq_success", SHARED, V2): "0+5x100",
            envoy("endpoint_rq_error", SHARED, V2): "0+5x100",
            envoy("endpoint_rq_active", SHARED, V2): "3x100",
        },
        {
            "version:requests:rate1m": {V1: 15, V2: 5},
            "version:errors:rate1m": {V1: 1, V2: 2.5},
            "endpoint:errors:rate1m": {ENDPOINT: 3.5},
            "version:in_flight:sum": {V2: 3},
        },
    )


def test_a_pod_that_goes_takes_its_requests_along_and_none_seem_new(tmp_path: Path):
    """As a sum they would: it falls, as if it had begun anew."""
    other = envoy("endpoint_rq_success", APART[0], V1).replace(PODS[V1], "10.0.0.9")
    none = [
        envoy("endpoint_rq_error", APART[0], V1),
        envoy("endpoint_rq_error", APART[0], V1).replace(PODS[V1], "10.0.0.9"),
    ]
    pod = f'namespace="{NAMESPACES[V1]}",pod="server-9",uid="9"'
    promtool(tmp_path, ENVOY).check(
        state_metrics()
        | {
            f'kube_pod_info{{{pod},pod_ip="10.0.0.9"}}': "1x200",
            f"kube_pod_created{{{pod}}}": "100x200",
            envoy("endpoint_rq_success", APART[0], V1): "50000+10x100",
            other: "70000+10x50 stale",
            none[0]: "0x100",
            none[1]: "0x50 stale",
        },
        {"version:requests:rate1m": {V1: 5}},
    )


def test_an_address_that_was_another_pods_before_is_its_present_pods(tmp_path: Path):
    pod = f'namespace="{NAMESPACES[V1]}",pod="evicted",uid="9"'
    promtool(tmp_path, ENVOY).check(
        state_metrics()
        | {
            f'kube_pod_info{{{pod},pod_ip="{PODS[V2]}"}}': "1x200",
            f"kube_pod_created{{{pod}}}": "50x200",
            envoy("endpoint_rq_success", APART[1], V2): "0+10x100",
            envoy("endpoint_rq_error", APART[1], V2): "0x100",
        },
        {"version:requests:rate1m": {V2: 5}},
    )


def test_times_are_a_versions_where_a_cluster_is_its_alone(tmp_path: Path):
    def buckets(cluster: str) -> dict[str, str]:
        return {
            envoy("upstream_rq_time_bucket", cluster, rest=f',le="{bound}"'): f"0+{count}x100"
            for bound, count in (("10", 50), ("25", 100), ("+Inf", 100))
        }

    promtool(tmp_path, ENVOY).check(
        state_metrics()
        | {
            envoy("endpoint_healthy", APART[0], V1): "1x100",
            envoy("endpoint_healthy", SHARED, V1): "1x100",
            envoy("endpoint_healthy", SHARED, V2): "1x100",
        }
        | buckets(APART[0])
        | buckets(SHARED),
        {"version:latency_ms:p50_1m": {V1: 10}, "endpoint:latency_ms:p50_1m": {ENDPOINT: 10}},
    )


def test_copies_are_the_shadows_requests_and_no_clients(tmp_path: Path):
    promtool(tmp_path, ENVOY).check(
        state_metrics()
        | {
            envoy("endpoint_rq_success", COPIES, V2): "0+5x100",
            envoy("endpoint_rq_error", COPIES, V2): "0+5x100",
        },
        {
            "version:requests:rate1m": {V2: 5},
            "version:errors:ratio1m": {V2: 0.5},
            'version:requests:total{source="client"}': None,
            "endpoint:requests:rate1m": None,
        },
    )


# -- what Pods and nodes use


def container(metric: str, version: str, pod: str, name: str = "server") -> str:
    return (
        f'{metric}{{namespace="{NAMESPACES[version]}",pod="{pod}",container="{name}",instance="node-a",job="cadvisor"}}'
    )


def test_processor_time_and_memory_are_those_of_a_versions_containers(tmp_path: Path):
    cpu, memory = "container_cpu_usage_seconds_total", "container_memory_working_set_bytes"
    promtool(tmp_path, TRAEFIK).check(
        state_metrics()
        | {
            container(cpu, V1, "server-0"): "0+3x100",
            container(cpu, V1, "server-1"): "9000+1x100",
            # The Pod as a whole, and its pause container.
            container(cpu, V1, "server-0", ""): "0+4x100",
            container(cpu, V1, "server-0", "POD"): "0+1x100",
            container(memory, V1, "server-0"): "4096x100",
            container(memory, V1, "server-1"): "4096x100",
        },
        {
            "version:cpu:cores": {V1: 2},
            "version:memory:bytes": {V1: 8192},
            'version:cpu_seconds:total{pod="server-0"}': {f'{V1},instance="node-a",pod="server-0"': 180},
        },
    )


def test_the_node_is_what_the_kubelet_says_of_its_root(tmp_path: Path):
    root = 'id="/",instance="node-a",job="cadvisor"'
    promtool(tmp_path, TRAEFIK).check(
        {
            f"container_cpu_usage_seconds_total{{{root}}}": "0+4x100",
            f"container_memory_working_set_bytes{{{root}}}": "25x100",
            f'container_fs_usage_bytes{{{root},device="/dev/sda1"}}': "90x100",
            f'container_fs_limit_bytes{{{root},device="/dev/sda1"}}': "100x100",
            f'container_fs_usage_bytes{{{root},device="/dev/sdb1"}}': "10x100",
            f'container_fs_limit_bytes{{{root},device="/dev/sdb1"}}': "100x100",
            f'container_fs_usage_bytes{{{root},device="overlay"}}': "0x100",
            f'container_fs_limit_bytes{{{root},device="overlay"}}': "0x100",
            'machine_cpu_cores{instance="node-a",job="cadvisor"}': "8x100",
            'machine_memory_bytes{instance="node-a",job="cadvisor"}': "100x100",
        },
        {
            "node:cpu:ratio": {'instance="node-a"': 0.25},
            "node:memory:ratio": {'instance="node-a"': 0.25},
            "node:disk:ratio": {'instance="node-a"': 0.9},
        },
    )


def test_a_gpu_that_pods_share_counts_once(tmp_path: Path):
    def dcgm(metric: str, pod: str) -> str:
        return f'DCGM_FI_DEV_{metric}{{gpu="0",UUID="GPU-1",modelName="H200",pod="{pod}",instance="node-a"}}'

    series = {
        dcgm(metric, pod): f"{value}x100"
        for metric, value in (("GPU_UTIL", 50), ("FB_USED", 30), ("FB_FREE", 10))
        for pod in ("a", "b")
    }
    promtool(tmp_path, TRAEFIK).check(
        series,
        {
            "node:gpu:ratio": {'instance="node-a",gpu="0"': 0.5},
            "node:gpu_memory:ratio": {'instance="node-a",gpu="0"': 0.75},
        },
    )


def test_replicas_are_those_of_a_deployment_or_of_the_groups_of_a_leader_worker_set(tmp_path: Path):
    of_1, of_2 = (f'namespace="{NAMESPACES[version]}"' for version in (V1, V2))
    promtool(tmp_path, TRAEFIK).check(
        state_metrics()
        | {
            f'kube_deployment_spec_replicas{{{of_1},deployment="server"}}': "3x100",
            f'kube_deployment_status_replicas_ready{{{of_1},deployment="server"}}': "2x100",
            f'kube_statefulset_replicas{{{of_2},statefulset="server"}}': "2x100",
            f'kube_statefulset_status_replicas_ready{{{of_2},statefulset="server"}}': "1x100",
            # A group's other nodes.
            f'kube_statefulset_replicas{{{of_2},statefulset="server-0"}}': "7x100",
            f'kube_statefulset_status_replicas_ready{{{of_2},statefulset="server-0"}}': "7x100",
        },
        {
            "version:replicas:desired": {V1: 3, V2: 2},
            "version:replicas:ready": {V1: 2, V2: 1},
        },
    )
