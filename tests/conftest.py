"""What tests of every kind share."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

from tests.cluster.real_node_needs import lacking
from tests.plugins import oip_server

_SLOWEST_FIRST = (
    "docker/test_container_servers", "engine", "cluster", "evaluation", "docker", "catalogue", "single_node", "rollout",
    "packaging", "component", "unit",
)  # fmt: skip
"""How the paths begin, in the order in which files are given to workers.

Who gets a slow one last keeps all waiting; and of files that need a Docker Engine, the second waits for the first.
"""

# Time is for benchmarks: beside other tests an example may take any.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_FIRST_PORT, _LAST_PORT, _PORTS_EACH = 11000, 22000, 200


def pytest_report_header() -> str:
    reason = lacking()
    return f"cluster tests: host processes, as {reason}" if reason else "cluster tests: real pods on a kubelet"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name no test: compressed ones hold the second of their making, and all workers must find the same names."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Counter(item.path for item in items)

    def turn(item: pytest.Item) -> tuple[int, int]:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        rank = next((rank for rank, start in enumerate(_SLOWEST_FIRST) if path.startswith(start)), 0)
        return rank, -tests[item.path]

    # Stable: tests of a file stay together, and in their order.
    items.sort(key=lambda item: (*turn(item), str(item.path)))


@pytest.fixture(scope="session")
def port_range() -> tuple[int, int]:
    """Ports of this test process's own, below those of tests/engine and those that the kernel gives to clients."""
    slots = (_LAST_PORT - _FIRST_PORT) // _PORTS_EACH
    first = _FIRST_PORT + os.getpid() % slots * _PORTS_EACH
    return first, first + _PORTS_EACH - 1


@pytest.fixture(scope="session")
def model_server() -> Path:
    """The stand-in model server's binary."""
    return oip_server.build()
