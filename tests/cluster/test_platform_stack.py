"""A cluster's platform as users bring it up: `lepton up` against a real API server with a real Gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cluster.names import team_namespace
from infra.cluster.platform import GuardError, Platform
from infra.contracts import Stack
from infra.names import PLATFORM_PROJECT
from infra.settings import PlatformSettings
from tests.certificates import make_certificates
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import CLASS, CONTROLLER, GatewayClass
from tests.cluster.kwok_nodes import KwokNodes
from tests.cluster.sandbox import ClusterSandbox

IMAGE = "registry.example.org/gpu/plugin@sha256:" + "0123456789abcdef" * 4


@pytest.fixture
def sandbox(
    control_plane: ControlPlane, gateway_class: GatewayClass, kwok_nodes: KwokNodes
) -> Iterator[ClusterSandbox]:
    teams = {"diagnostics": {"quota": {"cpu": 8}, "default_limits": {"cpu": 1}}, "imaging": {}}
    found = ClusterSandbox(control_plane, gateway_class, teams=teams)
    try:
        yield found
    finally:
        found.close()


def test_a_platform_comes_up_says_where_it_is_stays_as_it_is_and_goes_without_a_trace(
    sandbox: ClusterSandbox,
) -> None:
    namespace = team_namespace(sandbox.name, "diagnostics")
    up = sandbox.up()
    assert up.status == 0, up
    made = sandbox.objects()
    assert f"Namespace -/{namespace}" in made
    assert f"PriorityClass -/{sandbox.home}-serving-critical" in made
    assert f"Gateway {sandbox.home}/lepton" in made

    outputs = sandbox.outputs()
    assert outputs["mode"] == "cluster"
    port = sandbox.settings["gateway"]["port"]
    assert outputs["endpoint_base_url"] == f"http://{sandbox.control_plane.address}:{port}"
    assert outputs["gpu_inventory"]["NVIDIA-H100-80GB-HBM3"] >= 32
    internals = outputs["internals"]
    assert internals["gateway"]["controller"] == CONTROLLER
    assert "HTTPRoute" in internals["gateway"]["features"]
    assert internals["gateway"]["listeners"] == {"diagnostics": "http", "imaging": "http"}
    assert internals["gateway"]["probe"] is True
    assert internals["teams"]["diagnostics"] == {
        "namespace": namespace,
        "quota": {"requests.cpu": "8"},
        "limits": {"cpu": "1"},
        "queue": None,
    }

    again = sandbox.up()
    assert again.status == 0, again
    assert "nothing changed" in again.err, again

    down = sandbox.lepton("down", sandbox.name)
    assert down.status == 0, down
    assert sandbox.objects() == []


def test_a_cluster_that_will_not_do_is_refused_before_anything_is_touched(sandbox: ClusterSandbox) -> None:
    sandbox.write_platform(gateway={"class_name": "istio"})
    said = "it has no GatewayClass of that name; there are: traefik"
    up = sandbox.lepton("up", sandbox.name)
    assert up.status == 1, up
    assert said in up.err
    assert "Traceback" not in up.err
    assert sandbox.objects() == []
    preview = sandbox.pulumi("preview", "--stack", sandbox.name, team=PLATFORM_PROJECT)
    assert preview.status != 0
    assert said in preview.out + preview.err


def test_a_guard_is_not_the_clusters_to_run() -> None:
    document = {
        "environment": "dev",
        "mode": "cluster",
        "guard": True,
        "cluster": {"teams": {"diagnostics": {}}, "gateway": {"class_name": CLASS}},
    }
    with pytest.raises(GuardError, match="run `lepton guard dev` where your automation runs"):
        Platform(Stack(team="lepton", name="dev", folder="/srv/project"), PlatformSettings.model_validate(document))


def test_a_gateway_without_its_certificate_is_told_until_it_is_there(
    sandbox: ClusterSandbox, gateway_class: GatewayClass, tmp_path: Path
) -> None:
    gateway = {
        "class_name": CLASS,
        "port": gateway_class.tls_port,
        "domain": "models.example.com",
        "tls": {"secret": "wildcard"},
    }
    sandbox.write_platform(gateway=gateway | {"ready_timeout": "3s"})
    up = sandbox.lepton("up", sandbox.name)
    assert up.status == 1, up
    assert f"the Gateway {sandbox.home}/lepton was not ready within 3 s" in up.err
    assert "listener diagnostics: not ResolvedRefs" in up.err
    assert "Traceback" not in up.err

    made = make_certificates(tmp_path, "*.models.example.com")
    sandbox.control_plane.apply(made.secret(sandbox.home, "wildcard"))
    sandbox.write_platform(gateway=gateway | {"ready_timeout": "60s"})
    up = sandbox.up()
    assert up.status == 0, up
    outputs = sandbox.outputs()
    assert outputs["endpoint_base_url"] == f"https://models.example.com:{gateway_class.tls_port}"
    assert outputs["internals"]["gateway"]["hostnames"]["imaging"] == "imaging.models.example.com"


def test_what_gpus_need_runs_on_the_nodes_that_have_them(sandbox: ClusterSandbox, kwok_nodes: KwokNodes) -> None:
    slices: dict[str, Any] = {"nvidia.com/gpu.shared": 8}
    node = kwok_nodes.add(f"{sandbox.name}-node", labels={"test-pool": sandbox.name}, **slices)
    sandbox.write_platform(
        gpus={"device_plugin": True, "dcgm_exporter": True},
        images={"device_plugin": IMAGE, "dcgm_exporter": IMAGE},
        pools=[
            {
                "name": "l4",
                "labels": {"test-pool": sandbox.name},
                "gpu_resource": "nvidia.com/gpu.shared",
                "product": f"L4-{sandbox.name}",
                "shares": 4,
            }
        ],
    )
    up = sandbox.up()
    assert up.status == 0, up
    outputs = sandbox.outputs()
    assert outputs["gpu_inventory"][f"L4-{sandbox.name}"] == 2
    assert outputs["internals"]["pools"][0]["gpu_resource"] == "nvidia.com/gpu.shared"
    pods = sandbox.control_plane.list("v1", "Pod", f"{sandbox.home}-gpus")
    assert {pod["spec"]["nodeName"] for pod in pods} == {node}
    assert len(pods) == 2
    again = sandbox.up()
    assert "nothing changed" in again.err, again
    # Before its node goes: it would be a minute until anybody took its Pods for ended.
    sandbox.must("down", sandbox.name)
    kwok_nodes.remove(node)
