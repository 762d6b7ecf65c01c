"""The platform's objects: what they say, and that the API server takes each of them as it is."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from infra.cluster.internals import PoolFacts
from infra.cluster.manifests import Manifest
from infra.cluster.manifests.gateway import (
    base_url,
    class_problem,
    gateway,
    listener_hostnames,
    listener_names,
    status_address,
    status_problems,
    supported_features,
)
from infra.cluster.manifests.gpus import GpuPool, gpu_inventory, gpu_namespace, gpu_objects
from infra.cluster.manifests.priorities import priority_class_name, priority_classes
from infra.cluster.manifests.registry import pull_secret
from infra.cluster.manifests.storage import encrypted_volumes
from infra.cluster.manifests.teams import limit_range, team_facts, team_objects
from infra.cluster.names import team_namespace
from infra.settings.cluster import GatewaySettings, TeamSettings
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import GatewayClass
from tests.plugins.kubernetes.api import ApiError

IMAGE = "registry.example.org/gpu/plugin@sha256:" + "0123456789abcdef" * 4
TEAMS = ("imaging", "diagnostics")
TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def settings(**given: Any) -> GatewaySettings:
    return GatewaySettings.model_validate({"class_name": "traefik"} | given)


def pool(name: str, resource: str | None = "nvidia.com/gpu", shares: int = 1, product: str | None = None) -> GpuPool:
    facts: PoolFacts = {
        "name": name,
        "labels": {"pool": name},
        "gpu_resource": resource,
        "product": product,
        "tolerations": [TAINT, {"key": "reserved", "operator": "Equal", "value": name, "effect": "NoSchedule"}],
    }
    return GpuPool(facts, shares)


POOLS = [
    pool("whole"),
    pool("shared", "nvidia.com/gpu.shared", shares=4),
    pool("cut", "nvidia.com/mig-1g.10gb"),
]


def gpus(
    namespace: str = "lepton", *, device_plugin: str | None = IMAGE, dcgm_exporter: str | None = IMAGE
) -> list[Manifest]:
    return gpu_objects(
        "dev",
        namespace,
        POOLS,
        device_plugin=device_plugin,
        dcgm_exporter=dcgm_exporter,
        pull_secrets=["registry"],
    )


def named(objects: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [manifest for manifest in objects if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name)]
    return found


# -- the Gateway


def test_teams_share_one_listener_that_takes_routes_of_their_namespaces_alone() -> None:
    made = gateway("dev", "lepton", TEAMS, settings())
    (listener,) = made["spec"]["listeners"]
    assert (listener["name"], listener["port"], listener["protocol"]) == ("http", 80, "HTTP")
    assert "hostname" not in listener
    assert listener["allowedRoutes"]["namespaces"] == {
        "from": "Selector",
        "selector": {
            "matchLabels": {"lepton/environment": "dev"},
            "matchExpressions": [{"key": "lepton/team", "operator": "Exists"}],
        },
    }
    assert listener_names(TEAMS, settings()) == {"diagnostics": "http", "imaging": "http"}
    assert listener_hostnames(TEAMS, settings()) == {}


def test_with_a_domain_each_team_has_a_listener_of_its_own() -> None:
    given = settings(domain="models.example.com", tls={"secret": "wildcard"}, port=8443)
    made = gateway("dev", "lepton", TEAMS, given)
    assert [
        (listener["name"], listener["hostname"], listener["port"], listener["protocol"])
        for listener in made["spec"]["listeners"]
    ] == [
        ("diagnostics", "diagnostics.models.example.com", 8443, "HTTPS"),
        ("imaging", "imaging.models.example.com", 8443, "HTTPS"),
    ]
    for listener, team in zip(made["spec"]["listeners"], sorted(TEAMS), strict=True):
        assert listener["allowedRoutes"]["namespaces"]["selector"] == {
            "matchLabels": {"lepton/environment": "dev", "lepton/team": team}
        }
        assert listener["tls"] == {"mode": "Terminate", "certificateRefs": [{"kind": "Secret", "name": "wildcard"}]}
    assert listener_names(TEAMS, given) == {team: team for team in TEAMS}
    assert listener_hostnames(TEAMS, given)["imaging"] == "imaging.models.example.com"


def test_an_issuer_makes_a_certificate_for_each_name() -> None:
    made = gateway("dev", "lepton", TEAMS, settings(domain="models.example.com", tls={"issuer": "letsencrypt"}))
    assert made["metadata"]["annotations"] == {"cert-manager.io/cluster-issuer": "letsencrypt"}
    assert [listener["tls"]["certificateRefs"][0]["name"] for listener in made["spec"]["listeners"]] == [
        "lepton-diagnostics-tls",
        "lepton-imaging-tls",
    ]


@pytest.mark.parametrize(
    ("given", "address", "url"),
    [
        ({}, "203.0.113.7", "http://203.0.113.7"),
        ({"port": 8088}, "203.0.113.7", "http://203.0.113.7:8088"),
        ({}, "2001:db8::7", "http://[2001:db8::7]"),
        ({"tls": {"secret": "s"}}, "lb.example.net", "https://lb.example.net"),
        ({"tls": {"secret": "s"}, "domain": "models.example.com"}, None, "https://models.example.com"),
        ({"url": "http://127.0.0.1:8088", "domain": "models.example.com"}, None, "http://127.0.0.1:8088"),
        ({}, None, None),
    ],
)
def test_the_base_url_is_as_told_or_the_domain_or_the_gateways_address(
    given: dict[str, Any], address: str | None, url: str | None
) -> None:
    assert base_url(settings(**given), address) == url


def status(generation: int = 2, **conditions: str) -> list[dict[str, Any]]:
    return [
        {"type": type_, "status": value, "reason": "Why", "message": "what for", "observedGeneration": generation}
        for type_, value in conditions.items()
    ]


def found(conditions: list[dict[str, Any]], listeners: list[dict[str, Any]]) -> Manifest:
    return {"metadata": {"generation": 2}, "status": {"conditions": conditions, "listeners": listeners}}


GOOD_LISTENER = {"name": "http", "conditions": status(Accepted="True", ResolvedRefs="True", Programmed="True")}


def test_a_programmed_gateway_has_no_problems() -> None:
    assert status_problems(found(status(Accepted="True", Programmed="True"), [GOOD_LISTENER])) == []


@pytest.mark.parametrize(
    ("conditions", "listeners", "problem"),
    [
        (status(Accepted="True", Programmed="False"), [], "Gateway: not Programmed: Why: what for"),
        (status(Accepted="False"), [], "Gateway: not Accepted: Why: what for"),
        (status(Accepted="True"), [], "Gateway: nobody has said yet whether it is Programmed"),
        (
            status(generation=1, Accepted="True") + status(Programmed="True"),
            [],
            "Gateway: nobody has said yet whether it is Accepted",
        ),
        (
            status(Accepted="True", Programmed="True"),
            [{"name": "imaging", "conditions": status(Accepted="True", ResolvedRefs="False", Programmed="True")}],
            "listener imaging: not ResolvedRefs: Why: what for",
        ),
    ],
)
def test_what_keeps_a_gateway_from_serving_is_named(
    conditions: list[dict[str, Any]], listeners: list[dict[str, Any]], problem: str
) -> None:
    (text,) = status_problems(found(conditions, listeners))
    assert text.startswith(problem)


def test_a_gateway_without_a_status_has_no_address() -> None:
    assert status_address({"metadata": {"generation": 1}}) is None


@pytest.mark.parametrize("features", [["Gateway", "HTTPRoute"], [{"name": "Gateway"}, {"name": "HTTPRoute"}]])
def test_a_class_says_what_it_can_do_in_either_of_two_ways(features: list[Any]) -> None:
    assert supported_features({"status": {"supportedFeatures": features}}) == ["Gateway", "HTTPRoute"]


def test_a_class_that_nobody_accepted_can_not_be_used() -> None:
    waiting: Manifest = {"metadata": {"generation": 1}, "status": {"conditions": status(0, Accepted="Unknown")}}
    assert "is its controller running?" in (class_problem(waiting) or "")
    assert class_problem({"metadata": {"generation": 2}, "status": {"conditions": status(Accepted="True")}}) is None


# -- teams and priorities


def test_a_teams_share_is_told_in_kubernetes_terms() -> None:
    given = TeamSettings.model_validate(
        {
            "quota": {"cpu": 8.5, "memory": "96Gi", "gpus": {"nvidia.com/gpu": 4}},
            "default_limits": {"cpu": 1, "memory": "1536Mi"},
            "queue": "gpus",
        }
    )
    assert team_facts("dev", "imaging", given) == {
        "namespace": team_namespace("dev", "imaging"),
        "quota": {"requests.cpu": "8500m", "requests.memory": "96Gi", "requests.nvidia.com/gpu": "4"},
        "limits": {"cpu": "1", "memory": "1536Mi"},
        "queue": "gpus",
    }
    facts = team_facts("dev", "imaging", TeamSettings())
    assert (facts["quota"], facts["limits"], facts["queue"]) == ({}, {}, None)


def test_batch_pre_empts_nobody_and_is_pre_empted_by_all() -> None:
    classes = {made["metadata"]["name"]: made for made in priority_classes("lepton")}
    batch, serving, critical = (
        classes[priority_class_name("lepton", priority)] for priority in ("batch", "serving", "serving-critical")
    )
    assert batch["value"] < serving["value"] < critical["value"] < 1_000_000_000
    assert [made["preemptionPolicy"] for made in (batch, serving, critical)] == [
        "Never",
        "PreemptLowerPriority",
        "PreemptLowerPriority",
    ]
    assert not any(made.get("globalDefault") for made in classes.values())


# -- GPUs


def test_each_pools_device_plugin_offers_its_gpus_as_the_pool_says() -> None:
    objects = gpus()
    configs = {
        name: json.loads(named(objects, "ConfigMap", f"nvidia-device-plugin-{name}")["data"]["config.yaml"])
        for name in ("whole", "shared", "cut")
    }
    assert configs["whole"] == {"version": "v1", "flags": {"migStrategy": "none", "failOnInitError": True}}
    assert configs["cut"]["flags"]["migStrategy"] == "mixed"
    slicing = configs["shared"]["sharing"]["timeSlicing"]
    assert slicing["resources"] == [{"name": "nvidia.com/gpu", "replicas": 4}]
    assert slicing["renameByDefault"]


def test_a_changed_config_starts_the_device_plugin_again() -> None:
    def template(shares: int) -> Any:
        made = gpu_objects(
            "dev",
            "lepton",
            [pool("shared", "nvidia.com/gpu.shared", shares)],
            device_plugin=IMAGE,
            dcgm_exporter=None,
            pull_secrets=[],
        )
        return named(made, "DaemonSet", "nvidia-device-plugin-shared")["spec"]["template"]["metadata"]["annotations"]

    assert template(2) == template(2)
    assert template(2) != template(3)


def test_what_runs_on_gpu_nodes_tolerates_their_taints_and_runs_on_no_others() -> None:
    spec = named(gpus(), "DaemonSet", "nvidia-device-plugin-cut")["spec"]["template"]["spec"]
    assert spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["cut"]}]}]
    }
    assert spec["tolerations"].count(TAINT) == 1
    assert {"key": "reserved", "operator": "Equal", "value": "cut", "effect": "NoSchedule"} in spec["tolerations"]
    exporter = named(gpus(), "DaemonSet", "dcgm-exporter")["spec"]["template"]["spec"]
    terms = exporter["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert len(terms) == len(POOLS)


def test_only_gpus_that_are_cut_need_a_capability() -> None:
    def security(name: str) -> dict[str, Any]:
        return named(gpus(), "DaemonSet", name)["spec"]["template"]["spec"]["containers"][0]["securityContext"]

    assert security("nvidia-device-plugin-whole") == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert security("nvidia-device-plugin-cut") == {"capabilities": {"add": ["SYS_ADMIN"]}}


def test_what_has_no_image_is_not_run() -> None:
    def daemon_sets(objects: list[Manifest]) -> int:
        return [manifest["kind"] for manifest in objects].count("DaemonSet")

    assert daemon_sets(gpus(device_plugin=None)) == 1
    assert daemon_sets(gpus(dcgm_exporter=None)) == len(POOLS)
    assert gpus(device_plugin=None, dcgm_exporter=None) == []


def node(labels: dict[str, str], allocatable: dict[str, str], ready: str = "True") -> Manifest:
    return {
        "metadata": {"labels": labels},
        "status": {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": ready}]},
    }


def test_gpus_are_counted_whole_however_they_are_cut_or_shared() -> None:
    h100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    nodes = [
        node(h100, {"nvidia.com/gpu": "8"}),
        node(h100 | {"nvidia.com/gpu.count": "4"}, {"nvidia.com/mig-1g.10gb": "28"}),
        node({"pool": "shared", "nvidia.com/gpu.product": "NVIDIA-L4"}, {"nvidia.com/gpu.shared": "16"}),
        node(h100, {"nvidia.com/gpu": "8"}, ready="Unknown"),
        node({"pool": "named"}, {"nvidia.com/gpu": "2"}),
        node({}, {"nvidia.com/gpu": "1"}),
        node({}, {"cpu": "64"}),
    ]
    assert gpu_inventory(nodes, [*POOLS, pool("named", product="NVIDIA-A10")]) == {
        "NVIDIA-H100-80GB-HBM3": 12,
        "NVIDIA-L4": 4,
        "NVIDIA-A10": 2,
        "gpu": 1,
    }


# -- the API server


def differences(asked: Any, live: Any, path: str = "") -> list[str]:
    """Where the live object says something else than what was asked for: that would be changed by each update."""
    if isinstance(asked, dict):
        live = live if isinstance(live, dict) else {}
        return [line for key, value in asked.items() for line in differences(value, live.get(key), f"{path}.{key}")]
    if isinstance(asked, list) and isinstance(live, list) and len(asked) == len(live):
        pairs = enumerate(zip(asked, live, strict=True))
        return [line for number, (one, other) in pairs for line in differences(one, other, f"{path}[{number}]")]
    return [] if asked == live else [f"{path}: {asked!r} became {live!r}"]


def apply_as_it_is(control_plane: ControlPlane, *objects: Manifest) -> None:
    """The API server takes them strictly, and writes them back as they were asked for."""
    for manifest in objects:
        assert differences(manifest, control_plane.apply(manifest)) == []


@pytest.fixture
def own(control_plane: ControlPlane) -> str:
    """A platform's namespace that no other test uses."""
    return control_plane.namespace(f"platform-{uuid.uuid4().hex[:8]}")


