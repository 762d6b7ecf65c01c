"""A Docker Engine with an image of the stand-in model server, and nodes whose versions are containers."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.container_node import ContainerNode
from tests.docker.engine import Engine, any_engine, build_image
from tests.single_node.running_node import new_model


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model_server: Path) -> Iterator[Engine]:
    """The engine that the runtime under test finds too; nothing of the tests' is left in it.

    A module's and no longer, as other workers' tests wait for it.
    """
    with contextlib.ExitStack() as stack:
        client, is_own = stack.enter_context(any_engine())
        image = f"lepton-tests/model-server:{os.getpid()}"
        inside = _build_inside(tmp_path_factory.mktemp("inside"))
        build_image(client, image, {"oip-server": model_server, "inside": inside})
        stack.callback(client.images.remove, image, force=True)
        yield Engine(client, image, is_own)


@pytest.fixture(scope="module")
def running_node(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, port_range: tuple[int, int]
) -> Iterator[ContainerNode]:
    """A node with its router, shared by the tests of a module: each uses a model of its own."""
    node = ContainerNode(tmp_path_factory.mktemp("node"), port_range, engine)
    try:
        node.start()
        yield node
    finally:
        node.end()


@pytest.fixture
def node(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, port_range: tuple[int, int]
) -> Iterator[ContainerNode]:
    """A node of the test's own, without a router: for tests of the runtime alone."""
    node = ContainerNode(tmp_path_factory.mktemp("node"), port_range, engine)
    try:
        yield node
    finally:
        node.end()


@pytest.fixture
def model() -> str:
    """The name of a model that is this test's alone."""
    return new_model()


def _build_inside(folder: Path) -> Path:
    source = Path(__file__).parent / "inside"
    command = ["go", "build", "-buildvcs=false", "-o", str(folder / "inside"), "."]
    subprocess.run(command, cwd=source, env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}, check=True)
    return folder / "inside"
