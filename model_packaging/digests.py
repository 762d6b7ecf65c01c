"""SHA-256 digests in OCI's form, computed while bytes pass by."""

from __future__ import annotations

import hashlib
from typing import Any, BinaryIO, Protocol, cast

CHUNK_BYTES = 1 << 20
"""Read at once: enough that the interpreter costs nothing beside the hash, which runs without its lock."""


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Target(Protocol):
    """What bytes can be written to, all of them at each call."""

    def write(self, content: memoryview, /) -> object: ...


def copy(source: BinaryIO, target: Target | None, at_most: int | None = None) -> tuple[str, int]:
    """Hashes `source`, or so many bytes of it, while writing it to `target`. Returns digest and size in bytes."""
    digest, size = hashlib.sha256(), 0
    room = CHUNK_BYTES if at_most is None else max(1, min(CHUNK_BYTES, at_most))
    buffer = memoryview(bytearray(room))
    readinto = cast("Any", source).readinto
    while at_most is None or size < at_most:
        count = readinto(buffer if at_most is None else buffer[: at_most - size])
        if not count:
            break
        digest.update(buffer[:count])
        if target is not None:
            target.write(buffer[:count])
        size += count
    return f"sha256:{digest.hexdigest()}", size


class HashingReader:
    """Passes a stream on, and knows size and digest of what has passed."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        content = self._source.read(size)
        self._digest.update(content)
        self.size += len(content)
        return content

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"
