"""Projects for tests that run the real Pulumi engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.conftest import control_plane, gateway_class, kwok_nodes, own_control_plane, real_node
from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import GatewayClass
from tests.cluster.kwok_nodes import KwokNodes
from tests.cluster.prometheus import Prometheus
from tests.cluster.real_node import REAL_NODES, RealNode
from tests.cluster.real_node_needs import lacking
from tests.cluster.sharing import once, run_folder, shared
from tests.engine.cluster_sandbox import Cluster
from tests.engine.sandbox import Sandbox

__all__ = ["control_plane", "gateway_class", "kwok_nodes", "own_control_plane", "real_node"]


@pytest.fixture(scope="module")
def project() -> Iterator[Sandbox]:
    """A project whose platform is up, shared by the tests of a module: each uses a model of its own."""
    sandbox = Sandbox()
    try:
        sandbox.must("up", "dev", "--requests", "0")
        yield sandbox
    finally:
        sandbox.close()


@pytest.fixture
def own_project() -> Iterator[Sandbox]:
    """A project of the test's own, with nothing up."""
    sandbox = Sandbox()
    try:
        yield sandbox
    finally:
        sandbox.close()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster that sandboxes share: with real Pods, or where there can be none, with processes in their place."""
    if lacking():
        with _cluster_of_processes(run_folder(tmp_path_factory) / "cluster-of-processes") as found:
            yield found
    else:
        yield _cluster_of_pods(request)


def _cluster_of_pods(request: pytest.FixtureRequest) -> Cluster:
    plane: ControlPlane = request.getfixturevalue("control_plane")
    gateway: GatewayClass = request.getfixturevalue("gateway_class")
    node: RealNode = request.getfixturevalue("real_node")
    prometheus = Prometheus(plane)
    once(plane.folder, "prometheus", lambda: prometheus.start(gateway, node))
    found = Cluster(plane, gateway, prometheus.url, node)
    once(plane.folder, "image", lambda: node.import_image(found.image))
    # For tests of nodes that aren't there.
    request.getfixturevalue("kwok_nodes")
    return found


@contextmanager
def _cluster_of_processes(folder: Path) -> Iterator[Cluster]:
    """One of its own: where Pods are simulated for others, they have addresses, at which nobody is."""
    plane = ControlPlane(folder / "control-plane")
    gateway, prometheus = GatewayClass(plane), Prometheus(plane)

    def start() -> None:
        plane.folder.mkdir()
        plane.start()
        nodes = KwokNodes(plane, pod_addresses=False)
        nodes.start()
        nodes.add("simulated", labels=REAL_NODES)
        gateway.start()
        prometheus.start(gateway, None)

    with shared(folder, start, plane.stop):
        yield Cluster(plane, gateway, prometheus.url, None)
