"""The platform of a cluster that it makes itself: AWS as mocks say it, and a real API server behind the new cluster."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.runtime.mocks import MockResourceArgs

from infra.cluster.platform import Platform
from infra.contracts import Stack
from infra.settings import PlatformSettings
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import CLASS, CONTROLLER, GatewayClass
from tests.component.eks_cluster import BASE, H100, L4, Aws

IMAGE = "registry.example.org/gpu/plugin@sha256:" + "0123456789abcdef" * 4
STACK = Stack(team="lepton", name="prod", folder="/srv/project")


class _Cloud(Aws):
    """AWS, whose one cluster is the control plane."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self.objects: list[tuple[str, str]] = []

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        identity, made = super().new_resource(args)
        if args.typ == "aws:eks/cluster:Cluster":
            authority = base64.b64encode(self._control_plane.certificate_authority.read_bytes()).decode()
            made |= {"endpoint": self._control_plane.url, "certificateAuthority": {"data": authority}}
        if args.typ.startswith("kubernetes:"):
            self.objects.append((args.typ.rpartition(":")[2], args.inputs["metadata"]["name"]))
        return identity, made


@pytest.fixture
def cloud(control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Cloud:
    """With an `aws` command that gives whoever asks for a token the administrator's certificate instead."""
    status = {
        name: (control_plane.folder / f"admin.{suffix}").read_text()
        for name, suffix in (("clientCertificateData", "crt"), ("clientKeyData", "key"))
    }
    credential = {"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential", "status": status}
    (tmp_path / "credential.json").write_text(json.dumps(credential))
    command = tmp_path / "aws"
    command.write_text(f"#!/bin/sh\nexec cat {tmp_path}/credential.json\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return _Cloud(control_plane)


def up(cloud: _Cloud, class_name: str) -> dict[str, Any]:
    document = {
        "environment": "prod",
        "mode": "cluster",
        "cluster": {
            "provision": "eks",
            "eks": BASE | {"pools": [L4, H100]},
            "teams": {"diagnostics": {}},
            "gateway": {"class_name": class_name, "metrics": "traefik", "url": "https://models.example.com"},
            "gpus": {"device_plugin": True},
            "images": {"device_plugin": IMAGE},
            "monitoring": {"kind": "external", "url": "http://prometheus.example.org:9090"},
        },
    }
    exports: dict[str, Any] = {}
    pulumi.runtime.set_mocks(cloud, project="lepton", stack="prod")

    @pulumi.runtime.test
    def program() -> Any:
        platform = Platform(STACK, PlatformSettings.model_validate(document))
        return pulumi.Output.all(**platform.exports).apply(exports.update)

    program()
    return exports


def test_what_the_cluster_is_made_of_reaches_the_stacks_that_use_it(cloud: _Cloud, gateway_class: GatewayClass) -> None:
    exports = up(cloud, CLASS)
    assert exports["endpoint_base_url"] == "https://models.example.com"
    assert exports["gpu_inventory"] == {"NVIDIA-L4": 4, "NVIDIA-H100-80GB-HBM3": 16}
    assert exports["registry"].endswith("amazonaws.com/lepton/prod")
    internals = exports["internals"]
    assert internals["gateway"]["controller"] == CONTROLLER
    assert internals["aws"]["region"] == "eu-west-1"
    assert [pool["name"] for pool in internals["pools"]] == ["cpu", "l4", "h100"]
    connection = internals["connection"]
    assert connection["kubeconfig"] is None
    assert connection["identity"]
    assert "PRIVATE KEY" not in connection["document"]
    assert ("StorageClass", "lepton-gp3") in cloud.objects


def test_nodes_with_a_device_plugin_of_their_own_get_no_other(cloud: _Cloud, gateway_class: GatewayClass) -> None:
    up(cloud, CLASS)
    assert [name for kind, name in cloud.objects if kind == "DaemonSet"] == ["nvidia-device-plugin-h100"]


def test_nothing_is_put_into_a_new_cluster_that_lacks_its_gateway_class(
    cloud: _Cloud, gateway_class: GatewayClass
) -> None:
    with pytest.raises(pulumi.RunError, match=f"it has no GatewayClass of that name; there are: {CLASS}"):
        up(cloud, "istio")
    assert cloud.objects == []
