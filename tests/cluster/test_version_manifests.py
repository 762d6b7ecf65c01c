"""A version's objects: what they say, and that the API server takes each of them as it is."""

from __future__ import annotations

import base64
import copy
import json
import re
import uuid
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.cluster.internals import ClusterInternals, PoolFacts
from infra.cluster.live.handover import hand_over_replicas
from infra.cluster.live.logins import LoginRefused, read_logins
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.autoscaling import autoscaler
from infra.cluster.manifests.disruption import disruption_budget
from infra.cluster.manifests.identity import environment_secret, namespace, service_account
from infra.cluster.manifests.isolation import network_policies, reference_grant
from infra.cluster.manifests.model_volume import MODEL_FOLDER, REGISTRIES, trusted_keys
from infra.cluster.manifests.priorities import priority_classes
from infra.cluster.manifests.quantities import number, parse, size
from infra.cluster.manifests.registry import pull_secret
from infra.cluster.manifests.scheduling import defaults, gpu_resource, promised, resource_claims, resource_quota
from infra.cluster.manifests.version import Version
from infra.cluster.manifests.workload import server_command, service, workload
from infra.cluster.names import LONGEST_NAME, label_value, version_namespace
from infra.cluster.refusals import QuotaExceeded, VersionRefused, refuse_beyond_quota, refuse_impossible
from infra.settings import EndpointSettings, SettingsError, VersionSettings, parse_settings
from infra.settings.version import mlserver
from model_packaging.forms.image import MODEL_DIR
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import GatewayClass
from tests.cluster.kwok_nodes import NEVER_READY, KwokNodes
from tests.deadline import until
from tests.plugins.kubernetes.api import ApiError

HASH = "0123456789abcdef" * 4
IMAGE = f"registry.example.org/mlserver@sha256:{HASH}"
PULLER = f"registry.example.org/lepton@sha256:{HASH}"
MODEL_IMAGE = f"registry.example.org/tumour@sha256:{HASH}"
DIGEST = f"sha256:{HASH}"
H100 = "NVIDIA-H100-80GB-HBM3"
FEATURES = ["image-volumes", "dynamic-resource-allocation", "leader-worker-sets", "keda", "kueue"]
PUBLIC_KEY = "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"


def pool(name: str, resource: str | None = None, product: str | None = None, **labels: str) -> PoolFacts:
    tolerations = [{"key": "pool", "operator": "Equal", "value": name, "effect": "NoSchedule"}]
    return {
        "name": name,
        "labels": labels or {"pool": name},
        "gpu_resource": resource,
        "product": product,
        "tolerations": tolerations,
    }


POOLS = [pool("cpu"), pool("h100", "nvidia.com/gpu", H100), pool("sliced", "nvidia.com/mig-1g.10gb", "NVIDIA-A100")]


def internals(**given: Any) -> ClusterInternals:
    found: dict[str, Any] = {
        "environment": "dev",
        "namespace": "lepton",
        "connection": {"kubeconfig": None, "context": None, "document": None},
        "gateway": {
            "name": "lepton", "namespace": "lepton", "class_name": "traefik", "controller": "x", "features": [],
            "listeners": {}, "hostnames": {}, "pods_namespace": "traefik",
        },
        "teams": {"diagnostics": {"namespace": "diagnostics-dev-1", "quota": {}, "limits": {}, "queue": None}},
        "images": {"server": IMAGE, "puller": PULLER, "pull_secrets": []},
        "pools": POOLS,
        "features": FEATURES,
        "monitoring_namespace": "monitoring",
    }  # fmt: skip
    return {**found, **given}  # type: ignore[typeddict-item]


def team(**given: Any) -> dict[str, Any]:
    return {"diagnostics": {**internals()["teams"]["diagnostics"], **given}}


def version(platform: ClusterInternals | None = None, *, of: dict[str, Any] | None = None, **given: Any) -> Version:
    """`given`: the config; `of`: what else the version is made of."""
    config = {"environment": "dev", "model": "tumour", "version": "1.0.0"} | given
    settings = parse_settings(VersionSettings, config, file="Pulumi.yaml", key="lepton:version")
    found = {
        "team": "diagnostics",
        "settings": settings,
        "server": settings.server or mlserver(),
        "internals": platform or internals(),
        "image": settings.image or (platform or internals())["images"]["server"] or "",
        "digest": DIGEST,
        "size": 1000,
        "store": "oci://registry.example.org:5000/models",
        "prometheus": "http://prometheus.lepton.svc:9090",
        "git_commit": "c0ffee" * 6 + "c0ff",
        "stage": "testing",
    }
    return Version(**{**found, **(of or {})})


def objects(made: Version) -> list[Manifest]:
    """Everything of a version, in the order in which it is made."""
    return [
        namespace(made),
        service_account(made),
        *network_policies(made),
        *defaults(made),
        resource_quota(made),
        *resource_claims(made),
        *trusted_keys(made),
        *([environment_secret(made, server_command(made)[1])] if made.secret else []),
        reference_grant(made),
        disruption_budget(made),
        workload(made),
        *autoscaler(made),
        service(made),
    ]


def pod_spec(made: Version) -> dict[str, Any]:
    return workload(made)["spec"]["template"]["spec"]


def server_of(made: Version) -> dict[str, Any]:
    (container,) = pod_spec(made)["containers"]
    return container


def puller_of(made: Version) -> dict[str, Any]:
    (container,) = pod_spec(made)["initContainers"]
    return container


def problems(made: Version) -> str:
    with pytest.raises(VersionRefused) as refused:
        refuse_impossible(made)
    return str(refused.value)


# -- names and quantities

LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
VERSIONS = st.from_regex(r"(0|[1-9]\d{0,3})\.\d\.\d(-[0-9a-zA-Z-]{1,80})?", fullmatch=True).filter(str.isascii)
IDENTITIES = st.tuples(LABELS, LABELS, LABELS, VERSIONS)
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@given(IDENTITIES, IDENTITIES)
@hypothesis_settings(max_examples=300)
def test_versions_have_namespaces_of_their_own(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    names = [version_namespace(*identity) for identity in (one, other)]
    assert all(_DNS_1123.fullmatch(name) and len(name) <= LONGEST_NAME for name in names)
    assert (names[0] == names[1]) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("dev", "a", "b-c", "1.0.0"), ("dev", "a-b", "c", "1.0.0")),
        (("dev", "a", "b", "1.0.0-rc.1"), ("dev", "a", "b", "1.0.0-rc-1")),
        (("dev", "a", "b", "1.0.0-RC"), ("dev", "a", "b", "1.0.0-rc")),
        (("dev", "a", "b-1", "0.0.1"), ("dev", "a", "b", "10.0.1")),
        (("dev", "a", "b", "1.0.0"), ("prod", "a", "b", "1.0.0")),
    ],
)
def test_names_that_read_alike_are_told_apart(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert version_namespace(*one) != version_namespace(*other)


@given(VERSIONS)
def test_every_version_makes_a_label(given_version: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label_value(given_version))


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", Fraction(1, 2)), ("2", 2), ("8Gi", 2**33), ("1.5", Fraction(3, 2)), ("1e3", 1000), ("100k", 100_000)],
)
def test_quantities_are_read_as_kubernetes_means_them(text: str, value: Fraction | int) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "1GiB", "1 Gi", "-", "1e", "0x1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        parse(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_size_comes_back(count: int) -> None:
    assert parse(size(count)) == count


@given(st.integers(min_value=1, max_value=10**6))
def test_thousandths_come_back(thousandths: int) -> None:
    assert parse(number(thousandths / 1000)) == Fraction(thousandths, 1000)


# -- the namespace and who it is


def test_the_namespace_says_whose_it_is_and_takes_restricted_pods_alone() -> None:
    labels = namespace(version())["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {name: labels[f"lepton/{name}"] for name in ("team", "model", "version", "stage", "git-commit")} == {
        "team": "diagnostics",
        "model": "tumour",
        "version": "1.0.0",
        "stage": "testing",
        "git-commit": "c0ffee" * 6 + "c0ff",
    }


def test_a_stage_is_no_label_of_pods_as_they_would_be_replaced_with_it() -> None:
    earlier, later = (workload(version(of={"stage": stage})) for stage in ("testing", "released"))
    assert earlier == later


@pytest.mark.parametrize("access", [False, True])
def test_a_pod_has_a_token_of_the_api_only_if_asked_for(access: bool) -> None:
    made = version(api_access=access)
    assert pod_spec(made)["automountServiceAccountToken"] is access
    assert service_account(made)["automountServiceAccountToken"] is access


# -- the server


def test_the_server_listens_where_the_service_sends_requests_and_has_its_model() -> None:
    container = server_of(version(server={"command": ["serve", "{host}:{http_port}", "{model_dir}", "{version}"]}))
    assert container["command"] == ["serve", "0.0.0.0:8080", "/models/model", "1.0.0"]
    assert [port["targetPort"] for port in service(version())["spec"]["ports"]] == ["http", "grpc", "metrics"]


def test_a_server_that_speaks_http_alone_has_that_port_alone() -> None:
    made = version(server={"command": ["serve"]})
    assert [port["name"] for port in server_of(made)["ports"]] == ["http"]
    assert [port["name"] for port in service(made)["spec"]["ports"]] == ["http"]


def test_kubernetes_fills_nothing_in_that_is_not_its_own() -> None:
    made = version(server={"command": ["serve", "$(HOME)", "$$x"], "env": {"A": "$(B)"}})
    assert server_of(made)["command"][1:] == ["$$(HOME)", "$$$$x"]
    assert {"name": "A", "value": "$$(B)"} in server_of(made)["env"]


def test_secret_variables_are_in_a_secret_alone_and_change_the_pods() -> None:
    one, other = (version(env={"TOKEN": token}, of={"secret": True}) for token in ("s3cret", "other"))
    assert "s3cret" not in json.dumps(workload(one))
    data = environment_secret(one, server_command(one)[1])["data"]
    assert base64.b64decode(data["TOKEN"]) == b"s3cret"
    templates = [workload(made)["spec"]["template"] for made in (one, other)]
    assert templates[0] != templates[1]
    assert templates[0] == workload(one)["spec"]["template"]


