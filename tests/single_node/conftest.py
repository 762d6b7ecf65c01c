"""Nodes that run: one for each test process, and one of their own for tests that break things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.single_node.running_node import RunningNode, new_model


@pytest.fixture(scope="session")
def node(
    tmp_path_factory: pytest.TempPathFactory, port_range: tuple[int, int], model_server: Path
) -> Iterator[RunningNode]:
    """The node that tests share: they use models of their own, and break nothing but those."""
    yield from _run(tmp_path_factory.mktemp("node"), port_range, model_server)


@pytest.fixture
def own_node(
    tmp_path_factory: pytest.TempPathFactory, port_range: tuple[int, int], model_server: Path
) -> Iterator[RunningNode]:
    """A node for one test, which may break it."""
    yield from _run(tmp_path_factory.mktemp("own"), port_range, model_server)


@pytest.fixture
def model() -> str:
    """The name of a model that is this test's alone."""
    return new_model()


def _run(directory: Path, port_range: tuple[int, int], model_server: Path) -> Iterator[RunningNode]:
    running = RunningNode(directory, port_range, model_server)
    try:
        running.start()
        yield running
    finally:
        running.end()
