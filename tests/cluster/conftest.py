"""One cluster for the whole run, and clusters of their own for tests that break things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.gateway import GatewayClass
from tests.cluster.kwok_nodes import KwokNodes
from tests.cluster.real_node import RealNode
from tests.cluster.real_node_needs import lacking
from tests.cluster.sharing import once, run_folder, shared

_NODES = 4


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane that all tests of the run share: each uses Namespaces of its own, and breaks nothing."""
    folder = run_folder(tmp_path_factory) / "cluster"
    found = ControlPlane(folder / "control-plane")

    def start() -> None:
        found.folder.mkdir()
        found.start()

    with shared(folder, start, found.stop):
        yield found


@pytest.fixture(scope="session")
def kwok_nodes(control_plane: ControlPlane) -> KwokNodes:
    """The shared control plane's nodes, of which there are four with eight GPUs each."""
    nodes = KwokNodes(control_plane)

    def start() -> None:
        nodes.start()
        for number in range(_NODES):
            nodes.add(f"gpu-{number}", gpu="NVIDIA-H100-80GB-HBM3", gpus=8)

    once(control_plane.folder, "kwok", start)
    return nodes


@pytest.fixture(scope="session")
def gateway_class(control_plane: ControlPlane) -> GatewayClass:
    """The shared control plane's GatewayClass, with its data plane."""
    found = GatewayClass(control_plane)
    once(control_plane.folder, "gateway", found.start)
    return found


@pytest.fixture(scope="session")
def real_node(control_plane: ControlPlane) -> Iterator[RealNode | None]:
    """The shared control plane's real node; None where this machine can't have one, as `lacking` says."""
    if lacking():
        yield None
        return
    found = RealNode(control_plane, control_plane.folder / "node")
    with shared(control_plane.folder / "node-users", found.start, found.stop):
        yield found


@pytest.fixture
def own_control_plane() -> Iterator[ControlPlane]:
    """A control plane for one test, which may break it."""
    found = ControlPlane.in_new_folder()
    try:
        found.start()
        yield found
    finally:
        found.stop()