@pytest.mark.parametrize(
    ("server", "ready", "live"),
    [
        ({"command": ["serve"]}, "/v2/health/ready", "/v2/health/live"),
        ({"command": ["serve"], "protocol": "openai", "ready_path": "/health"}, "/health", "/health"),
        ({"command": ["serve"], "ready_path": "/v2/models/tumour/ready"}, "/v2/models/tumour/ready", "/v2/health/live"),
    ],
)
def test_probes_ask_on_the_protocols_paths(server: dict[str, Any], ready: str, live: str) -> None:
    container = server_of(version(server=server))
    paths = [container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert paths == [ready, ready, live]


@pytest.mark.parametrize("timeout", ["500ms", "90s", "121s", "1h"])
def test_a_replica_may_take_its_whole_time_to_start(timeout: str) -> None:
    made = version(ready_timeout=timeout)
    probe = server_of(made)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= made.settings.ready_timeout
    assert workload(made)["spec"]["progressDeadlineSeconds"] >= made.settings.ready_timeout


def test_a_replica_that_goes_answers_what_it_has() -> None:
    made = version(drain_timeout="90s")
    sleep = server_of(made)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep > 0
    assert pod_spec(made)["terminationGracePeriodSeconds"] == sleep + 90


def test_an_update_makes_replicas_before_it_takes_as_many_in_few_rounds() -> None:
    rolling = {"maxSurge": "25%", "maxUnavailable": 0}
    for resources in ({}, {"gpu": 1}):
        assert workload(version(resources=resources))["spec"]["strategy"]["rollingUpdate"] == rolling
    group = workload(version(nodes_per_replica=2))["spec"]["rolloutStrategy"]
    assert group["rollingUpdateConfiguration"] == rolling


def test_a_replica_that_goes_has_time_for_the_longest_request_by_default() -> None:
    assert (
        version().drain_seconds
        == EndpointSettings.model_fields["timeouts"].get_default(call_default_factory=True).total
    )


# -- the model


def test_the_model_is_where_exported_images_have_it() -> None:
    assert MODEL_FOLDER.endswith(f"/{MODEL_DIR}")


def test_the_model_is_pulled_by_its_digest_and_the_server_cannot_change_it() -> None:
    made = version()
    assert puller_of(made)["command"] == [
        "lepton", "package", "pull", "oci://registry.example.org:5000/models", f"tumour@{DIGEST}", MODEL_FOLDER,
    ]  # fmt: skip
    assert puller_of(made)["image"] == PULLER
    (mount,) = [mount for mount in server_of(made)["volumeMounts"] if mount["name"] == "model"]
    assert mount["readOnly"] is True


def test_the_volume_has_room_for_the_model_twice() -> None:
    (volume,) = [volume for volume in pod_spec(version(of={"size": 10**10}))["volumes"] if volume["name"] == "model"]
    assert 2 * 10**10 < parse(volume["emptyDir"]["sizeLimit"]) < 3 * 10**10


def test_the_puller_verifies_the_signature_where_one_is_asked_for() -> None:
    made = version(of={"trusted_keys": (PUBLIC_KEY, PUBLIC_KEY)})
    (keys,) = trusted_keys(made)
    files = [part for part in puller_of(made)["command"] if part.endswith(".pub")]
    assert [file.rpartition("/")[2] for file in files] == list(keys["data"])
    (mount,) = [mount for mount in puller_of(made)["volumeMounts"] if mount["name"] == "trusted-keys"]
    assert {file.rpartition("/")[0] for file in files} == {mount["mountPath"]}


def test_the_puller_has_the_logins_of_the_pull_secrets() -> None:
    made = version(internals(images={"server": IMAGE, "puller": PULLER, "pull_secrets": ["registry"]}))
    assert pod_spec(made)["imagePullSecrets"] == [{"name": REGISTRIES}]
    (mount,) = [mount for mount in puller_of(made)["volumeMounts"] if mount["name"] == REGISTRIES]
    assert {"name": "DOCKER_CONFIG", "value": mount["mountPath"]} in puller_of(made)["env"]


ECR_STORE = "oci://123456789012.dkr.ecr.eu-west-1.amazonaws.com/models"
ON_EKS = internals(aws={"region": "eu-west-1", "cluster": "dev", "puller_role_arn": "arn:aws:iam::123456789012:role/p"})


def test_on_eks_the_puller_asks_ecr_as_the_role_of_its_pods() -> None:
    made = version(ON_EKS, of={"store": ECR_STORE})
    assert made.takes_role
    assert any(mount["name"] == REGISTRIES for mount in puller_of(made)["volumeMounts"])
    # Nodes log in there by themselves.
    assert "imagePullSecrets" not in pod_spec(made)
    agents = [
        rule["to"] for rule in policy_of(made)["egress"] if rule.get("ports") == [{"protocol": "TCP", "port": 80}]
    ]
    assert agents == [[{"ipBlock": {"cidr": "169.254.170.23/32"}}, {"ipBlock": {"cidr": "fd00:ec2::23/128"}}]]


@pytest.mark.parametrize(
    ("platform", "store", "config"),
    [
        (internals(), ECR_STORE, {}),
        (ON_EKS, "oci://registry.example.org/models", {}),
        (ON_EKS, ECR_STORE, {"model_image": MODEL_IMAGE}),
    ],
    ids=["another cluster", "another registry", "nothing to pull"],
)
def test_elsewhere_no_role_is_taken(platform: ClusterInternals, store: str, config: dict[str, Any]) -> None:
    made = version(platform, of={"store": store}, **config)
    assert not made.takes_role
    assert not made.has_logins


def test_a_model_image_is_mounted_where_the_cluster_can() -> None:
    made = version(model_image=MODEL_IMAGE)
    (volume,) = [volume for volume in pod_spec(made)["volumes"] if volume["name"] == "model"]
    assert volume["image"]["reference"] == MODEL_IMAGE
    assert "initContainers" not in pod_spec(made)


@pytest.mark.parametrize(
    ("platform", "of"),
    [(internals(features=[]), {}), (internals(), {"trusted_keys": (PUBLIC_KEY,)})],
    ids=["the cluster can't", "nobody signed the image"],
)
def test_a_model_is_pulled_where_its_image_cannot_or_may_not_be_mounted(
    platform: ClusterInternals, of: dict[str, Any]
) -> None:
    made = version(platform, of=of, model_image=MODEL_IMAGE)
    refuse_impossible(made)
    assert puller_of(made)["image"] == PULLER


# -- how many


@pytest.mark.parametrize("replicas", [0, 1, 5])
def test_a_fixed_number_of_replicas_is_the_deployments(replicas: int) -> None:
    made = version(replicas=replicas)
    assert workload(made)["spec"]["replicas"] == replicas
    assert autoscaler(made) == []


@pytest.mark.parametrize("scaler", ["hpa", "keda"])
def test_where_an_autoscaler_owns_the_number_the_deployment_says_none(scaler: str) -> None:
    made = version(autoscaling={"min": 2, "max": 8, "by": "in-flight", "target": 4, "scaler": scaler})
    assert "replicas" not in workload(made)["spec"]
    assert (made.settings.first_replicas, made.most) == (2, 8)
    (found,) = autoscaler(made)
    assert found["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "server"}


def test_no_replicas_are_none_though_there_is_autoscaling() -> None:
    made = version(replicas=0, autoscaling={"max": 8, "target": 0.5}, resources={"cpu": 1})
    assert workload(made)["spec"]["replicas"] == 0
    assert autoscaler(made) == []
    assert (made.settings.first_replicas, made.most) == (0, 0)


@pytest.mark.parametrize(
    ("replicas", "least", "first"), [(1, 1, 1), (1, 4, 4), (5, 2, 5), (20, 1, 8), (0, 2, 0)], ids=str
)
def test_a_version_that_scales_begins_with_its_replicas_within_its_bounds(
    replicas: int, least: int, first: int
) -> None:
    made = version(replicas=replicas, autoscaling={"min": least, "max": 8, "target": 0.5}, resources={"cpu": 1})
    assert made.settings.first_replicas == first


@pytest.mark.parametrize(
    ("scaling", "metric"),
    [
        (
            {"by": "cpu", "target": 0.75},
            {
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 75}},
            },
        ),
        (
            {"by": "gpu", "target": 0.5},
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "DCGM_FI_DEV_GPU_UTIL"},
                    "target": {"type": "AverageValue", "averageValue": "50"},
                },
            },
        ),
        (
            {"by": "in-flight", "target": 2.5},
            {
                "type": "External",
                "external": {
                    "metric": {
                        "name": "version:in_flight:sum",
                        "selector": {"matchLabels": {"team": "diagnostics", "model": "tumour", "version": "1.0.0"}},
                    },
                    "target": {"type": "AverageValue", "averageValue": "2500m"},
                },
            },
        ),
        (
            {"by": "queue", "query": "jobs_waiting", "target": 10},
            {
                "type": "External",
                "external": {
                    "metric": {"name": "jobs_waiting"},
                    "target": {"type": "AverageValue", "averageValue": "10"},
                },
            },
        ),
    ],
    ids=lambda value: value.get("by"),
)
def test_a_horizontal_pod_autoscaler_asks_for(scaling: dict[str, Any], metric: dict[str, Any]) -> None:
    (found,) = autoscaler(version(autoscaling={"max": 8, **scaling}, resources={"cpu": 1, "gpu": 1}))
    assert found["spec"]["metrics"] == [metric]
    assert (found["spec"]["minReplicas"], found["spec"]["maxReplicas"]) == (1, 8)


