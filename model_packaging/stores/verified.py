"""Bytes on their way to a registry, checked before the last of them are handed on."""

from __future__ import annotations

import hashlib
import io
from typing import Any, BinaryIO, cast

from model_packaging.errors import DigestMismatch, PackagingError


class VerifiedStream(io.RawIOBase):
    """The next `size` bytes of a stream, to be read once and in order.

    The read that would end them raises DigestMismatch instead if they are not those of `digest`, and so does a stream
    that ends early. Whoever sends them on has then not sent all, and the receiver has nothing to keep.
    """

    def __init__(self, source: BinaryIO, size: int, digest: str, *, store: str, what: str) -> None:
        """`store` and `what` name in errors where the bytes are from, or go, and what they are."""
        super().__init__()
        self._source = source
        self._size = size
        self._expected = digest
        self._store = store
        self._what = what
        self._hash = hashlib.sha256()
        self._done = 0
        if size == 0:
            self._check()

    def __len__(self) -> int:
        """Bytes in all, by which HTTP libraries know the length of a body."""
        return self._size

    def __bool__(self) -> bool:
        return True

    def tell(self) -> int:
        return self._done

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")[: self._size - self._done]
        if not view:
            return 0
        try:
            count = cast("Any", self._source).readinto(view) or 0
        except OSError as error:
            # Which would be taken for one of the connection.
            raise PackagingError(f"{self._what} for {self._store} can't be read: {error.strerror or error}") from error
        self._hash.update(view[:count])
        self._done += count
        if count == 0 or self._done == self._size:
            self._check()
        return count

    def _check(self) -> None:
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._expected or self._done != self._size:
            sizes = f"{self._done} bytes read of {self._size} declared"
            raise DigestMismatch(self._store, self._what, self._expected, found, sizes)
