"""What tests of every kind share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.plugins import oip_server

_FIRST_PORT, _LAST_PORT, _PORTS_EACH = 11000, 22000, 200


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
