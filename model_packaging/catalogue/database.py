"""The database behind the catalogue: opened by its URL, asked and changed in transactions.

A URL may hold a password: no error, log or representation shows more of it than the location.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from model_packaging.errors import CatalogueFailed

if TYPE_CHECKING:
    import sqlite3

BUSY_SECONDS = 30
"""How long a change waits for another process's to end."""
CONNECT_SECONDS = 10

_ATTEMPTS = 5
_DRIVERS = {
    "sqlite": ("sqlite", None),
    "postgresql": ("postgresql+psycopg", "postgresql"),
    "mysql": ("mysql+pymysql", "mysql"),
    "mariadb": ("mariadb+pymysql", "mysql"),
}
"""Database -> the driver that it is used through, and the extra that installs it."""
_FORMS = (
    "sqlite:///FILE, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or mysql+pymysql://USER:PASSWORD@HOST/DATABASE, "
    "with special characters of the password percent-encoded"
)
_SHOWN_OPTIONS = ("host", "port", "unix_socket")
_ENDED_FOR_ANOTHER = {"40001", "40P01", 1205, 1213}
"""What PostgreSQL, and MySQL, say of a transaction that may well succeed when run again: serialisation, deadlock."""

T = TypeVar("T")


class Database:
    """A database that is open. Close it, or use it as a context manager."""

    def __init__(self, url: str) -> None:
        """Opens the database at a URL; a server is asked only when first needed.

        Raises:
            CatalogueFailed: the URL is not understood, or its driver is not installed.
        """
        parsed = _parse(url)
        self.location = _location(parsed)
        self._secrets = _secrets(parsed)
        self._options = ", ".join(parsed.query) or "none"
        self._engine = self._create(parsed)
        self._reader = self._engine.execution_options(
            **({"begin": "DEFERRED"} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"})
        )

    def __repr__(self) -> str:
        return f"Database({self.location!r})"

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_sqlite(self) -> bool:
        return self.dialect == "sqlite"

    @property
    def dialect(self) -> str:
        return self._engine.dialect.name

    def close(self) -> None:
        self._engine.dispose()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work`, which only reads, on one state of the database.

        Raises:
            CatalogueFailed: the database can't be reached or read.
        """
        with self._errors_translated(), self._reader.begin() as connection:
            return work(connection)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction: all that it changes is there afterwards, or nothing, whatever happens.

        Work runs again where another's came in between: where both inserted the same key, or waited for each other.

        Raises:
            CatalogueFailed: the database can't be reached or changed.
        """
        with self._errors_translated():
            attempts_left = _ATTEMPTS
            while True:
                attempts_left -= 1
                try:
                    with self._engine.begin() as connection:
                        return work(connection)
                except DBAPIError as error:
                    if not attempts_left or not _came_in_between(error):
                        raise

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """A connection whose transactions are the caller's."""
        with self._errors_translated(), self._engine.connect() as connection:
            yield connection

    def _create(self, url: URL) -> Engine:
        database = url.get_backend_name()
        extra = _DRIVERS[database][1]
        if database == "sqlite":
            _make_folder(url)
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
        else:
            # Changes see what others have committed meanwhile, and take no locks on gaps between rows.
            options = {"isolation_level": "READ COMMITTED", "pool_pre_ping": True}
            if "connect_timeout" not in url.query:
                url = url.update_query_dict({"connect_timeout": str(CONNECT_SECONDS)})
        try:
            with self._options_checked():
                engine = create_engine(url, hide_parameters=True, **options)
        except ModuleNotFoundError as error:
            raise CatalogueFailed(
                f"{self.location}: the driver {error.name} is not installed; install it with "
                f"pip install 'lepton[{extra}]'"
            ) from None
        if database == "sqlite":
            event.listen(engine, "do_connect", _connect_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            event.listen(engine, "do_connect", self._connect_server)
        return engine

    def _connect_server(self, dialect: Dialect, record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
        del record
        with self._options_checked():
            return dialect.connect(*arguments, **options)

    @contextmanager
    def _options_checked(self) -> Iterator[None]:
        """Around what is given the URL's options: drivers answer those that they can't use with any built-in error."""
        try:
            yield
        except (ArgumentError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            text = self._without_secrets(str(error))
            # Without the cause: what the driver raised may hold the password.
            raise CatalogueFailed(
                f"{self.location}: the driver can't use the catalogue's URL (its options: {self._options}): {text}"
            ) from None

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            text = self._without_secrets(str(error.orig).strip())
            raise CatalogueFailed(f"{self.location}: {text}{_advice(text)}") from None

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _parse(given: str) -> URL:
    url = None
    with suppress(ArgumentError, ValueError):
        url = make_url(given)
    if url is None:
        # Neither quoted nor explained: what can't be read may hold a password anywhere.
        raise CatalogueFailed(f"the catalogue's URL can't be read; give {_FORMS}")
    database, _, driver = url.drivername.partition("+")
    known = _DRIVERS.get(database, ("", None))[0]
    if not known or driver not in ("", known.partition("+")[2]):
        raise CatalogueFailed(f"no catalogue can be kept in {url.drivername!r}; give {_FORMS}")
    if database == "sqlite" and url.database in (None, "", ":memory:"):
        raise CatalogueFailed("the catalogue's URL names no file; give sqlite:///FILE")
    if database == "sqlite" and url.query:
        raise CatalogueFailed(
            f"{_location(url)}: SQLite takes no options, and is given {', '.join(url.query)}; give sqlite:///FILE"
        )
    if database != "sqlite" and not url.database:
        raise CatalogueFailed(f"{_location(url)} names no database; give {_FORMS}")
    return url.set(drivername=known)


def _location(url: URL) -> str:
    """What can be shown of a URL: no password, and of the options only where the server is."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{Path(url.database or '').absolute()}"
    shown = {name: value for name, value in url.query.items() if name in _SHOWN_OPTIONS}
    return url.set(query=shown)._replace(password=None).render_as_string()


def _secrets(url: URL) -> list[str]:
    """The password, wherever in the URL it is."""
    hidden = [str(value) for name, value in url.query.items() if "pass" in name.lower()]
    return [secret for secret in [str(url.password or ""), *hidden] if secret]


def _make_folder(url: URL) -> None:
    folder = Path(url.database or "").absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CatalogueFailed(f"the catalogue's folder {folder} can't be made: {error.strerror}") from None


def _connect_sqlite(dialect: Dialect, record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
    del record
    # The module's own transactions begin late and leave out DDL; ours begin in `_begin_sqlite`.
    options = {**options, "isolation_level": None}
    connection: Any = dialect.connect(*arguments, **options)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
    except connection.Error as error:
        connection.close()
        file = Path(arguments[0]).absolute()
        if not _can_only_be_read(file, error):
            raise
        # In WAL mode even a reader makes files beside the database, unless it reads it as one that nobody changes.
        return dialect.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True, **options)
    return connection


def _can_only_be_read(file: Path, error: sqlite3.Error) -> bool:
    """Whether this error means so, of a database that has no WAL now, so that nobody has it open and it is whole."""
    # The low byte is the kind of error: SQLITE_READONLY, or SQLITE_CANTOPEN for the files beside the database.
    return error.sqlite_errorcode & 0xFF in (8, 14) and file.is_file() and not Path(f"{file}-wal").exists()


def _begin_sqlite(connection: Connection) -> None:
    # What changes takes the lock at once: taken later, it could not be waited for.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'IMMEDIATE')}")


def _came_in_between(error: DBAPIError) -> bool:
    cause: Any = error.orig
    code = getattr(cause, "sqlstate", None) or next(iter(cause.args), None)
    return isinstance(error, IntegrityError) or code in _ENDED_FOR_ANOTHER


def _advice(text: str) -> str:
    if "database is locked" in text:
        return f"; another process has been changing it for {BUSY_SECONDS} s: wait for it to end, or end it"
    if "readonly database" in text:
        return "; the file, or its folder, can't be written: grant access to both, or name another file"
    if "not a database" in text:
        return "; name another file, or take this one away"
    return ""