def test_the_api_server_takes_the_priorities(control_plane: ControlPlane, own: str) -> None:
    apply_as_it_is(control_plane, *priority_classes(own))
    assert control_plane.get("scheduling.k8s.io/v1", "PriorityClass", f"{own}-batch") is not None


def test_the_api_server_takes_what_gpus_need_and_its_pods_are_let_in(control_plane: ControlPlane, own: str) -> None:
    objects = gpus(own)
    apply_as_it_is(control_plane, *objects)
    for manifest in objects:
        if manifest["kind"] == "DaemonSet":
            pod = manifest["spec"]["template"]
            metadata = pod["metadata"] | {"name": manifest["metadata"]["name"], "namespace": gpu_namespace(own)}
            control_plane.apply(
                {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}, dry_run=True
            )


def test_no_pod_gets_into_a_teams_namespace(control_plane: ControlPlane, own: str) -> None:
    # The environment's name, as namespaces follow from it.
    apply_as_it_is(control_plane, *team_objects(own, "imaging"))
    namespace = team_namespace(own, "imaging")
    container = {
        "name": "main",
        "image": IMAGE,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    metadata = {"name": "intruder", "namespace": namespace}
    with pytest.raises(ApiError, match="exceeded quota: no-pods"):
        control_plane.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def test_containers_that_say_no_limits_get_the_teams(control_plane: ControlPlane, own: str) -> None:
    apply_as_it_is(control_plane, limit_range(own, {"cpu": "500m", "memory": "1Gi"}, {}))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": own},
        "spec": {"containers": [{"name": "main", "image": IMAGE}]},
    }
    made = control_plane.apply(pod)
    amounts = {"cpu": "500m", "memory": "1Gi"}
    assert made["spec"]["containers"][0]["resources"] == {"limits": amounts, "requests": amounts}


