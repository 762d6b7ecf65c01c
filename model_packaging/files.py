"""The files of a model's folder: which there are, and stretches of them to read, as long as nobody changes them."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from model_packaging.errors import FolderRefused
from model_packaging.manifest import check_path
from model_packaging.memory import Stamp


@dataclass(frozen=True)
class ModelFile:
    """A plain file, as it was when the folder was listed."""

    folder: Path
    path: PurePosixPath
    """In the folder."""
    stamp: Stamp

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stamp.size

    @contextmanager
    def opened(self, offset: int, length: int, watch: Callable[[int], None]) -> Iterator[Stretch]:
        """So many bytes of the file from `offset`.

        Raises:
            FolderRefused: the file can't be read, or isn't the one that was listed, before the block or after it.
        """
        file = self.folder / self.path
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise FolderRefused(f"{file} can't be read: {error.strerror}") from error
        try:
            self._check(descriptor)
            yield Stretch(descriptor, file, offset, length, watch)
            self._check(descriptor)
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int) -> None:
        if Stamp.of(os.fstat(descriptor)) != self.stamp:
            raise changed(self.folder / self.path)


class Stretch(io.RawIOBase):
    """A stretch of an open file, as a stream of its own; `watch` is told by how many bytes each read moved it."""

    def __init__(self, descriptor: int, file: Path, offset: int, length: int, watch: Callable[[int], None]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.file = file
        self._offset = offset
        self._length = length
        self._watch = watch
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer)[: self._length - self._position]
        try:
            count = os.preadv(self._descriptor, [room], self._offset + self._position) if room else 0
        except OSError as error:
            raise FolderRefused(f"{self.file} can't be read: {error.strerror}") from error
        self._move(self._position + count)
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._move(min(max(base + offset, 0), self._length))
        return self._position

    def _move(self, position: int) -> None:
        self._watch(position - self._position)
        self._position = position


def changed(file: Path) -> FolderRefused:
    return FolderRefused(f"{file} changed while it was read; build again once nothing writes to it")


def list_files(folder: Path) -> list[ModelFile]:
    """The files in a folder and its folders, in the order of their paths' bytes.

    Raises:
        FolderRefused: the folder can't be read, or holds a link, a device, a pipe, or a name that is not UTF-8, or
            holds folders in folders without end.
    """
    files, due = list[ModelFile](), [PurePosixPath()]
    try:
        while due:
            with os.scandir(folder / (relative := due.pop())) as entries:
                for entry in entries:
                    found, path = entry.stat(follow_symlinks=False), _checked(folder, relative / entry.name)
                    if stat.S_ISDIR(found.st_mode):
                        due.append(path)
                    else:
                        _check_kind(folder / path, found.st_mode)
                        files.append(ModelFile(folder, path, Stamp.of(found)))
    except OSError as error:
        raise FolderRefused(f"{error.filename or folder} can't be read: {error.strerror}") from error
    # Code points sort as their UTF-8 does: no locale has a say.
    return sorted(files, key=lambda file: str(file.path))


def _checked(folder: Path, path: PurePosixPath) -> PurePosixPath:
    if not str(path).isascii() and sys.getfilesystemencoding() != "utf-8":
        raise FolderRefused(
            f"{folder}: the name of {os.fsencode(path)!r} can't be read in this locale; set PYTHONUTF8=1"
        )
    try:
        str(path).encode("utf-8")
        return check_path(str(path))
    except UnicodeEncodeError:
        raise FolderRefused(f"{folder}: the name of {os.fsencode(path)!r} is not UTF-8; rename the file") from None
    except ValueError as error:
        raise FolderRefused(f"{folder}: {error}") from None


def _check_kind(file: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
        raise FolderRefused(f"{file} is {what}; an artifact holds plain files only: copy it or take it out")
