"""Where an image is written: an OCI image layout in a folder, or one archive that `docker load` takes too.

Source: OCI image specification 1.1 (image layout); the archive has Docker's `manifest.json` beside, which engines
before 25 go by. Everything in it is named by digest, so that equal images are equal archives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from model_packaging.digests import Target
from model_packaging.forms.tar import TRAILER, HashingTarget, file_header, padding
from model_packaging.forms.targets import new_file, new_folder

Write = Callable[[Target], object]
"""Writes a blob, and raises where it can't be trusted."""

_BLOBS = "blobs/sha256"


class ImageOutput(Protocol):
    """An image layout as it comes to be."""

    keeps_docker_manifest: bool
    """Whether Docker's own `manifest.json` is of use in it."""

    def add(self, name: str, content: bytes) -> None:
        """Adds a document that has a name of its own."""
        ...

    def add_blob(self, size: int, write: Write) -> str:
        """Adds a blob of `size` bytes, once however often it comes, and returns its digest."""
        ...


@contextmanager
def image_output(target: Path, *, replace: bool) -> Iterator[ImageOutput]:
    """An archive where the path ends in `.tar`, else a folder; there once the block succeeded.

    Raises:
        TargetExists, ExportRefused, DiskFull, NotWritable
    """
    if target.suffix == ".tar":
        with new_file(target, replace=replace) as file:
            yield _Archive(file)
            file.write(TRAILER)
    else:
        with new_folder(target, "image", replace=replace) as folder:
            yield _Folder(folder)


def blob_path(digest: str) -> str:
    return f"{_BLOBS}/{digest.removeprefix('sha256:')}"


class _Folder:
    keeps_docker_manifest = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / _BLOBS).mkdir(parents=True)

    def add(self, name: str, content: bytes) -> None:
        with open(self._folder / name, "xb") as file:
            file.write(content)
            _settle(file)

    def add_blob(self, size: int, write: Write) -> str:
        unnamed = self._folder / _BLOBS / "unnamed"
        with open(unnamed, "xb") as file:
            target = HashingTarget(file)
            write(target)
            _settle(file)
        os.replace(unnamed, self._folder / blob_path(target.digest))
        return target.digest


class _Archive:
    keeps_docker_manifest = True

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._blobs = set[str]()

    def add(self, name: str, content: bytes) -> None:
        self._file.write(file_header(name, len(content)) + content + padding(len(content)))

    def add_blob(self, size: int, write: Write) -> str:
        start, unnamed = self._file.tell(), f"sha256:{'0' * 64}"
        self._file.write(file_header(blob_path(unnamed), size))
        target = HashingTarget(self._file)
        write(target)
        self._file.write(padding(size))
        end = self._file.tell()
        self._file.seek(start)
        if target.digest in self._blobs:
            self._file.truncate()
            return target.digest
        self._blobs.add(target.digest)
        # Its name is known only now; it takes as much room as the one before.
        self._file.write(file_header(blob_path(target.digest), size))
        self._file.seek(end)
        return target.digest


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