def test_the_api_server_takes_a_copied_pull_secret(control_plane: ControlPlane, own: str) -> None:
    data = {".dockerconfigjson": "eyJhdXRocyI6e319"}
    made = control_plane.apply(pull_secret(own, "registry", {"lepton/team": "imaging"}, data))
    assert (made["type"], made["data"]) == ("kubernetes.io/dockerconfigjson", data)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tls": {"secret": "wildcard"}, "domain": "models.example.com"},
        {"tls": {"issuer": "letsencrypt"}, "domain": "models.example.com", "port": 8443},
    ],
    ids=["shared", "secret", "issuer"],
)
def test_the_api_server_takes_the_gateway(
    control_plane: ControlPlane, gateway_class: GatewayClass, own: str, given: dict[str, Any]
) -> None:
    apply_as_it_is(control_plane, gateway("dev", own, TEAMS, settings(**given)))


def test_volumes_are_encrypted_where_their_pods_are(control_plane: ControlPlane) -> None:
    name = f"storage-{uuid.uuid4().hex[:8]}"
    made = control_plane.apply(encrypted_volumes(name))
    try:
        assert made["parameters"] == {"type": "gp3", "encrypted": "true"}
        assert made["volumeBindingMode"] == "WaitForFirstConsumer"
    finally:
        control_plane.delete("storage.k8s.io/v1", "StorageClass", f"{name}-gp3")
