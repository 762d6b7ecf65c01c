"""Projects for tests that run the real Pulumi engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.sandbox import Sandbox


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
