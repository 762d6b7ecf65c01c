"""A version whose model is in ECR: its Pods take a role of AWS's. AWS is as mocks say it."""

from __future__ import annotations

from typing import Any

import pytest

from infra.cluster import version as served
from infra.cluster.internals import Connection
from infra.cluster.version import ServedVersion
from infra.contracts import Stack
from tests.cluster.control_plane import ControlPlane
from tests.cluster.test_version_manifests import ECR_STORE, ON_EKS, version
from tests.component.eks_cluster import Deployment, declare

ASSOCIATION = "aws:eks/podIdentityAssociation:PodIdentityAssociation"
STACK = Stack(team="diagnostics", name="dev.tumour-1.0.0", folder="/srv/project")


def deployed(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, store: str) -> Deployment:
    """As a preview shows it: nothing of it is made."""
    connection: Connection = {"kubeconfig": str(control_plane.kubeconfig), "context": None, "document": None}
    made = version({**ON_EKS, "connection": connection}, of={"store": store})
    # There is no ECR to read it from.
    monkeypatch.setattr(served, "read_version", lambda *_, **__: made)
    # Nor an engine, to ask for what the stack has.
    monkeypatch.setattr(served, "own_outputs", dict)

    def program(_: Deployment) -> None:
        platform: Any = None
        ServedVersion(STACK, made.settings, platform, secret=False)

    return declare(program, stack=STACK.name, preview=True)


def test_its_pods_have_the_pullers_role_before_they_start(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = deployed(control_plane, monkeypatch, ECR_STORE)
    association, workload = found.one(ASSOCIATION), found.one("kubernetes:apps/v1:Deployment")
    own = found.one("kubernetes:core/v1:Namespace")["metadata"]["name"]
    assert association.inputs == {
        "clusterName": "dev",
        "namespace": own,
        "serviceAccount": workload["spec"]["template"]["spec"]["serviceAccountName"],
        "roleArn": "arn:aws:iam::123456789012:role/p",
    }
    (provider,) = found.every("pulumi:providers:aws").values()
    assert provider["region"] == "eu-west-1"
    assert f"::{provider.name}::" in association.provider
    assert found.precedes(association, workload)


def test_none_have_where_the_model_is_in_another_registry(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = deployed(control_plane, monkeypatch, "oci://registry.example.org/models")
    assert not found.every(ASSOCIATION)
    assert not found.every("pulumi:providers:aws")
