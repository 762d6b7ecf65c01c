"""Manifests are written as the API server writes them back: a refresh finds nothing else, and an update has no work.

The plugin compares as text. What is written otherwise, or is empty and not kept, would be drift for ever.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.quantities import number, size
from tests.cluster.control_plane import ControlPlane
from tests.cluster.test_monitoring_manifests import within
from tests.cluster.test_version_manifests import KINDS, cluster, model, version
from tests.cluster.test_version_manifests import objects as version_objects
from tests.plugins.kubernetes import objects

__all__ = ["cluster", "model"]


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    name = control_plane.namespace(f"canonical-{uuid.uuid4().hex[:8]}")
    yield name
    control_plane.delete("v1", "Namespace", name)


def rewritten(control_plane: ControlPlane, manifest: Manifest) -> list[str]:
    """Where the API server has it otherwise than it was given, as the plugin sees it."""
    given = objects.normalized(manifest)
    live = control_plane.apply(manifest)
    where = f"{manifest['kind']} {manifest['metadata']['name']}"
    found = objects.differences(objects.pruned(live, given), given)
    return [f"{where}: {what} {objects.written(path)}" for path, what in found]


@pytest.mark.parametrize("kind", KINDS)
def test_those_of_a_version(cluster: ControlPlane, model: str, kind: str) -> None:
    config, of = KINDS[kind]
    made = version(of=of, model=model, **config)
    assert [text for manifest in version_objects(made) for text in rewritten(cluster, manifest)] == []
    cluster.delete("v1", "Namespace", made.namespace)


def test_those_of_monitoring(control_plane: ControlPlane, namespace: str) -> None:
    found = [text for manifest in within(namespace) for text in rewritten(control_plane, manifest)]
    for manifest in within(namespace):
        if manifest["kind"].startswith("ClusterRole"):
            control_plane.delete(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"])
    assert found == []


def test_quantities_of_any_amount(control_plane: ControlPlane, namespace: str) -> None:
    counts = [0, 1, 10, 500, 999, 1000, 1001, 1024, 2500, 10**6, 3 * 2**20, 1_500_000_000, 2**30 + 1, 5 * 10**12]
    cores = [0, 0.05, 0.5, 1, 1.5, 10, 999, 1000, 1000.5, 2500, 10_000]
    written = [{"memory": size(count)} for count in counts] + [{"cpu": number(value)} for value in cores]
    for hard in written:
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "quota", "namespace": namespace},
            "spec": {"hard": hard},
        }
        assert control_plane.apply(quota, dry_run=True)["spec"]["hard"] == hard
