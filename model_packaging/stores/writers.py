"""Who writes into a layout: files on their way in, and leases on what is there, told from those that the dead left.

Each is a file that its process holds a lock on (flock), which the kernel lets go of however the process ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from model_packaging.folders import writing_to


@dataclass(frozen=True)
class Upload:
    """A file on its way in, seen by nobody yet. Its methods raise DiskFull and NotWritable."""

    descriptor: int
    path: Path

    def write(self, content: bytes | memoryview) -> None:
        left = memoryview(content)
        with writing_to(self.path.parent):
            while left:
                left = left[os.write(self.descriptor, left) :]

    def publish(self, place: Path) -> None:
        """Makes the file appear at `place`, whole and on disk; the rename is, once its folder is synced."""
        with writing_to(place.parent):
            os.fchmod(self.descriptor, 0o644)
            os.fsync(self.descriptor)
            os.replace(self.path, place)


@contextmanager
def new_upload(folder: Path) -> Iterator[Upload]:
    """A new file in `folder`; gone after the block unless published."""
    with writing_to(folder):
        descriptor, path = _held_file(folder)
    try:
        yield Upload(descriptor, path)
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def lease(folder: Path) -> Iterator[None]:
    """Has `oldest_lease` know for the block that since its start someone relies on what is there."""
    descriptor, path = _held_file(folder)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def oldest_lease(folder: Path) -> int | None:
    """When the first of the living leases began, in nanoseconds on the clock of the file system; None without any."""
    remove_dead(folder)
    began = list[int]()
    for path in _files(folder):
        with suppress(FileNotFoundError):
            began.append(path.stat().st_mtime_ns)
    return min(began, default=None)


def remove_dead(folder: Path, *, dry_run: bool = False) -> list[int]:
    """Removes the files that no living process holds. Returns their sizes in bytes."""
    sizes = list[int]()
    for path in _files(folder):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            # Gone already, or none of ours.
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(descriptor)
            if found.st_nlink and not dry_run:
                path.unlink(missing_ok=True)
            if found.st_nlink:
                sizes.append(found.st_size)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return sizes


def _held_file(folder: Path) -> tuple[int, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor, name = tempfile.mkstemp(dir=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        # It was not locked yet when someone removed what the dead left.
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []
