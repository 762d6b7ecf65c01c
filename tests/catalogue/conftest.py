"""Catalogues in every database that there can be, shared by the tests of a module: each uses models of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_packaging.catalogue.catalogue import Catalogue
from tests.catalogue import servers

NewDatabase = Callable[[], str]
"""Makes an empty database, and returns its URL."""

# Counted for the whole process: a fixture with parameters is made again for each, the servers are not.
_MODELS, _DATABASES = itertools.count(), itertools.count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[servers.Server]:
    yield from _or_skip(servers.postgresql)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[servers.Server]:
    yield from _or_skip(servers.mariadb)


@pytest.fixture(scope="session", params=["sqlite", "postgresql", "mariadb"])
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewDatabase:
    if request.param == "sqlite":
        folder: Path = tmp_path_factory.mktemp("databases")
        return lambda: f"sqlite:///{folder}/{next(_DATABASES)}.sqlite"
    server: servers.Server = request.getfixturevalue(request.param)
    return lambda: server.create(f"test{next(_DATABASES)}")


@pytest.fixture(scope="module")
def catalogue(new_database: NewDatabase) -> Iterator[Catalogue]:
    """The catalogue that a module's tests share."""
    with Catalogue(new_database()) as opened:
        yield opened


@pytest.fixture
def model() -> str:
    """The name of a model that is this test's alone."""
    return f"model-{next(_MODELS)}"


def _or_skip(run: Callable[[], contextlib.AbstractContextManager[servers.Server]]) -> Iterator[servers.Server]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(run())
        except servers.NoServerError as reason:
            if os.environ.get("CI") == "true":
                pytest.fail(str(reason))
            pytest.skip(str(reason))
        yield server
