"""Tar archives of an artifact's files, written in one pass: the same files always give the same bytes.

Source: POSIX.1-2001 pax interchange format, which has no limit on sizes and names.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from model_packaging.artifact import Artifact
from model_packaging.digests import Target
from model_packaging.manifest import Files, Part
from model_packaging.progress import Meter, Metered

_BLOCK = 512
TRAILER = bytes(2 * _BLOCK)
"""Ends an archive."""


class HashingTarget:
    """Passes bytes on, and knows size and digest of what has passed."""

    def __init__(self, target: Target | None = None) -> None:
        self._target = target
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, content: memoryview | bytes) -> int:
        self._digest.update(content)
        if self._target is not None:
            self._target.write(memoryview(content))
        self.size += len(content)
        return len(content)

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


class _Member(NamedTuple):
    header: bytes
    parts: tuple[Part, ...]

    @property
    def length(self) -> int:
        return sum(part.length for part in self.parts)


def file_header(name: str, size: int) -> bytes:
    """What precedes a file's content: readable for all, owned by root, of no time."""
    return _header(name, size, tarfile.REGTYPE, 0o644)


def padding(size: int) -> bytes:
    """What follows a content of `size` bytes."""
    return bytes(-size % _BLOCK)


def archive_size(files: Files, folder: PurePosixPath) -> int:
    """Bytes of what `write_archive` writes for the same arguments."""
    members = _members(files, folder)
    return sum(len(one.header) + one.length + len(padding(one.length)) for one in members) + len(TRAILER)


def write_archive(artifact: Artifact, files: Files, folder: PurePosixPath, target: Target, meter: Meter) -> None:
    """Writes an archive of some of the artifact's files, below `folder`; verified only when this returns.

    Args:
        meter: Counts the bytes of the files.

    Raises:
        BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable: as `Artifact.write`.
    """
    write_members(artifact, files, folder, target, meter)
    target.write(memoryview(TRAILER))


def write_members(artifact: Artifact, files: Files, folder: PurePosixPath, target: Target, meter: Meter) -> None:
    """As `write_archive`, of an archive that more follows in."""
    for member in _members(files, folder):
        target.write(memoryview(member.header))
        for part in member.parts:
            artifact.write(part, Metered(meter, target))
        target.write(memoryview(padding(member.length)))


def _members(files: Files, folder: PurePosixPath) -> Iterator[_Member]:
    """Files in the order of their names, each after the folders that it is in."""
    seen = {PurePosixPath(".")}
    for path in sorted(files, key=str):
        place = folder / path
        for parent in reversed(place.parents):
            if parent not in seen:
                seen.add(parent)
                yield _Member(_header(f"{parent}/", 0, tarfile.DIRTYPE, 0o755), ())
        parts = files[path]
        yield _Member(file_header(str(place), sum(part.length for part in parts)), parts)


def _header(name: str, size: int, kind: bytes, mode: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, mode
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
