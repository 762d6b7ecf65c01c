"""A database is opened, brought up to date and changed safely, or a clear error says why not, without its password."""

from __future__ import annotations

import logging
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from model_packaging.catalogue import migration
from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.catalogue.database import Database
from model_packaging.catalogue.query import Query
from model_packaging.catalogue.registration import forget
from model_packaging.catalogue.search import count
from model_packaging.catalogue.tables import REVISION, REVISION_TABLE, Base
from model_packaging.errors import CatalogueFailed
from tests.catalogue.conftest import NewDatabase
from tests.catalogue.servers import PASSWORD, Server
from tests.catalogue.versions import register
from tests.processes import at_once

_NOBODY = 65534

SECRETS = (PASSWORD, "s3cr%25t%2Fp%40ss%3Aword", "s3cr")


def differences(url: str) -> list[object]:
    """Between the tables that the migrations made, and those that the code has."""
    with Database(url) as database, database.connected() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
        return compare_metadata(context, Base.metadata)


def execute(url: str, *statements: str) -> None:
    with Database(url) as database, database.connected() as connection, connection.begin():
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_migrations_and_tables_agree(new_database: NewDatabase) -> None:
    url = new_database()
    Catalogue(url).close()
    assert differences(url) == []


def test_the_comparison_of_tables_sees_a_difference(new_database: NewDatabase) -> None:
    url = new_database()
    Catalogue(url).close()
    execute(url, "DROP INDEX ix_versions_registered" + ("" if "mysql" not in url else " ON versions"))
    execute(url, "ALTER TABLE versions ADD COLUMN other INTEGER")
    assert len(differences(url)) == 2


def test_the_revision_that_the_code_asks_for_is_the_last_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migration.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_processes_that_open_a_new_catalogue_at_once_make_it_once(new_database: NewDatabase) -> None:
    url = new_database()

    def open_and_use(number: int, together: Callable[[], object]) -> None:
        together()
        with Catalogue(url) as catalogue:
            register(catalogue, f"model-{number}")

    at_once(4, open_and_use)
    with Catalogue(url) as catalogue:
        assert catalogue.count() == 4
    assert differences(url) == []


def test_a_migration_that_was_interrupted_is_completed(new_database: NewDatabase) -> None:
    url = new_database()
    Catalogue(url).close()
    # As MySQL leaves it, which can't take back what creates tables: some of them, and no revision.
    index = "DROP INDEX ix_labels_name_value_version_id" + ("" if "mysql" not in url else " ON labels")
    execute(url, "DROP TABLE deployments", "DROP TABLE results", index, f"DELETE FROM {REVISION_TABLE}")
    with Catalogue(url) as catalogue:
        register(catalogue, "model")
    assert differences(url) == []


def test_a_catalogue_of_a_newer_version_of_this_code_is_refused_and_left_alone(new_database: NewDatabase) -> None:
    url = new_database()
    Catalogue(url).close()
    execute(url, f"UPDATE {REVISION_TABLE} SET version_num = '9999'", "DROP TABLE deployments")
    with pytest.raises(CatalogueFailed, match=rf"at revision 9999, .* knows revisions up to {REVISION}.*update lepton"):
        Catalogue(url)
    with Database(url) as database:
        assert not database.read(lambda connection: sqlalchemy.inspect(connection).has_table("deployments"))


def test_an_error_within_a_change_takes_all_of_it_back(new_database: NewDatabase) -> None:
    url = new_database()
    with Catalogue(url) as catalogue, Database(url) as database:
        register(catalogue, "model")

        def fail(connection: sqlalchemy.Connection) -> None:
            assert forget(connection, "model", "1.0.0", None)
            raise LookupError

        with pytest.raises(LookupError):
            database.write(fail)
        assert catalogue.count() == 1


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
@pytest.mark.parametrize("fault", ["no such database", "wrong password"])
def test_no_error_log_or_traceback_shows_the_password(
    server: str, fault: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    running: Server = request.getfixturevalue(server)
    address = running.administrator.set(database="missing")
    if fault == "wrong password":
        address = address.set(password=f"{PASSWORD}-not")
    with caplog.at_level(logging.DEBUG), pytest.raises(CatalogueFailed) as failed:
        Catalogue(address.render_as_string(hide_password=False))
    said = "".join(traceback.format_exception(failed.value)) + caplog.text + repr(failed.value)
    assert "lepton@" in said
    assert ("missing" if fault == "no such database" else "lepton") in str(failed.value)
    assert not [secret for secret in SECRETS if secret in said]


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_an_open_catalogue_does_not_show_its_password(
    server: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    running: Server = request.getfixturevalue(server)
    with caplog.at_level(logging.DEBUG), Catalogue(running.create("shown")) as catalogue:
        register(catalogue, "model")
        said = f"{catalogue!r} {catalogue} {vars(catalogue)} {catalogue.location} {caplog.text}"
    assert "lepton@" in said
    assert not [secret for secret in SECRETS if secret in said]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://lepton:s3cr@ss@host:port/catalogue",
        "lepton:s3cr@host",
        "oracle://lepton:s3cr@host/catalogue",
        "postgresql+asyncpg://lepton:s3cr@host/catalogue",
        "postgresql://lepton:s3cr@host",
        "mysql://lepton:s3cr@host/?ssl_key=s3cr",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///catalogue.sqlite?mode=ro&password=s3cr",
        "",
    ],
)
def test_a_url_that_names_no_catalogue_is_refused_with_the_form_of_one(url: str) -> None:
    with pytest.raises(CatalogueFailed, match="sqlite:///FILE") as refused:
        Catalogue(url)
    assert "s3cr" not in "".join(traceback.format_exception(refused.value))