@pytest.mark.parametrize(
    ("scaling", "query"),
    [
        (
            {"by": "in-flight", "target": 2},
            'sum(version:in_flight:sum{team="diagnostics", model="tumour", version="1.0.0"})',
        ),
        ({"by": "queue", "query": "sum(jobs_waiting) / 2", "target": 10}, "sum(jobs_waiting) / 2"),
    ],
)
def test_keda_asks_prometheus(scaling: dict[str, Any], query: str) -> None:
    (found,) = autoscaler(version(autoscaling={"min": 0, "max": 8, "scaler": "keda", **scaling}))
    (trigger,) = found["spec"]["triggers"]
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus.lepton.svc:9090",
        "query": query,
        "threshold": f"{scaling['target']}",
    }
    assert (found["spec"]["minReplicaCount"], found["spec"]["maxReplicaCount"]) == (0, 8)


def test_keda_counts_a_replicas_gpus_as_one_share() -> None:
    scaling = {"max": 8, "scaler": "keda", "by": "gpu", "target": 0.5}
    made = version(autoscaling=scaling, resources={"gpu": 4})
    (trigger,) = autoscaler(made)[0]["spec"]["triggers"]
    assert trigger["metadata"]["query"].endswith(" / 400")
    assert trigger["metadata"]["query"].count(made.namespace) == 2


@pytest.mark.parametrize(
    "scaling",
    [
        {"min": 0, "max": 2, "by": "gpu", "target": 0.5, "scaler": "keda"},
        {"min": 0, "max": 2, "by": "in-flight", "target": 1},
        {"min": 3, "max": 2, "target": 0.5},
        {"max": 2, "by": "queue", "target": 1},
    ],
)
def test_autoscaling_that_nothing_can_do_is_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="autoscaling"):
        version(autoscaling=scaling)


def test_one_replica_at_a_time_may_be_taken_however_many_there_are() -> None:
    for replicas in (1, 5):
        assert disruption_budget(version(replicas=replicas))["spec"]["maxUnavailable"] == 1


# -- what it gets, and where


@pytest.mark.parametrize(
    "resources",
    [
        {"cpu": 2, "memory": "4Gi"},
        {"cpu": 0.25, "memory": "512Mi", "gpu": 2},
        {"gpu": 1, "mig": "1g.10gb"},
        {"gpu": 1, "gpu_shared": True},
    ],
)
def test_a_replica_is_promised_what_it_may_have(resources: dict[str, Any]) -> None:
    for container in (server_of(version(resources=resources)), puller_of(version(resources=resources))):
        assert container["resources"].get("requests") == container["resources"].get("limits")


@pytest.mark.parametrize(
    ("resources", "place", "resource"),
    [
        ({"gpu": 1}, None, "nvidia.com/gpu"),
        ({"gpu": 1}, "h100", "nvidia.com/gpu"),
        ({"gpu": 1}, "sliced", "nvidia.com/mig-1g.10gb"),
        ({"gpu": 1, "mig": "3g.40gb"}, None, "nvidia.com/mig-3g.40gb"),
        ({"gpu": 1, "mig": "1g.10gb+me"}, None, "nvidia.com/mig-1g.10gb.me"),
        ({"gpu": 1, "gpu_shared": True}, None, "nvidia.com/gpu.shared"),
        ({"gpu": 1, "device_class": "gpu.nvidia.com"}, None, None),
        ({}, "h100", None),
    ],
)
def test_gpus_are_asked_for_by_what_the_device_plugin_calls_them(
    resources: dict[str, Any], place: str | None, resource: str | None
) -> None:
    made = version(resources=resources, pool=place)
    assert gpu_resource(made.settings.resources, made.pool) == resource
    limits = server_of(made)["resources"].get("limits", {})
    assert limits == ({resource: "1"} if resource else {})


def test_a_pool_is_reached_by_its_labels_and_through_its_taints() -> None:
    spec = pod_spec(version(pool="cpu"))
    assert spec["nodeSelector"] == {"pool": "cpu"}
    assert spec["tolerations"] == POOLS[0]["tolerations"]


def test_gpus_of_a_product_are_reached_through_the_taints_of_its_pools_alone() -> None:
    spec = pod_spec(version(resources={"gpu": 1, "gpu_product": H100}))
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": H100}
    assert [toleration.get("value") for toleration in spec["tolerations"]] == ["h100", None]


def test_gpus_by_resource_allocation_are_claimed() -> None:
    made = version(resources={"gpu": 2, "device_class": "gpu.nvidia.com"})
    (template,) = resource_claims(made)
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert (request["exactly"]["deviceClassName"], request["exactly"]["count"]) == ("gpu.nvidia.com", 2)
    (claim,) = pod_spec(made)["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
    (other,) = resource_claims(version(resources={"gpu": 4, "device_class": "gpu.nvidia.com"}))
    assert other["metadata"]["name"] != template["metadata"]["name"], "a template never changes"
    assert server_of(made)["resources"]["claims"] == [{"name": claim["name"]}]


def test_what_says_nothing_gets_the_teams_defaults() -> None:
    made = version(internals(teams=team(limits={"cpu": "2", "memory": "1Gi"})), resources={"cpu": 1})
    assert server_of(made)["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}
    assert [manifest["kind"] for manifest in defaults(made)] == ["LimitRange"]


def test_the_namespace_may_have_what_its_replicas_and_their_successors_ask_for() -> None:
    made = version(autoscaling={"min": 1, "max": 3, "target": 0.5}, resources={"cpu": 0.5, "memory": "1Gi", "gpu": 1})
    assert promised(made) == {"requests.cpu": "1500m", "requests.memory": "3Gi", "requests.nvidia.com/gpu": "3"}
    assert resource_quota(made)["spec"]["hard"] == {
        "pods": "7",
        "requests.cpu": "3500m",
        "requests.memory": "7Gi",
        "requests.nvidia.com/gpu": "7",
    }


@pytest.mark.parametrize(("replicas", "pods"), [(0, "0"), (1, "3"), (4, "9"), (10, "23")])
def test_an_update_has_room_while_the_last_ones_replicas_drain(replicas: int, pods: str) -> None:
    # What serves, the surge, and as many that drain.
    assert resource_quota(version(replicas=replicas))["spec"]["hard"]["pods"] == pods


def test_a_team_with_a_queue_waits_in_it() -> None:
    manifest = workload(version(internals(teams=team(queue="gpus"))))
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "diagnostics"


# -- over several nodes


def test_a_replica_over_several_nodes_is_a_leader_with_workers() -> None:
    made = version(nodes_per_replica=4, replicas=2, resources={"gpu": 8})
    manifest = workload(made)
    assert manifest["kind"] == "LeaderWorkerSet"
    group = manifest["spec"]["leaderWorkerTemplate"]
    assert (manifest["spec"]["replicas"], group["size"]) == (2, 4)
    leader, worker = (group[template]["spec"]["containers"][0] for template in ("leaderTemplate", "workerTemplate"))
    assert "readinessProbe" in leader
    assert "readinessProbe" not in worker
    assert leader["command"] == worker["command"]
    assert promised(made) == {"requests.nvidia.com/gpu": "64"}


def test_requests_go_to_leaders_alone_and_leaders_and_workers_speak() -> None:
    made = version(nodes_per_replica=2)
    assert service(made)["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    policy = network_policies(made)[1]["spec"]
    assert {"from": [{"podSelector": {}}]} in policy["ingress"]
    assert {"to": [{"podSelector": {}}]} in policy["egress"]


# -- isolation


def policy_of(made: Version) -> dict[str, Any]:
    closed, policy = network_policies(made)
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    return policy["spec"]


def in_namespace(name: str) -> list[dict[str, Any]]:
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}]


def test_the_gateway_and_prometheus_alone_get_in_each_to_its_ports() -> None:
    gateway, prometheus = policy_of(version())["ingress"]
    assert gateway == {
        "from": in_namespace("traefik"),
        "ports": [{"protocol": "TCP", "port": 8080}, {"protocol": "TCP", "port": 8081}],
    }
    assert prometheus == {"from": in_namespace("monitoring"), "ports": [{"protocol": "TCP", "port": 8082}]}


def test_a_gateway_that_is_anywhere_gets_in_to_the_serving_ports_alone() -> None:
    platform = internals(gateway={**internals()["gateway"], "pods_namespace": None}, monitoring_namespace=None)
    for rule in policy_of(version(platform))["ingress"]:
        assert "from" not in rule
        assert rule["ports"]


def test_a_version_asks_names_and_its_store_alone() -> None:
    dns, store = policy_of(version())["egress"]
    assert dns["to"][0] == in_namespace("kube-system")[0]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert store == {"ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 5000}]}


def test_a_version_whose_model_is_mounted_asks_names_alone() -> None:
    (dns,) = policy_of(version(model_image=MODEL_IMAGE))["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}


def test_a_version_may_call_the_networks_that_it_names() -> None:
    made = version(model_image=MODEL_IMAGE, egress=["10.2.0.0/16", "2001:db8::/32"])
    assert policy_of(made)["egress"][1:] == [
        {"to": [{"ipBlock": {"cidr": "10.2.0.0/16"}}, {"ipBlock": {"cidr": "2001:db8::/32"}}]}
    ]


@pytest.mark.parametrize("network", ["10.2.0.1/16", "example.org", "10.2.0.0/33", 7])
def test_what_is_no_network_is_refused(network: object) -> None:
    with pytest.raises(SettingsError, match=r"egress.*such as '10\.2\.0\.0/16'"):
        version(egress=[network])


def test_the_teams_routes_alone_may_use_the_service() -> None:
    spec = reference_grant(version())["spec"]
    assert {source["namespace"] for source in spec["from"]} == {"diagnostics-dev-1"}
    assert spec["to"] == [{"group": "", "kind": "Service", "name": "server"}]


# -- refusals


@pytest.mark.parametrize(
    ("platform", "given_config", "said"),
    [
        ({}, {"image": "mlserver:latest"}, r"image: given mlserver:latest: .* by its digest"),
        ({"images": {"server": None, "puller": PULLER, "pull_secrets": []}}, {}, r"images\.server"),
        ({"images": {"server": IMAGE, "puller": None, "pull_secrets": []}}, {}, r"images\.puller"),
        ({"features": []}, {"model_volume": "image", "model_image": MODEL_IMAGE}, r"add image-volumes"),
        ({"features": []}, {"nodes_per_replica": 2}, r"nodes_per_replica: given 2: .*add leader-worker-sets"),
        (
            {"features": []},
            {"resources": {"gpu": 1, "device_class": "gpu.nvidia.com"}},
            r"add dynamic-resource-allocation",
        ),
        (
            {"features": []},
            {"autoscaling": {"max": 2, "by": "in-flight", "target": 1, "scaler": "keda"}},
            r"add keda",
        ),
        ({}, {"pool": "h200"}, r"pool: given 'h200': the platform's pools are cpu, h100, sliced"),
        ({}, {"pool": "cpu", "resources": {"gpu": 1}}, r"it has no GPUs, and the version asks for nvidia\.com/gpu"),
        ({}, {"pool": "h100", "resources": {"gpu": 1, "mig": "1g.10gb"}}, r"it has nvidia\.com/gpu"),
        (
            {},
            {"pool": "h100", "resources": {"gpu": 1, "gpu_product": "NVIDIA-A100"}},
            rf"given 'NVIDIA-A100': pool h100 has {H100}",
        ),
        ({}, {"autoscaling": {"max": 2, "target": 0.5}}, r"autoscaling\.by: given 'cpu'"),
        ({}, {"autoscaling": {"max": 2, "by": "gpu", "target": 0.5}}, r"has no GPUs"),
        (
            {},
            {"autoscaling": {"max": 2, "by": "queue", "query": "sum(x)", "target": 1}},
            r"external metric by its name",
        ),
        (
            {},
            {"resources": {"cpu": 1}, "autoscaling": {"max": 2, "target": 0.5, "scale_down_after": "2h"}},
            r"at most 3600s",
        ),
        ({"teams": team(quota={"requests.cpu": "8"})}, {}, r"resources\.cpu: team diagnostics has a quota"),
    ],
)
def test_what_the_platform_has_not_is_refused(
    platform: dict[str, Any], given_config: dict[str, Any], said: str
) -> None:
    assert re.search(said, problems(version(internals(**platform), **given_config)))


def test_all_problems_are_said_at_once() -> None:
    assert len(problems(version(pool="h200", image="mlserver:latest")).splitlines()) == 2


def test_an_unsigned_model_image_is_refused_where_signatures_matter() -> None:
    made = version(of={"trusted_keys": (PUBLIC_KEY,)}, model_volume="image", model_image=MODEL_IMAGE)
    assert "nobody has signed" in problems(made)


# -- in the cluster


SHARE = Path(__file__).parents[2] / ".tools" / "share"


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane, gateway_class: GatewayClass) -> ControlPlane:
    """With the kinds of the Gateway API, of LeaderWorkerSet and of KEDA, and the platform's priority classes."""
    for manifest in priority_classes("lepton"):
        control_plane.apply(manifest)
    files = [*SHARE.glob("lws/*.yaml"), *SHARE.glob("keda/*.yaml")]
    definitions: list[dict[str, Any]] = [yaml.safe_load(file.read_text()) for file in files]
    for definition in definitions:
        # Who converts between its versions isn't here, and there is one.
        definition["spec"].pop("conversion", None)
    control_plane.define(definitions)
    return control_plane


@pytest.fixture
def model() -> str:
    """Of this test alone, as the namespace is of the model's version."""
    return f"m-{uuid.uuid4().hex[:8]}"


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the least": ({}, {}),
    "all of a pulled one": (
        {
            "resources": {"cpu": 0.5, "memory": "1Gi", "gpu": 1, "gpu_product": H100},
            "autoscaling": {"min": 1, "max": 3, "target": 0.5},
            "priority": "serving-critical",
            "pool": "h100",
            "api_access": True,
            "egress": ["10.2.0.0/16", "2001:db8::/32"],
            "env": {"TOKEN": "$(x)"},
        },
        {"trusted_keys": (PUBLIC_KEY,), "provenance": {"lepton/pickles": "a.pkl b.pkl"}},
    ),
    "with secrets": ({"env": {"TOKEN": "s3cret"}}, {"secret": True}),
    "an image volume": ({"model_image": MODEL_IMAGE}, {}),
    "claimed devices": ({"resources": {"gpu": 2, "device_class": "gpu.nvidia.com"}}, {}),
    "a MIG slice": ({"resources": {"gpu": 1, "mig": "1g.10gb+me"}}, {}),
    "batch": ({"priority": "batch", "replicas": 0}, {}),
    "by in-flight": ({"autoscaling": {"max": 3, "by": "in-flight", "target": 1.5}}, {}),
    "by GPU": ({"autoscaling": {"max": 3, "by": "gpu", "target": 0.5}, "resources": {"gpu": 1}}, {}),
    "by queue": ({"autoscaling": {"max": 3, "by": "queue", "target": 5, "query": "jobs:waiting"}}, {}),
    "by in-flight and KEDA": ({"autoscaling": {"max": 3, "by": "in-flight", "target": 1, "scaler": "keda"}}, {}),
    "over two nodes": ({"nodes_per_replica": 2, "resources": {"cpu": 1, "memory": "1Gi"}}, {}),
    "OpenAI's": ({"server": {"command": ["serve"], "protocol": "openai", "ready_path": "/health"}}, {}),
    "a long version": ({"version": f"1.0.0-{'x' * 110}"}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_api_server_takes_every_object_as_it_is(cluster: ControlPlane, model: str, kind: str) -> None:
    config, of = KINDS[kind]
    limits = internals(teams=team(limits={"cpu": "1", "memory": "1Gi"}))
    made = version(limits if kind == "with secrets" else None, of=of, model=model, **config)
    refuse_impossible(made)
    for manifest in objects(made):
        cluster.apply(manifest, force=False)
    template = workload(made)["spec"].get("template")
    if template and made.most:
        # The Deployment only says what Pods are to be; Pod Security has its say about each.
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "probe"}}
        pod["metadata"]["namespace"] = made.namespace
        assert cluster.apply(pod | {"spec": template["spec"]}, dry_run=True)
    cluster.delete("v1", "Namespace", made.namespace)


def test_pod_templates_of_a_group_are_as_those_of_a_deployment(cluster: ControlPlane, model: str) -> None:
    made = version(model=model, nodes_per_replica=2, resources={"cpu": 1, "memory": "1Gi"})
    cluster.apply_all(namespace(made), service_account(made))
    group = workload(made)["spec"]["leaderWorkerTemplate"]
    for name in ("leaderTemplate", "workerTemplate"):
        template = copy.deepcopy(group[name])
        template["metadata"] |= {"name": name.lower(), "namespace": made.namespace}
        assert cluster.apply({"apiVersion": "v1", "kind": "Pod", **template}, dry_run=True)
    cluster.delete("v1", "Namespace", made.namespace)


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    def break_it(spec: dict[str, Any]) -> None:
        for container in [*spec["initContainers"], *spec["containers"]]:
            del container["securityContext"][key]
        spec["securityContext"].pop(key, None)

    return break_it


def _with_host_path(spec: dict[str, Any]) -> None:
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


def _as_root(spec: dict[str, Any]) -> None:
    spec["securityContext"]["runAsUser"] = 0


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_without("allowPrivilegeEscalation"), "allowPrivilegeEscalation"),
        (_without("capabilities"), "unrestricted capabilities"),
        (_without("runAsNonRoot"), "runAsNonRoot"),
        (_without("seccompProfile"), "seccompProfile"),
        (_with_host_path, "hostPath"),
        (_as_root, "runAsUser=0"),
    ],
)
def test_a_pod_that_may_do_more_is_refused_in_the_namespace(
    cluster: ControlPlane, model: str, broken: Callable[[dict[str, Any]], None], said: str
) -> None:
    made = version(model=model)
    cluster.apply_all(namespace(made), service_account(made))
    template = copy.deepcopy(workload(made)["spec"]["template"])
    broken(template["spec"])
    metadata = {**template["metadata"], "name": "probe", "namespace": made.namespace}
    with pytest.raises(ApiError, match=f"restricted.*{re.escape(said)}"):
        cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, dry_run=True)
    cluster.delete("v1", "Namespace", made.namespace)


