"""What a platform's config may say of a Kubernetes cluster."""

from __future__ import annotations

from typing import Any

import pytest

from infra.settings import PlatformSettings, SettingsError, parse_settings
from infra.settings.cluster import ClusterSettings

IMAGE = "registry.example.org/gpu/plugin@sha256:" + "0123456789abcdef" * 4
GPU_POOL = {"name": "h100", "labels": {"pool": "h100"}, "gpu_resource": "nvidia.com/gpu"}


def cluster(**settings: Any) -> ClusterSettings:
    document = {"teams": {"diagnostics": {}}, "gateway": {"class_name": "traefik"}} | settings
    parsed = parse_settings(
        PlatformSettings,
        {"environment": "dev", "mode": "cluster", "cluster": document},
        file="Pulumi.dev.yaml",
        key="lepton:platform",
    )
    assert parsed.cluster is not None
    return parsed.cluster


def refusal(**settings: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        cluster(**settings)
    return str(refused.value)


def test_teams_and_a_gateway_class_are_all_that_must_be_said() -> None:
    settings = cluster()
    assert (settings.provision, settings.namespace) == ("existing", "lepton")
    assert (settings.gateway.scheme, settings.gateway.listener_port) == ("http", 80)
    assert not settings.gpus.device_plugin


def test_tls_changes_the_default_port() -> None:
    assert cluster(gateway={"class_name": "x", "tls": {"secret": "models"}}).gateway.listener_port == 443


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teams": {}}, "lepton:platform.cluster.teams: "),
        ({"teams": {"platform": {}}}, "choose another name"),
        ({"gateway": {}}, "lepton:platform.cluster.gateway.class_name is required and not given"),
        (
            {"gateway": {"class_name": "x", "tls": {}}},
            "certificates come from a secret or from a cert-manager issuer: give one of the two",
        ),
        ({"gateway": {"class_name": "x", "tls": {"issuer": "letsencrypt"}}}, "with 'tls.issuer' give 'domain'"),
        ({"gateway": {"class_name": "x", "url": "https://models.example.com/v1"}}, "lepton:platform.cluster.gateway"),
        ({"gateway": {"class_name": "x", "domain": "Models.Example"}}, "a DNS name is lower-case labels"),
        ({"pools": [GPU_POOL, GPU_POOL]}, "pool h100 is listed twice; give each a name of its own"),
        ({"pools": [GPU_POOL | {"labels": {}}]}, "lepton:platform.cluster.pools[0].labels: "),
        ({"pools": [GPU_POOL | {"gpu_resource": "amd.com/gpu"}]}, "a GPU resource is what the device plugin calls it"),
        (
            {"pools": [{"name": "h100", "labels": {"pool": "h100"}, "product": "NVIDIA-H100-80GB-HBM3"}]},
            "give 'gpu_resource', such as 'nvidia.com/gpu'",
        ),
        ({"pools": [GPU_POOL | {"shares": 4}]}, "asked for as 'nvidia.com/gpu.shared'; given gpu_resource 'nvidia.com"),
        ({"pools": [GPU_POOL | {"shares": 0}]}, "lepton:platform.cluster.pools[0].shares: given 0"),
        (
            {"gpus": {"device_plugin": True}, "pools": [GPU_POOL]},
            "'gpus.device_plugin' needs its image: give 'images.device_plugin', by its digest",
        ),
        (
            {"gpus": {"dcgm_exporter": True}, "images": {"dcgm_exporter": IMAGE}},
            "runs on the nodes that have GPUs: give 'pools', one of them with 'gpu_resource'",
        ),
        ({"images": {"device_plugin": "nvcr.io/nvidia/k8s-device-plugin:v0.17.1"}}, "an image is given by its digest"),
        ({"images": {"registry": "https://registry.example.org"}}, "lepton:platform.cluster.images.registry: given"),
        (
            {"teams": {"diagnostics": {"queue": "gpus"}}},
            "'teams.diagnostics.queue' is Kueue's: add 'kueue' to 'features'",
        ),
        ({"features": ["dra"]}, "lepton:platform.cluster.features[0]: given 'dra'"),
        ({"monitoring": {"kind": "operator"}}, "with kind 'operator' Prometheus is not ours: give its 'url'"),
        ({"provision": "eks"}, "'eks' and 'provision: eks' go together"),
    ],
)
def test_what_can_not_work_is_refused_with_what_would(settings: dict[str, Any], message: str) -> None:
    assert message in refusal(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"existing": {"context": "prod"}}, "a cluster that is made here has no kubeconfig yet"),
        ({"pools": [GPU_POOL]}, "a cluster that is made here has its pools in 'eks.pools'"),
        ({"images": {"registry": "registry.example.org"}}, "a cluster that is made here has its registry in ECR"),
        ({"gateway": {"class_name": "traefik"}}, "to tell whose metrics count requests: give 'gateway.metrics'"),
    ],
)
def test_a_cluster_that_is_made_here_has_its_own(settings: dict[str, Any], message: str) -> None:
    access = [{"principal": "arn:aws:iam::123456789012:role/deployer", "level": "admin"}]
    gateway = {"class_name": "traefik", "metrics": "traefik"}
    made = {"provision": "eks", "eks": {"region": "eu-west-1", "access": access}, "gateway": gateway}
    assert cluster(**made).eks is not None
    assert message in refusal(**(made | settings))


def test_a_domain_with_more_teams_than_a_gateway_has_listeners_is_refused() -> None:
    teams: dict[str, Any] = {f"team-{number}": {} for number in range(65)}
    assert len(cluster(teams=teams).teams) == 65
    assert "a Gateway has at most 64 listeners, and 65 teams" in refusal(
        teams=teams, gateway={"class_name": "x", "domain": "models.example.com"}
    )


def test_shared_gpus_say_how_many_share_one() -> None:
    (pool,) = cluster(pools=[GPU_POOL | {"gpu_resource": "nvidia.com/gpu.shared", "shares": 4}]).pools
    assert pool.shares == 4
