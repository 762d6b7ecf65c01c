"""Remembers what files were made into, so that a file that nobody touched is not read again.

As Git's index does, it takes a file for unchanged while device, inode, size and both times of change are the same, and
never trusts what was read within two seconds of a change: a later one might bear the same time. Only writes through a
memory map, whose times the kernel sets late, can escape it; who fears them builds without a memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_SETTLED_NS = 2_000_000_000
"""The coarsest time stamps of a file system in use (FAT's)."""
_FORGOTTEN_AFTER_SECONDS = 90 * 86400
_WAIT_SECONDS = 5.0
_TABLE = """
create table if not exists files (
    device integer, inode integer, form text, stamp text, layers text, seal text, written integer,
    primary key (device, inode, form)
) without rowid
"""
_READ = "select stamp, layers, seal from files where device = ? and inode = ? and form = ?"


class Stamp(NamedTuple):
    """Tells a file's content from any other that the file had: it changes with every write, also with those that put
    the time of modification back."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Layer(NamedTuple):
    """A stretch of a file as it was stored."""

    digest: str
    stored: int
    """Bytes."""
    content: str
    """Digest of the stretch itself."""


class Memory:
    """What was read before, in the SQLite file `path`.

    Nothing about it is an error: what can't be read is not remembered, and what can't be written is forgotten.
    """

    def __init__(self, path: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._now_ns = now_ns

    @classmethod
    def of_user(cls) -> Memory:
        """In the user's cache folder (XDG Base Directory Specification), for all stores."""
        given = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
        return cls(base / "lepton" / "digests.sqlite")

    def recall(self, stamps: Iterable[Stamp], form: str) -> dict[Stamp, tuple[Layer, ...]]:
        """The layers of those files that are known.

        Args:
            form: How files are made into layers; what was made otherwise is no answer.
        """
        found: dict[Stamp, tuple[Layer, ...]] = {}
        with suppress(sqlite3.Error, OSError), self._opened() as database:
            for stamp in stamps:
                key = _signed(stamp.device), _signed(stamp.inode), form
                row = database.execute(_READ, key).fetchone()
                # A row that a crash or a failing disk made must never get a wrong digest into an artifact.
                if row is not None and row[0] == json.dumps(stamp) and row[2] == _seal(form, row[0], row[1]):
                    found[stamp] = tuple(Layer(*layer) for layer in json.loads(row[1]))
        return found

    def remember(self, files: Mapping[Stamp, tuple[Layer, ...]], form: str) -> None:
        """Keeps what files were made into, whose stamps were settled before they were read."""
        now = self._now_ns() // 1_000_000_000
        rows: list[tuple[int | str, ...]] = []
        for stamp, layers in files.items():
            name, made = json.dumps(stamp), json.dumps(layers)
            key = _signed(stamp.device), _signed(stamp.inode), form
            rows.append((*key, name, made, _seal(form, name, made), now))
        try:
            with suppress(sqlite3.OperationalError, OSError), self._opened() as database:
                database.executemany("insert or replace into files values (?, ?, ?, ?, ?, ?, ?)", rows)
                database.execute("delete from files where written < ?", (now - _FORGOTTEN_AFTER_SECONDS,))
        except sqlite3.DatabaseError:
            # It is no database any more; the next build begins a new one.
            with suppress(OSError):
                self._path.unlink()

    def is_settled(self, stamp: Stamp) -> bool:
        """Whether a write from now on is sure to change the stamp."""
        return max(stamp.modified_ns, stamp.changed_ns) + _SETTLED_NS < self._now_ns()

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as database:
            # What a power cut leaves behind, the seals tell.
            database.execute("pragma synchronous = off")
            with database:
                database.execute(_TABLE)
                yield database


def _seal(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _signed(number: int) -> int:
    """SQLite's integers are signed."""
    return number - 2**64 if number >= 2**63 else number
