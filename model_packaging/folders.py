"""Folders that appear whole or not at all, and errors that say which folder could not be written."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model_packaging.errors import DiskFull, NotWritable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Has what the operating system refuses in the block raised as an error that names `place`.

    Raises:
        DiskFull: there is no room, or a quota is used up.
        NotWritable: it refuses for another reason.
    """
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in _FULL else NotWritable
        raise kind(str(place), error.strerror or str(error)) from error


@contextmanager
def held_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that no other process has; what a dead one left in it is removed.

    It is gone after the block, unless the block renamed it.
    """
    while True:
        # Not Path.mkdir(exist_ok=True), which fails if the folder is renamed away just then.
        with suppress(FileExistsError):
            os.mkdir(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_at(descriptor, folder):
                # Whoever held it before renamed or removed it.
                continue
            for child in folder.iterdir():
                remove(child)
            try:
                yield folder
            finally:
                if _is_at(descriptor, folder):
                    shutil.rmtree(folder)
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
