"""Brings a database to the tables of this code, once, however many open it at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from model_packaging.catalogue.database import BUSY_SECONDS, Database
from model_packaging.catalogue.tables import REVISION, REVISION_TABLE
from model_packaging.errors import CatalogueFailed

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = "lepton.catalogue.migration"
_LOCK_NUMBER = int.from_bytes(b"lepton", "big")
"""PostgreSQL names its advisory locks by numbers."""


def bring_up_to_date(database: Database) -> None:
    """Runs the migrations that the database lacks.

    Raises:
        CatalogueFailed: a newer version of this code has brought the database further.
    """
    if database.read(current_revision) == REVISION:
        return
    with database.connected() as connection, _alone(connection):
        _upgrade(connection, database.location)


def current_revision(connection: Connection) -> str | None:
    """The last migration that the database has seen; None for a new one."""
    if not inspect(connection).has_table(REVISION_TABLE):
        return None
    return connection.scalar(text(f"SELECT version_num FROM {REVISION_TABLE}"))  # noqa: S608 - a constant


def _upgrade(connection: Connection, location: str) -> None:
    from alembic import command  # noqa: PLC0415 - slow to import, and seldom needed
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    revision = current_revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise CatalogueFailed(
            f"{location} is at revision {revision}, and this version of lepton knows revisions up to {REVISION}; "
            "a newer one has changed it: update lepton here too"
        )
    command.upgrade(config, "head")


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """A transaction that no other process has such a one beside."""
    match connection.dialect.name:
        case "sqlite":
            # Begins with the write lock.
            with connection.begin():
                yield
        case "postgresql":
            with connection.begin():
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
                yield
        case _:
            # DDL ends a transaction here: the lock has to be the connection's.
            lock = {"name": _LOCK, "seconds": BUSY_SECONDS}
            with connection.begin():
                held = connection.scalar(text("SELECT GET_LOCK(CONCAT(DATABASE(), ':', :name), :seconds)"), lock)
            if held != 1:
                raise CatalogueFailed(
                    f"another process has been migrating the catalogue for {BUSY_SECONDS} s; "
                    "wait for it to end, or end it"
                )
            try:
                with connection.begin():
                    yield
            finally:
                with connection.begin():
                    connection.execute(text("SELECT RELEASE_LOCK(CONCAT(DATABASE(), ':', :name))"), lock)
