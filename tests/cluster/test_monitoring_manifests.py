"""Monitoring's objects: what they say, that the API server takes each as it is, and that the programs take theirs."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.monitoring import metrics_url, monitoring_objects
from infra.cluster.manifests.monitoring.errors import MonitoringError
from infra.cluster.manifests.monitoring.gateways import KINDS, gateway_kind
from infra.cluster.manifests.teams import pod_security
from infra.monitoring.alerts import alert_rules
from infra.monitoring.data_planes import GATEWAYS
from infra.monitoring.data_planes.traefik import traefik
from infra.monitoring.rules import recording_rules
from infra.settings.cluster import ClusterSettings
from tests.cluster.control_plane import ControlPlane
from tests.deadline import until
from tests.unit.promtool import found as promtool

IMAGE = "registry.example.org/monitoring/{}@sha256:" + "0123456789abcdef" * 4
IMAGES = {key: IMAGE.format(key) for key in ("prometheus", "alertmanager", "grafana", "kube_state_metrics")}
CONTROLLER = "traefik.io/gateway-controller"
_SECONDS = 60
CONFIG_MAP_LIMIT = 2**20
"""Bytes: https://kubernetes.io/docs/concepts/configuration/configmap/"""


def settings(
    images: dict[str, str] | None = None, gateway: dict[str, Any] | None = None, **monitoring: Any
) -> ClusterSettings:
    return ClusterSettings.model_validate(
        {
            "namespace": "lepton",
            "teams": {"diagnostics": {}},
            "gateway": {"class_name": "traefik"} | (gateway or {}),
            "images": {"pull_secrets": ["registry"]} | (IMAGES if images is None else images),
            "monitoring": {"grafana_secret": "grafana"} | monitoring,
        }
    )


def objects(
    given: ClusterSettings | None = None, controller: str = CONTROLLER, environment: str = "prod"
) -> list[Manifest]:
    return monitoring_objects(given or settings(), environment, controller)


def named(made: list[Manifest], kind: str, name: str) -> Manifest:
    (one,) = [manifest for manifest in made if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name)]
    return one


def workloads(made: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in made if manifest["kind"] in {"Deployment", "StatefulSet"}]


def data(made: list[Manifest], config_map: str, key: str) -> Any:
    return yaml.safe_load(named(made, "ConfigMap", config_map)["data"][key])


OPERATOR: dict[str, Any] = {"kind": "operator", "url": "kubernetes://monitoring/prometheus:9090"}


# -- what there is


def test_a_prometheus_elsewhere_needs_no_objects() -> None:
    assert objects(settings(images={}, kind="external", url="https://prometheus.example.org")) == []


def test_without_a_secret_for_its_administrator_there_is_no_grafana() -> None:
    made = objects(settings(grafana_secret=None))
    assert {manifest["metadata"]["name"] for manifest in workloads(made)} == {
        "prometheus",
        "alertmanager",
        "kube-state-metrics",
    }


def test_all_objects_have_names_of_their_own() -> None:
    for made in (objects(), objects(settings(**OPERATOR))):
        names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in made]
        assert len(set(names)) == len(names)


def test_two_environments_share_no_cluster_wide_name() -> None:
    other = settings().model_copy(update={"namespace": "lepton-dev"})
    names = [
        {m["metadata"]["name"] for m in objects(given) if m["kind"].startswith("ClusterRole")}
        for given in (settings(), other)
    ]
    assert names[0]
    assert not names[0] & names[1]


@pytest.mark.parametrize("key", ["prometheus", "alertmanager", "grafana", "kube_state_metrics"])
def test_a_missing_image_is_named_by_its_key(key: str) -> None:
    images = {name: image for name, image in IMAGES.items() if name != key}
    with pytest.raises(MonitoringError, match=rf"lepton:platform\.cluster\.images\.{key}: not given"):
        objects(settings(images=images))


def test_prometheus_is_reached_through_the_api_server_unless_a_url_is_given() -> None:
    service = named(objects(), "Service", "prometheus")
    assert metrics_url(settings()) == (
        f"kubernetes://{service['metadata']['namespace']}/prometheus:{service['spec']['ports'][0]['port']}"
    )
    assert metrics_url(settings(url="https://p.example.org")) == "https://p.example.org"