def test_a_field_that_is_none_is_refused(cluster: ControlPlane, model: str) -> None:
    made = version(model=model)
    cluster.apply(namespace(made))
    manifest = workload(made)
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessProbes"] = {}
    with pytest.raises(ApiError, match="livenessProbes"):
        cluster.apply(manifest, dry_run=True)
    cluster.delete("v1", "Namespace", made.namespace)


def conditions(cluster: ControlPlane, made: Version) -> dict[str, str]:
    found = cluster.get("apps/v1", "Deployment", "server", made.namespace) or {}
    return {entry["type"]: entry["status"] for entry in found.get("status", {}).get("conditions", [])}


def bring_up(cluster: ControlPlane, made: Version) -> None:
    cluster.apply_all(*objects(made))


def test_a_version_becomes_available_with_its_gpus(cluster: ControlPlane, kwok_nodes: KwokNodes, model: str) -> None:
    made = version(
        internals(pools=[pool("h100", "nvidia.com/gpu", H100, **{"nvidia.com/gpu.product": H100})]),
        model=model,
        replicas=2,
        pool="h100",
        resources={"cpu": 1, "memory": "1Gi", "gpu": 1},
    )
    bring_up(cluster, made)
    until(lambda: conditions(cluster, made).get("Available") == "True", 60, what="the Deployment being available")
    found = cluster.get("apps/v1", "Deployment", "server", made.namespace) or {}
    until(lambda: len(cluster.list("v1", "Pod", made.namespace)) == 2, 30, what="both replicas")
    nodes = {pod["spec"]["nodeName"] for pod in cluster.list("v1", "Pod", made.namespace)}
    assert found["spec"]["replicas"] == 2
    assert all(
        (cluster.get("v1", "Node", node) or {})["metadata"]["labels"]["nvidia.com/gpu.product"] == H100
        for node in nodes
    )
    quota = cluster.get("v1", "ResourceQuota", "server", made.namespace) or {}
    assert quota["status"]["used"]["requests.nvidia.com/gpu"] == "2"
    cluster.delete("v1", "Namespace", made.namespace)