def test_options_of_a_url_are_not_shown() -> None:
    with Database("postgresql://lepton@/catalogue?host=/run/postgresql&sslpassword=s3cr&password=s3cr") as database:
        assert database.location == "postgresql+psycopg://lepton@/catalogue?host=%2Frun%2Fpostgresql"


def test_a_file_with_options_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(CatalogueFailed, match="SQLite takes no options, and is given mode"):
        Catalogue(f"sqlite:///{tmp_path}/catalogue.sqlite?mode=ro")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "mysql://lepton:s3cr@127.0.0.1:1/catalogue?shade=green",
        "mysql://lepton:s3cr@127.0.0.1:1/catalogue?shade=s3cr&connect_timeout=s3cr",
        "mysql://lepton@127.0.0.1:1/catalogue?shade=green&connect_timeout=s3cr&password=s3cr",
        "mysql://lepton:s3cr@127.0.0.1:1/catalogue?shade=green&ssl_ca=/missing",
        "postgresql://lepton:s3cr@127.0.0.1:1/catalogue?shade=green",
    ],
)
def test_an_option_that_the_driver_does_not_know_is_a_clear_error(url: str) -> None:
    with pytest.raises(CatalogueFailed, match=r"lepton@127\.0\.0\.1:1/catalogue.*shade") as refused:
        Catalogue(url)
    assert "s3cr" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [("postgresql://host/catalogue", "psycopg", "postgresql"), ("mysql://host/catalogue", "pymysql", "mysql")],
)
def test_a_missing_driver_is_named_with_the_extra_that_installs_it(
    url: str, driver: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Python does for a module that is None there is what it does for one that is not installed.
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(CatalogueFailed, match=rf"driver {driver} is not installed.*'lepton\[{extra}\]'"):
        Catalogue(url)


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueFailed, match=f"postgresql.psycopg://lepton@.*{tmp_path.name}.*"):
        Catalogue(f"postgresql://lepton:s3cr@/catalogue?host={tmp_path}")


def test_a_connection_that_the_server_has_ended_is_made_again(postgresql: Server) -> None:
    url = postgresql.create("ended")
    with Catalogue(url) as catalogue:
        register(catalogue, "model")
        execute(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert catalogue.count() == 1


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.sqlite"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(CatalogueFailed, match=rf"{file}.*not a database.*name another file"):
        Catalogue(f"sqlite:///{file}")
    assert file.read_bytes() == b"not a database" * 100


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CatalogueFailed, match=f"{tmp_path}/file/folder"):
        Catalogue(f"sqlite:///{tmp_path}/file/folder/catalogue.sqlite")


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalogue.sqlite"
    with Catalogue(url) as catalogue:
        register(catalogue, "model", "1.0.0")

    def register_until_full(number: int, together: Callable[[], object]) -> tuple[int, str]:
        largest = 600_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        with Catalogue(url) as catalogue:
            for patch in range(1, 10_000):
                try:
                    register(catalogue, "model", f"1.0.{patch}", labels={f"label-{label}": "v" for label in range(50)})
                except CatalogueFailed as full:
                    return patch, str(full)
        return 0, "it never was full"

    [(written, said)] = at_once(1, register_until_full)
    assert "catalogue.sqlite" in said
    assert "full" in said or "disk I/O" in said, said
    with Catalogue(url) as catalogue:
        versions = catalogue.find()
        assert len(versions) == written
        assert all(len(version.labels) == 50 for version in versions[1:])
        register(catalogue, "model", "2.0.0")


def test_a_change_waits_for_another_processes(new_database: NewDatabase) -> None:
    url = new_database()
    with Catalogue(url) as catalogue:
        register(catalogue, "counted")

    def record(number: int, together: Callable[[], object]) -> None:
        with Catalogue(url) as catalogue:
            together()
            for value in range(10):
                catalogue.record_evaluation("counted", "1.0.0", {"f1": number * 10 + value}, dataset="d", who="x")

    at_once(3, record)
    with Catalogue(url) as catalogue:
        results = catalogue.show("counted", "1.0.0").results
    assert sorted(result.value for result in results) == list(range(30))
    assert sum(result.latest for result in results) == 1


def test_a_question_is_answered_from_one_state_and_holds_up_no_change(new_database: NewDatabase) -> None:
    url = new_database()
    with Catalogue(url) as catalogue, Database(url) as reader:
        register(catalogue, "model", "1.0.0")

        def change_meanwhile(connection: sqlalchemy.Connection) -> tuple[int, int]:
            before = count(connection, Query())
            register(catalogue, "model", "1.1.0")
            return before, count(connection, Query())

        assert reader.read(change_meanwhile) == (1, 1)
        assert catalogue.count() == 2


@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
def test_a_file_that_can_only_be_read_is_read_and_not_changed(folder_mode: int) -> None:
    def use_as_another(number: int, together: Callable[[], object]) -> tuple[int, str]:
        if os.geteuid() == 0:
            # Root may write everything.
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
        with Catalogue(url) as catalogue:
            with pytest.raises(CatalogueFailed) as refused:
                register(catalogue, "other")
            return catalogue.count(), str(refused.value)

    # Not in tmp_path, whose parents are the user's alone.
    with tempfile.TemporaryDirectory(prefix="lepton-") as name:
        folder = Path(name)
        url = f"sqlite:///{folder}/catalogue #1?.sqlite".replace("?", "%3F")
        with Catalogue(url) as catalogue:
            register(catalogue, "model")
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(folder_mode)
        try:
            [(counted, said)] = at_once(1, use_as_another)
        finally:
            folder.chmod(0o700)
    assert counted == 1
    assert f"{folder}/catalogue" in said
    assert "the file, or its folder, can't be written" in said


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueFailed, match=f"{tmp_path}: unable to open"):
        Catalogue(f"sqlite:///{tmp_path}")
