"""Database servers of the tests' own, from Debian's packages: each in its folder, on a Unix socket, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
import sqlalchemy.exc
from sqlalchemy import URL

from tests.deadline import until

PASSWORD = "s3cr%t/p@ss:word"
"""Has to be encoded in a URL, and is easily found in a text."""

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


class NoServerError(Exception):
    """A server can't be had. Its text says why."""


@dataclass(frozen=True)
class Server:
    """A database server that runs."""

    administrator: URL
    socket: Path

    def create(self, database: str) -> str:
        """Makes an empty database, and returns its URL."""
        self._execute(f"CREATE DATABASE {database}")
        return self.administrator.set(database=database).render_as_string(hide_password=False)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            # First without a driver: PyMySQL leaves the socket of an attempt that failed to the garbage collector.
            if client.connect_ex(str(self.socket)) != 0:
                return False
        try:
            self._execute("SELECT 1")
        except sqlalchemy.exc.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        engine = sqlalchemy.create_engine(self.administrator, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(statement)
        finally:
            engine.dispose()


@contextlib.contextmanager
def postgresql() -> Iterator[Server]:
    """Runs a PostgreSQL server.

    Raises:
        NoServerError
    """
    initdb = _program("initdb", "postgresql", "usr/lib/postgresql/*/bin")
    postgres = _program("postgres", "postgresql", "usr/lib/postgresql/*/bin")
    with _folder("postgres") as folder:
        (folder / "password").write_text(PASSWORD)
        make = [initdb, "--pgdata=data", "--username=lepton", "--auth=scram-sha-256", "--pwfile=password"]
        # As people sort, which is not as bytes do.
        make += ["--locale-provider=icu", "--icu-locale=en", "--locale=C.UTF-8", "--encoding=UTF8"]
        make += ["--no-sync", "--no-instructions"]
        _finish(_start(make, folder, "postgres"), folder)
        serve = [postgres, "-D", "data", "-k", str(folder), "-h", "", "-F"]
        address = URL.create("postgresql+psycopg", "lepton", PASSWORD, database="postgres", query={"host": str(folder)})
        # Which, unlike SIGTERM, waits for no client.
        with _served(
            serve, folder, "postgres", Server(address, folder / ".s.PGSQL.5432"), stop=signal.SIGINT
        ) as server:
            yield server


@contextlib.contextmanager
def mariadb() -> Iterator[Server]:
    """Runs a MariaDB server.

    Raises:
        NoServerError
    """
    install = _program("mariadb-install-db", "mariadb-server", "usr/bin")
    mariadbd = _program("mariadbd", "mariadb-server", "usr/sbin")
    with _folder("mysql") as folder:
        data = ["--no-defaults", f"--datadir={folder}/data"]
        make = [install, *data, "--auth-root-authentication-method=normal", "--skip-test-db"]
        _finish(_start(make, folder, "mysql"), folder)
        (folder / "init.sql").write_text(
            f"CREATE USER lepton@localhost IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO lepton@localhost;\n"
        )
        serve = [mariadbd, *data, f"--socket={folder}/socket", "--skip-networking", f"--init-file={folder}/init.sql"]
        serve += [f"--pid-file={folder}/pid", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"]
        address = URL.create(
            "mysql+pymysql", "lepton", PASSWORD, "localhost", query={"unix_socket": f"{folder}/socket"}
        )
        with _served(serve, folder, "mysql", Server(address, folder / "socket")) as server:
            yield server


def _program(name: str, package: str, place: str) -> str:
    """The path of a program, which need not be on PATH: servers seldom are."""
    found = shutil.which(name) or next((str(path) for path in sorted(Path("/").glob(f"{place}/{name}"))), None)
    if found is None:
        raise NoServerError(f"{name} is not installed (on Debian: {package})")
    return found


@contextlib.contextmanager
def _folder(user: str) -> Iterator[Path]:
    """A folder with a short path, as sockets are in it, that `user` owns where this is root's process."""
    folder = Path(tempfile.mkdtemp(prefix="lepton-"))
    try:
        if os.geteuid() == 0:
            try:
                shutil.chown(folder, user)
            except LookupError:
                raise NoServerError(f"there is no user {user}, as whom root could start the server") from None
        yield folder
    finally:
        shutil.rmtree(folder)


def _start(command: list[str], folder: Path, user: str) -> subprocess.Popen[bytes]:
    """Starts a command in `folder`; as `user` where this is root's process, as these servers refuse to run as root."""
    options: dict[str, Any] = {}
    if os.geteuid() == 0:
        options = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen[bytes](
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **options
        )


def _finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait(_START_SECONDS) != 0:
        raise NoServerError(f"the database can't be made: {_last_lines(folder)}")


@contextlib.contextmanager
def _served(
    command: list[str], folder: Path, user: str, server: Server, stop: signal.Signals = signal.SIGTERM
) -> Iterator[Server]:
    process = _start(command, folder, user)
    try:
        until(lambda: process.poll() is not None or server.answers(), _START_SECONDS, what=f"{command[0]}'s answer")
        if process.poll() is not None:
            raise NoServerError(f"the server can't start: {_last_lines(folder)}")
        yield server
    finally:
        process.send_signal(stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        # What is left of it after that, with its own children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_lines(folder: Path) -> str:
    return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-5:])