def test_an_applied_version_leaves_the_autoscalers_number_alone(
    cluster: ControlPlane, kwok_nodes: KwokNodes, model: str
) -> None:
    made = version(model=model, resources={"cpu": 0.1}, autoscaling={"min": 1, "max": 5, "target": 0.5})
    cluster.apply_all(*(manifest for manifest in objects(made) if manifest["kind"] != "HorizontalPodAutoscaler"))
    # As an autoscaler does it.
    cluster.api.patch("apps/v1", "Deployment", "server", made.namespace, {"spec": {"replicas": 3}}, subresource="scale")
    changed = version(model=model, resources={"cpu": 0.2}, autoscaling={"min": 1, "max": 5, "target": 0.5})
    applied = cluster.apply(workload(changed))
    assert applied["spec"]["replicas"] == 3
    cluster.delete("v1", "Namespace", made.namespace)


def test_a_version_that_gets_an_autoscaler_keeps_its_replicas(cluster: ControlPlane, model: str) -> None:
    scaling = {"min": 1, "max": 8, "target": 0.5}
    fixed = version(model=model, resources={"cpu": 0.1}, replicas=5)
    scaled = version(model=model, resources={"cpu": 0.1}, autoscaling=scaling)
    api = api_of(cluster)
    hand_over_replicas(scaled, api)
    cluster.apply_all(namespace(fixed), workload(fixed))
    hand_over_replicas(scaled, api)
    assert cluster.apply(workload(scaled))["spec"]["replicas"] == 5
    # The autoscaler's from then on: what it says isn't taken back.
    cluster.api.patch(
        "apps/v1", "Deployment", "server", fixed.namespace, {"spec": {"replicas": 3}}, subresource="scale"
    )
    hand_over_replicas(scaled, api)
    assert cluster.apply(workload(scaled))["spec"]["replicas"] == 3
    assert cluster.apply(workload(fixed))["spec"]["replicas"] == 5
    cluster.delete("v1", "Namespace", fixed.namespace)


