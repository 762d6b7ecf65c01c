"""A version's stack as users deploy it: `lepton deploy` against a real API server with simulated GPU nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from infra.cluster.names import version_namespace
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import GatewayClass
from tests.cluster.kwok_nodes import KwokNodes
from tests.cluster.registry import RegistryServer
from tests.cluster.sandbox import ClusterSandbox
from tests.deadline import until
from tests.plugins.kubernetes.api import ApiError

MODEL = "tumour"
IMAGE = "registry.example.org/lepton@sha256:" + "0123456789abcdef" * 4
H100 = "NVIDIA-H100-80GB-HBM3"


class VersionSandbox(ClusterSandbox):
    """Versions of one model, on simulated nodes."""

    def __init__(self, control_plane: ControlPlane, gateway_class: GatewayClass, registry: RegistryServer) -> None:
        h100 = {"labels": {"nvidia.com/gpu.product": H100}, "gpu_resource": "nvidia.com/gpu", "product": H100}
        images, pools = {"server": IMAGE, "puller": IMAGE}, [{"name": "h100", **h100}]
        super().__init__(control_plane, gateway_class, store=registry.store, images=images, pools=pools)
        self.set_team()

    def set_team(self, **settings: Any) -> None:
        """What the platform has of the team, beside its quota."""
        team = {"quota": {"gpus": {"nvidia.com/gpu": 100}}} | settings
        self.write_platform(teams={self.team: team})

    def write(self, version: str, *, package: bool = True, **settings: Any) -> str:
        """A version of the model; returns its address."""
        if package:
            self.package(MODEL, version)
        document = {"environment": self.name, "model": MODEL, "version": version, "ready_timeout": "60s"} | settings
        return self._write(self.team, f"{self.name}.{MODEL}-{version}", "version", document)

    def namespace(self, version: str) -> str:
        return version_namespace(self.name, self.team, MODEL, version)

    def object(self, api_version: str, kind: str, version: str, name: str = "server") -> dict[str, Any] | None:
        return self.control_plane.get(api_version, kind, name, self.namespace(version))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    found = RegistryServer(tmp_path_factory.mktemp("registry"))
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def sandbox(
    control_plane: ControlPlane, gateway_class: GatewayClass, kwok_nodes: KwokNodes, registry: RegistryServer
) -> Iterator[VersionSandbox]:
    """With its platform up. Each test has versions of its own."""
    found = VersionSandbox(control_plane, gateway_class, registry)
    try:
        up = found.up()
        assert up.status == 0, up
        yield found
    finally:
        found.close()


def test_a_version_comes_up_stays_as_it_is_moves_and_goes_without_a_trace(sandbox: VersionSandbox) -> None:
    address = sandbox.write("1.0.0", replicas=2, pool="h100", resources={"cpu": 1, "memory": "1Gi", "gpu": 1})
    deployed = sandbox.deploy(address)
    assert deployed.status == 0, deployed
    outputs = sandbox.outputs(address)
    assert outputs["backend"] == {
        "protocol": "oip-v2",
        "grpc": True,
        "namespace": sandbox.namespace("1.0.0"),
        "service": "server",
        "http_port": 8080,
        "grpc_port": 8081,
    }
    assert (outputs["desired_replicas"], outputs["ready_replicas"]) == (2, 2)
    assert outputs["artifact_digest"] == sandbox.artifact_store.resolve(MODEL, "1.0.0")
    namespace = sandbox.control_plane.get("v1", "Namespace", sandbox.namespace("1.0.0")) or {}
    assert namespace["metadata"]["labels"]["lepton/stage"] == "development"

    again = sandbox.deploy(address)
    assert again.status == 0, again
    assert "nothing changed" in again.out, again

    sandbox.write("1.0.0", package=False, replicas=0, pool="h100", resources={"cpu": 1, "memory": "1Gi", "gpu": 1})
    stopped = sandbox.deploy(address)
    assert stopped.status == 0, stopped
    assert sandbox.outputs(address)["ready_replicas"] == 0

    gone = sandbox.pulumi("destroy", "--yes", "--stack", address.partition("/")[2])
    assert gone.status == 0, gone
    assert sandbox.control_plane.get("v1", "Namespace", sandbox.namespace("1.0.0")) is None


def test_an_autoscalers_number_outlives_an_update(sandbox: VersionSandbox) -> None:
    settings: dict[str, Any] = {"autoscaling": {"min": 1, "max": 4, "target": 0.5}}
    address = sandbox.write("2.0.0", resources={"cpu": 0.1}, **settings)
    assert sandbox.deploy(address).status == 0
    # As an autoscaler does it.
    sandbox.control_plane.api.patch(
        "apps/v1", "Deployment", "server", sandbox.namespace("2.0.0"), {"spec": {"replicas": 3}}, subresource="scale"
    )
    sandbox.write("2.0.0", package=False, resources={"cpu": 0.2}, **settings)
    updated = sandbox.deploy(address)
    assert updated.status == 0, updated
    deployment = sandbox.object("apps/v1", "Deployment", "2.0.0")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 3


def test_a_new_version_that_scales_begins_with_its_replicas_and_comes_back_with_them(sandbox: VersionSandbox) -> None:
    settings: dict[str, Any] = {"autoscaling": {"min": 2, "max": 4, "target": 0.5}, "resources": {"cpu": 0.1}}
    address = sandbox.write("2.1.0", replicas=3, **settings)
    for package, replicas in ((True, 3), (False, 0), (False, 3)):
        if not package:
            sandbox.write("2.1.0", package=False, replicas=replicas, **settings)
        deployed = sandbox.deploy(address)
        assert deployed.status == 0, deployed
        deployment = sandbox.object("apps/v1", "Deployment", "2.1.0") or {}
        assert deployment["spec"]["replicas"] == replicas
        assert sandbox.outputs(address)["desired_replicas"] == replicas


def test_what_takes_long_has_its_time_and_no_more(sandbox: VersionSandbox) -> None:
    address = sandbox.write("2.2.0", replicas=10, drain_timeout="1h", ready_timeout="90s")
    assert sandbox.deploy(address).status == 0
    state = sandbox.pulumi("stack", "export", "--stack", address.partition("/")[2]).json
    timeouts = {
        resource["type"].rpartition(":")[2]: resource.get("customTimeouts") or {}
        for resource in state["deployment"]["resources"]
    }
    assert timeouts["Deployment"]["update"] == 4 * 90 + 10
    assert min(timeouts[kind]["delete"] for kind in ("Deployment", "Namespace")) > 3600 + 5


def test_a_stage_that_this_machine_does_not_know_stays(sandbox: VersionSandbox) -> None:
    address = sandbox.write("2.3.0")
    assert sandbox.deploy(address).status == 0
    promoted = sandbox.lepton("package", "promote", f"{MODEL}:2.3.0", "--why", "it is fine")
    assert promoted.status == 0, promoted
    assert sandbox.deploy(address).status == 0
    catalogue = sandbox.root / ".state" / "catalogue.sqlite"
    away = catalogue.rename(catalogue.with_suffix(".away"))
    try:
        sandbox.write("2.3.0", package=False, warm_up=3)
        elsewhere = sandbox.deploy(address)
        assert elsewhere.status == 0, elsewhere
    finally:
        away.replace(catalogue)
    namespace = sandbox.control_plane.get("v1", "Namespace", sandbox.namespace("2.3.0")) or {}
    assert namespace["metadata"]["labels"]["lepton/stage"] == "testing"


def test_gpus_that_are_not_there_fail_the_deploy_in_its_time_and_are_named(sandbox: VersionSandbox) -> None:
    address = sandbox.write("3.0.0", pool="h100", resources={"gpu": 64}, ready_timeout="5s")
    failed = sandbox.deploy(address)
    assert failed.status == 1
    assert "pool h100 lacks 64 nvidia.com/gpu on one node" in failed.err, failed


def test_a_version_beyond_the_teams_quota_is_refused_before_anything_is_made(sandbox: VersionSandbox) -> None:
    address = sandbox.write("4.0.0", resources={"gpu": 101})
    refused = sandbox.deploy(address)
    assert refused.status == 1
    assert f"team {sandbox.team} may have requests.nvidia.com/gpu 100" in refused.err, refused
    assert sandbox.control_plane.get("v1", "Namespace", sandbox.namespace("4.0.0")) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pool": "h200"}, "pool: given 'h200': the platform's pools are h100"),
        ({"artifact": f"sha256:{'0' * 64}"}, "lepton:version.artifact: given sha256:0000"),
    ],
)
def test_what_cannot_be_served_is_refused_at_preview(
    sandbox: VersionSandbox, settings: dict[str, Any], said: str
) -> None:
    address = sandbox.write("5.0.0", **settings)
    name = address.partition("/")[2]
    sandbox.pulumi("stack", "init", name)
    preview = sandbox.pulumi("preview", "--stack", name)
    assert preview.status != 0
    assert said in preview.out + preview.err, preview


def test_a_version_is_immutable(sandbox: VersionSandbox) -> None:
    address = sandbox.write("6.0.0")
    assert sandbox.deploy(address).status == 0
    first = sandbox.outputs(address)["artifact_digest"]
    store = sandbox.artifact_store
    store.delete(MODEL, "6.0.0")
    (sandbox.root / "models" / MODEL / "6.0.0" / "more.bin").write_bytes(b"other")
    sandbox.write("6.0.0")
    refused = sandbox.deploy(address)
    assert refused.status == 1
    assert f"was deployed as {first}" in refused.err, refused


def test_secrets_are_in_the_cluster_alone(sandbox: VersionSandbox) -> None:
    address = sandbox.write("7.0.0", env={"PLAIN": "x"})
    name = address.partition("/")[2]
    sandbox.pulumi("stack", "init", name)
    path = "lepton:version.env.TOKEN"
    kept = sandbox.pulumi("config", "set", "--secret", "--path", "--stack", name, path, "s3cret-of-the-tests")
    assert kept.status == 0, kept
    deployed = sandbox.deploy(address)
    assert deployed.status == 0, deployed
    state = sandbox.pulumi("stack", "export", "--stack", name).out
    assert "s3cret-of-the-tests" not in state
    assert "czNjcmV0LW9mLXRoZS10ZXN0cw" not in state
    secret = sandbox.object("v1", "Secret", "7.0.0", "environment")
    assert secret is not None
    assert secret["data"]["TOKEN"] == "czNjcmV0LW9mLXRoZS10ZXN0cw=="
    deployment = sandbox.object("apps/v1", "Deployment", "7.0.0")
    assert "s3cret" not in json.dumps(deployment)


def _kueues(kind: str, scope: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Stands in for a definition of Kueue's, as strict with what never changes."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "properties": {"spec": {"type": "object", **spec}}}
    served = {"name": "v1beta1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.kueue.x-k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test's own"},
        },
        "spec": {
            "group": "kueue.x-k8s.io",
            "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [served],
        },
    }


def test_a_team_that_gets_another_queue_has_its_versions_go_there(sandbox: VersionSandbox) -> None:
    group, cluster = "kueue.x-k8s.io/v1beta1", sandbox.control_plane
    immutable = {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]}
    cluster.apply(_kueues("LocalQueue", "Namespaced", {"properties": {"clusterQueue": immutable}}))
    cluster.apply(_kueues("ClusterQueue", "Cluster", {"x-kubernetes-preserve-unknown-fields": True}))
    queues = [{"apiVersion": group, "kind": "ClusterQueue", "metadata": {"name": name}} for name in ("gpus", "more")]
    until(lambda: _applied(cluster, *queues), 30, what="Kueue's kinds being served")
    sandbox.write_platform(features=["kueue"])
    address = ""
    for name in ("gpus", "more"):
        sandbox.set_team(queue=name)
        up = sandbox.pulumi("up", "--yes", "--skip-preview", "--stack", sandbox.name, team="lepton")
        assert up.status == 0, up
        address = address or sandbox.write("8.0.0")
        deployed = sandbox.deploy(address)
        assert deployed.status == 0, deployed
        queue = sandbox.object(group, "LocalQueue", "8.0.0", sandbox.team) or {}
        assert queue["spec"]["clusterQueue"] == name
    deployment = sandbox.object("apps/v1", "Deployment", "8.0.0") or {}
    assert deployment["metadata"]["generation"] == 1, "Kueue refuses it another queue's name while it serves"


def _applied(cluster: ControlPlane, *manifests: dict[str, Any]) -> bool:
    with suppress(ApiError):
        cluster.apply_all(*manifests)
        return True
    return False