# -- the gateway


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_class_controller_tells_whose_metrics_count(kind: Any) -> None:
    assert gateway_kind(settings(), kind.controllers[0]) is kind
    assert data(objects(controller=kind.controllers[0]), "prometheus-rules", "rules.yml") == recording_rules(
        GATEWAYS[kind.name]("prod")
    )


def test_settings_tell_it_against_the_controller() -> None:
    given = settings(gateway={"metrics": "istio"})
    assert gateway_kind(given, CONTROLLER).name == "istio"


def test_a_controller_that_nobody_knows_is_refused_with_what_is_known() -> None:
    with pytest.raises(
        MonitoringError, match=r"gateway\.metrics: not given, .*'io\.cilium/gateway-controller'.*'istio'"
    ):
        objects(controller="io.cilium/gateway-controller")


def test_a_cluster_that_is_yet_to_be_made_needs_to_be_told() -> None:
    with pytest.raises(MonitoringError, match="has no GatewayClass to tell"):
        objects(controller="")
    assert objects(settings(gateway={"metrics": "istio"}), controller="")


# -- Pods


def test_no_update_waits_for_secrets_that_nobody_can_have_made_yet() -> None:
    def unawaited(**monitoring: Any) -> set[tuple[str, str]]:
        return {
            (made["kind"], made["metadata"]["name"])
            for made in objects(settings(**monitoring))
            if "pulumi.com/skipAwait" in made["metadata"].get("annotations", {})
        }

    grafana = {("Deployment", "grafana"), ("Service", "grafana")}
    assert unawaited() == grafana
    assert unawaited(alert_secrets=["pager"]) == grafana | {
        ("StatefulSet", "alertmanager"),
        ("Service", "alertmanager"),
    }


def test_a_changed_config_makes_new_pods_of_what_reads_it() -> None:
    def checksums(given: ClusterSettings) -> dict[str, str]:
        return {
            made["metadata"]["name"]: made["spec"]["template"]["metadata"]["annotations"]["lepton/config-checksum"]
            for made in workloads(objects(given))
        }

    before, after = checksums(settings()), checksums(settings(scrape_interval="7s"))
    assert before == checksums(settings())
    assert {name for name in before if before[name] != after[name]} == {"prometheus", "grafana"}