@pytest.mark.parametrize(("replicas", "first"), [(1, 2), (5, 5)])
def test_a_version_at_rest_comes_back_with_the_replicas_that_it_begins_with(
    cluster: ControlPlane, model: str, replicas: int, first: int
) -> None:
    stopped = version(model=model, replicas=0)
    scaling = {"min": 2, "max": 8, "by": "in-flight", "target": 1}
    scaled = version(model=model, replicas=replicas, autoscaling=scaling)
    cluster.apply_all(namespace(stopped), workload(stopped))
    hand_over_replicas(scaled, api_of(cluster))
    assert cluster.apply(workload(scaled))["spec"]["replicas"] == first
    assert cluster.apply(workload(stopped))["spec"]["replicas"] == 0
    cluster.delete("v1", "Namespace", stopped.namespace)


def test_a_new_version_gets_the_replicas_that_it_begins_with_and_keeps_more(cluster: ControlPlane, model: str) -> None:
    api = api_of(cluster)
    made = version(model=model, replicas=3, autoscaling={"min": 2, "max": 8, "by": "in-flight", "target": 1})
    cluster.apply_all(namespace(made), workload(made))
    hand_over_replicas(made, api)
    assert cluster.apply(workload(made))["spec"]["replicas"] == 3
    for found, kept in ((6, 6), (2, 3)):  # as an autoscaler does it
        cluster.api.patch(
            "apps/v1", "Deployment", "server", made.namespace, {"spec": {"replicas": found}}, subresource="scale"
        )
        hand_over_replicas(made, api)
        assert cluster.apply(workload(made))["spec"]["replicas"] == kept
    cluster.delete("v1", "Namespace", made.namespace)


def test_a_version_that_no_node_has_room_for_is_given_up_in_its_time(
    cluster: ControlPlane, kwok_nodes: KwokNodes, model: str
) -> None:
    made = version(model=model, ready_timeout="2s", resources={"gpu": 64})
    bring_up(cluster, made)
    until(lambda: conditions(cluster, made).get("Progressing") == "False", 60, what="the deadline being noticed")
    (pod,) = cluster.list("v1", "Pod", made.namespace)
    (scheduled,) = [entry for entry in pod["status"]["conditions"] if entry["type"] == "PodScheduled"]
    assert "Insufficient nvidia.com/gpu" in scheduled["message"]
    cluster.delete("v1", "Namespace", made.namespace)


def test_a_version_that_is_never_ready_is_given_up_in_its_time(
    cluster: ControlPlane, kwok_nodes: KwokNodes, model: str
) -> None:
    image = f"registry.example.org/{NEVER_READY}@sha256:{HASH}"
    made = version(model=model, ready_timeout="2s", image=image)
    bring_up(cluster, made)
    until(lambda: conditions(cluster, made).get("Progressing") == "False", 60, what="the deadline being noticed")
    cluster.delete("v1", "Namespace", made.namespace)


def test_the_api_server_holds_a_namespace_to_its_quota(cluster: ControlPlane, model: str) -> None:
    made = version(model=model, replicas=1, resources={"cpu": 1})
    cluster.apply_all(namespace(made), service_account(made), resource_quota(made))
    greedy = version(model=model, replicas=1, resources={"cpu": 4})
    template = workload(greedy)["spec"]["template"]
    metadata = {**template["metadata"], "name": "probe", "namespace": made.namespace}

    def refused() -> bool:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        try:
            cluster.apply(pod, dry_run=True)
        except ApiError as error:
            return "exceeded quota" in str(error)
        return False

    until(refused, 30, what="the quota being enforced")
    cluster.delete("v1", "Namespace", made.namespace)


def api_of(cluster: ControlPlane) -> Any:
    from infra.cluster.live.api import Api  # noqa: PLC0415 - slow to import

    return Api({"kubeconfig": str(cluster.kubeconfig), "context": None, "document": None})


def test_a_teams_versions_together_stay_within_its_quota(cluster: ControlPlane, model: str) -> None:
    owner = f"t-{uuid.uuid4().hex[:8]}"
    share = {owner: {"namespace": "x", "quota": {"requests.cpu": "4"}, "limits": {}, "queue": None}}

    def asking(number: str, cpu: float, replicas: int) -> Version:
        return version(
            internals(teams=share), of={"team": owner}, model=model, version=number, replicas=replicas,
            resources={"cpu": cpu},
        )  # fmt: skip

    first, fits, too_large = asking("1.0.0", 1.5, 2), asking("1.1.0", 1, 1), asking("1.1.0", 1, 2)
    api = api_of(cluster)
    refuse_beyond_quota(first, api)
    cluster.apply_all(namespace(first), resource_quota(first))
    refuse_beyond_quota(first, api)
    refuse_beyond_quota(fits, api)
    refuse_beyond_quota(asking("1.1.0", 9, 0), api)
    with pytest.raises(QuotaExceeded, match=r"may have requests\.cpu 4 .* promised 3, and this one asks for 2,"):
        refuse_beyond_quota(too_large, api)
    cluster.delete("v1", "Namespace", first.namespace)


def test_the_logins_of_all_pull_secrets_come_in_one(cluster: ControlPlane, model: str) -> None:
    cluster.namespace(model)
    for name, host in (("one", "a.example.org"), ("two", "b.example.org")):
        document = json.dumps({"auths": {host: {"auth": "eDp5"}}})
        data = {".dockerconfigjson": base64.b64encode(document.encode()).decode()}
        cluster.apply(pull_secret(model, name, {}, data))
    merged = read_logins(api_of(cluster), model, ["one", "two"])
    auths = json.loads(base64.b64decode(merged[".dockerconfigjson"]))["auths"]
    assert sorted(auths) == ["a.example.org", "b.example.org"]
    cluster.apply(pull_secret(model, REGISTRIES, {}, merged))
    on_aws = read_logins(api_of(cluster), model, ["one"], "123456789012.dkr.ecr.eu-west-1.amazonaws.com")
    document = json.loads(base64.b64decode(on_aws[".dockerconfigjson"]))
    assert document["credHelpers"] == {"123456789012.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login"}
    assert sorted(document["auths"]) == ["a.example.org"]
    with pytest.raises(LoginRefused, match=f"namespace {model} has no Secret three"):
        read_logins(api_of(cluster), model, ["three"])
    cluster.delete("v1", "Namespace", model)