def test_no_program_may_write_but_to_its_volumes() -> None:
    for made in workloads(objects()):
        (container,) = made["spec"]["template"]["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        written = {mount["name"] for mount in container.get("volumeMounts", []) if not mount.get("readOnly")}
        volumes = {volume["name"]: volume for volume in made["spec"]["template"]["spec"].get("volumes", [])}
        assert all("emptyDir" in volumes[name] for name in written - {"data"})


def test_prometheus_keeps_what_its_volume_has_room_for() -> None:
    made = named(objects(settings(storage="100Gi", retention="30d", storage_class="fast")), "StatefulSet", "prometheus")
    (claim,) = made["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "100Gi"
    assert claim["spec"]["storageClassName"] == "fast"
    arguments = made["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--storage.tsdb.retention.time=2592000s" in arguments
    (size,) = [argument for argument in arguments if "retention.size" in argument]
    assert 0.8 * 100 * 2**30 < int(size.partition("=")[2].removesuffix("B")) < 0.9 * 100 * 2**30


def test_grafana_takes_its_administrator_from_the_secret_and_lets_nobody_else_in() -> None:
    made = named(objects(), "Deployment", "grafana")
    variables = {one["name"]: one for one in made["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert variables["GF_SECURITY_ADMIN_PASSWORD"]["valueFrom"]["secretKeyRef"] == {
        "name": "grafana",
        "key": "admin-password",
    }
    assert variables["GF_AUTH_ANONYMOUS_ENABLED"]["value"] == "false"


def test_grafanas_dashboards_ask_the_data_source_that_it_has() -> None:
    made = objects()
    (source,) = data(made, "grafana-provisioning", "datasources.yaml")["datasources"]
    assert source["url"] == "http://prometheus.lepton.svc:9090"
    for text in named(made, "ConfigMap", "grafana-dashboards")["data"].values():
        asked = {panel["datasource"]["uid"] for panel in json.loads(text)["panels"]}
        assert asked == {source["uid"]}


def test_config_maps_are_within_their_limit() -> None:
    for controller in (kind.controllers[0] for kind in KINDS):
        for manifest in objects(controller=controller):
            if manifest["kind"] == "ConfigMap":
                assert sum(map(len, manifest["data"].values())) < CONFIG_MAP_LIMIT / 4, manifest["metadata"]["name"]


# -- Alertmanager


def test_the_first_receiver_gets_what_no_other_does() -> None:
    receivers = [{"name": "on-call", "webhook_configs": [{"url": "http://hook.example.org"}]}, {"name": "nobody"}]
    config = data(objects(settings(alert_receivers=receivers)), "alertmanager-config", "alertmanager.yml")
    assert config["receivers"] == receivers
    assert config["route"]["receiver"] == "on-call"


def test_a_receiver_without_a_name_is_refused() -> None:
    with pytest.raises(MonitoringError, match=r"alert_receivers\[0\]: given no 'name'"):
        objects(settings(alert_receivers=[{"webhook_configs": []}]))


def test_alertmanager_finds_the_secrets_of_its_receivers_as_files() -> None:
    made = named(objects(settings(alert_secrets=["pager"])), "StatefulSet", "alertmanager")
    pod = made["spec"]["template"]["spec"]
    assert {"name": "secret-0", "secret": {"secretName": "pager"}} in pod["volumes"]
    paths = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert "/etc/alertmanager/secrets/pager" in paths


# -- the programs' own judgement


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_promtool_accepts_the_configuration(kind: Any, tmp_path: Path) -> None:
    text = named(objects(controller=kind.controllers[0]), "ConfigMap", "prometheus-config")["data"]["prometheus.yml"]
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run(
        [promtool(), "check", "config", "--syntax-only", "--lint=all", tmp_path / "prometheus.yml"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- the Prometheus Operator's objects


def test_the_operators_rules_are_the_same_text() -> None:
    made = objects(settings(**OPERATOR))
    assert named(made, "PrometheusRule", "lepton-recording")["spec"] == recording_rules(traefik("prod"))
    assert named(made, "PrometheusRule", "lepton-alerts")["spec"] == alert_rules()


def test_the_operators_objects_have_the_labels_that_its_prometheus_selects() -> None:
    made = objects(settings(labels={"release": "stack"}, **OPERATOR))
    own = [manifest for manifest in made if manifest["apiVersion"] == "monitoring.coreos.com/v1"]
    assert {manifest["kind"] for manifest in own} == {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
    assert all(manifest["metadata"]["labels"]["release"] == "stack" for manifest in own)


def test_a_grafana_that_is_there_finds_the_dashboards_by_their_label() -> None:
    dashboards = named(objects(settings(**OPERATOR)), "ConfigMap", "grafana-dashboards")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboards["data"] == named(objects(), "ConfigMap", "grafana-dashboards")["data"]


def test_the_operators_monitors_name_the_jobs_that_alerts_ask_for() -> None:
    made = objects(settings(gateway={"namespace": "traefik"}, **OPERATOR))
    spec = named(made, "PodMonitor", "lepton-gateway")["spec"]
    assert spec["namespaceSelector"] == {"matchNames": ["traefik"]}
    assert {"targetLabel": "job", "replacement": "gateway"} in spec["podMetricsEndpoints"][0]["relabelings"]


def test_the_operators_own_kube_state_metrics_shows_no_annotations_so_ours_comes_beside_it_if_it_can() -> None:
    without = objects(settings(images={}, **OPERATOR))
    assert not workloads(without)
    (ours,) = workloads(objects(settings(**OPERATOR)))
    assert (
        "--metric-annotations-allowlist=services=[lepton/environment,lepton/team,lepton/model,lepton/version]"
        in (ours["spec"]["template"]["spec"]["containers"][0]["args"])
    )


# -- the API server's judgement


@pytest.fixture
def restricted(control_plane: ControlPlane) -> Iterator[str]:
    namespace = control_plane.namespace(f"monitoring-{uuid.uuid4().hex[:8]}", **pod_security("restricted"))
    yield namespace
    control_plane.delete("v1", "Namespace", namespace)


def within(namespace: str, given: ClusterSettings | None = None) -> list[Manifest]:
    return objects((given or settings()).model_copy(update={"namespace": namespace}))


def test_the_api_server_takes_every_object_as_it_is(control_plane: ControlPlane, restricted: str) -> None:
    for manifest in within(restricted):
        control_plane.apply(manifest, dry_run=True)


def test_the_pods_are_restricted(control_plane: ControlPlane, restricted: str) -> None:
    for manifest in within(restricted):
        if manifest["kind"] == "ServiceAccount":
            control_plane.apply(manifest)
    for manifest in workloads(within(restricted)):
        template = manifest["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": manifest["metadata"]["name"], "namespace": restricted},
            "spec": {
                **template["spec"],
                "volumes": [
                    *template["spec"].get("volumes", []),
                    *(
                        {"name": claim["metadata"]["name"], "emptyDir": {}}
                        for claim in manifest["spec"].get("volumeClaimTemplates", [])
                    ),
                ],
            },
        }
        control_plane.apply(pod, dry_run=True)


def test_the_volume_outlives_a_stateful_set_that_is_made_anew_for_another_size(
    control_plane: ControlPlane, restricted: str
) -> None:
    """As the plugin does it: the claim's template can't change, and the name is taken until the old one is gone."""

    def claim() -> Manifest | None:
        return control_plane.get("v1", "PersistentVolumeClaim", "data-prometheus-0", restricted)

    def pod() -> Manifest | None:
        return control_plane.get("v1", "Pod", "prometheus-0", restricted)

    def apply(size: str) -> None:
        made = within(restricted, settings(storage=size))
        control_plane.apply_all(named(made, "ServiceAccount", "prometheus"), named(made, "StatefulSet", "prometheus"))
        until(pod, _SECONDS, what="the Pod")

    apply("10Gi")
    before = claim()
    assert before
    assert "ownerReferences" not in before["metadata"]
    control_plane.delete("apps/v1", "StatefulSet", "prometheus", restricted)
    until(lambda: pod() is None, _SECONDS, what="the Pod's end")
    apply("20Gi")
    after = claim()
    assert after
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert "deletionTimestamp" not in after["metadata"]


READS = {"get", "list", "watch"}
MAY = {
    ("prometheus", "", "pods"): READS,
    ("prometheus", "", "nodes"): READS,
    ("prometheus", "", "nodes/metrics"): {"get"},
    ("kube-state-metrics", "", "pods"): {"list", "watch"},
    ("kube-state-metrics", "", "services"): {"list", "watch"},
    ("kube-state-metrics", "apps", "deployments"): {"list", "watch"},
    ("kube-state-metrics", "apps", "statefulsets"): {"list", "watch"},
}


def test_nothing_may_read_more_of_the_cluster_than_it_needs(control_plane: ControlPlane, restricted: str) -> None:
    made = within(restricted)
    roles = [manifest for manifest in made if manifest["kind"].startswith("ClusterRole")]
    for manifest in roles:
        control_plane.apply(manifest)
    try:
        for account in ("prometheus", "kube-state-metrics", "alertmanager", "grafana"):
            user = f"system:serviceaccount:{restricted}:{account}"
            for group, resource in {(group, resource) for _, group, resource in MAY} | {
                ("", "secrets"),
                ("", "configmaps"),
            }:
                for verb in (*READS, "create", "delete"):
                    wanted = verb in MAY.get((account, group, resource), set())
                    assert _may(control_plane, user, verb, group, resource) == wanted, (account, verb, resource)
    finally:
        for manifest in roles:
            control_plane.delete(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"])


def _may(control_plane: ControlPlane, user: str, verb: str, group: str, resource: str) -> bool:
    from kubernetes import client  # noqa: PLC0415 - slow to import

    name, _, subresource = resource.partition("/")
    attributes = client.V1ResourceAttributes(verb=verb, group=group, resource=name, subresource=subresource)
    spec = client.V1SubjectAccessReviewSpec(user=user, resource_attributes=attributes)
    review = client.AuthorizationV1Api(control_plane.client()).create_subject_access_review(
        client.V1SubjectAccessReview(spec=spec)
    )
    return bool(review.status and review.status.allowed)
