"""Bounded views of files that nobody vouches for: a stretch of a file, and what a compressed one holds."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

_BUFFER = 4096
"""Small: of most files, and of most members of an archive, the first bytes tell that they are no pickle."""
_LZMA_MEMORY = 130 << 20
_ZSTD_WINDOW = 1 << 27
"""Limits, in bytes, of what a stream may ask for; memory that it asks for and doesn't fill costs nothing."""


class BudgetSpent(Exception):
    """As much was read as one file may cost."""


class Undecodable(Exception):
    """The bytes are not what their first ones promise."""


@dataclass
class Budget:
    """What looking into one file may still cost."""

    read_bytes: int = 128 << 20
    window_bytes: int = 24 << 20
    """Decoded by methods that keep a window of what they decoded, of up to 128 MiB."""
    opcodes: int = 400_000
    members: int = 20_000

    def spend(self, *, read_bytes: int = 0, window_bytes: int = 0, opcodes: int = 0, members: int = 0) -> None:
        """
        Raises:
            BudgetSpent: there is no more.
        """
        self.read_bytes -= read_bytes
        self.window_bytes -= window_bytes
        self.opcodes -= opcodes
        self.members -= members
        if min(self.read_bytes, self.window_bytes, self.opcodes, self.members) < 0:
            raise BudgetSpent


class _Window(io.RawIOBase):
    """Bytes `start` to `start + size` of an open file."""

    def __init__(self, descriptor: int, start: int, size: int, budget: Budget) -> None:
        self.descriptor = descriptor
        self.start = start
        self.size = size
        self._budget = budget
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        room = min(len(buffer), self.size - self._position)
        if room <= 0:
            return 0
        content = os.pread(self.descriptor, room, self.start + self._position)
        self._budget.spend(read_bytes=len(content))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Zlib:
    """zlib's object with the interface that bz2's and lzma's share."""

    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Forward(io.RawIOBase):
    """A stream that can't go back, and knows how far it is."""

    def __init__(self) -> None:
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = self._fill(buffer)
        self._position += count
        return count

    def _fill(self, buffer: memoryview) -> int:
        raise NotImplementedError


class _Decoded(_Forward):
    """What a compressed stream holds, all of its members one after another."""

    def __init__(self, source: io.BufferedReader, method: str, budget: Budget) -> None:
        super().__init__()
        make = _DECODERS[method]
        self._has_window = method in ("xz", "lzma")
        self._source = source
        self._make = make
        self._decoder = make()
        self._budget = budget

    def _fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            try:
                content, ended = self._decode(len(buffer) - filled)
            except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
                raise Undecodable(str(error)) from None
            except OSError as error:
                # bz2 says so of data that it can't decode; a disk's errors have a number.
                if error.errno is not None:
                    raise
                raise Undecodable(str(error)) from None
            buffer[filled : filled + len(content)] = content
            filled += len(content)
            if ended:
                break
        self._budget.spend(read_bytes=filled, window_bytes=filled if self._has_window else 0)
        return filled

    def _decode(self, room: int) -> tuple[bytes, bool]:
        """Some more content, and whether that was the last."""
        data = b""
        if self._decoder.eof:
            data = self._decoder.unused_data or self._source.read(_BUFFER)
            if not data.strip(b"\0"):
                return b"", True
            self._decoder = self._make()
        elif self._decoder.needs_input:
            data = self._source.read(_BUFFER)
            if not data:
                return self._decoder.decompress(b"", room), True
        return self._decoder.decompress(data, room), False


class _ZstandardDecoded(_Forward):
    def __init__(self, source: io.BufferedReader, budget: Budget) -> None:
        super().__init__()
        import zstandard  # noqa: PLC0415 - seldom needed

        self._error = zstandard.ZstdError
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._reader = decompressor.stream_reader(source, read_size=_BUFFER, read_across_frames=True, closefd=False)
        self._budget = budget

    def _fill(self, buffer: memoryview) -> int:
        try:
            count = self._reader.readinto(buffer)
        except self._error as error:
            raise Undecodable(str(error)) from None
        self._budget.spend(read_bytes=count, window_bytes=count)
        return count


class _Ahead(_Forward):
    """The next `size` bytes of a stream."""

    def __init__(self, source: io.BufferedReader, size: int) -> None:
        super().__init__()
        self._source = source
        self._size = size

    def _fill(self, buffer: memoryview) -> int:
        content = self._source.read(min(len(buffer), self._size - self._position))
        buffer[: len(content)] = content
        return len(content)


def window(descriptor: int, start: int, size: int, budget: Budget) -> io.BufferedReader:
    """A seekable stream of `size` bytes of an open file, from byte `start`."""
    return io.BufferedReader(_Window(descriptor, start, size, budget), _BUFFER)


def part(stream: io.BufferedReader, start: int, size: int, budget: Budget) -> io.BufferedReader:
    """`size` bytes of `stream` from `start`, which is where a stream that can't seek is."""
    if not stream.seekable():
        return io.BufferedReader(_Ahead(stream, size), _BUFFER)
    whole = cast("_Window", stream.raw)
    inside = max(0, min(size, whole.size - start))
    return window(whole.descriptor, whole.start + start, inside, budget)


def size_of(stream: io.BufferedReader) -> int:
    """Bytes of what `window` made."""
    return cast("_Window", stream.raw).size


def compression_of(head: bytes) -> str | None:
    """By which method a stream that starts with `head` is compressed: a name that `decoded` takes."""
    for name, magic in _MAGIC.items():
        if head.startswith(magic):
            return name
    if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:  # RFC 1950, 2.2
        return "zlib"
    # A skippable frame may come first (RFC 8878, 3.1.2).
    return "zstd" if head[1:4] == b"\x2a\x4d\x18" and head[:1] in _SKIPPABLE else None


def decoded(stream: io.BufferedReader, method: str, budget: Budget) -> io.BufferedReader:
    """The content of a stream compressed by `method`, read forward only; reading it may raise Undecodable."""
    raw = _ZstandardDecoded(stream, budget) if method == "zstd" else _Decoded(stream, method, budget)
    return io.BufferedReader(raw, _BUFFER)


_MAGIC = {
    "gzip": b"\x1f\x8b",
    "bz2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
    "lzma": b"\x5d\x00",
    "zstd": b"\x28\xb5\x2f\xfd",
}
_SKIPPABLE = {bytes([first]) for first in range(0x50, 0x60)}
_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gzip": lambda: _Zlib(16 + zlib.MAX_WBITS),
    "zlib": lambda: _Zlib(zlib.MAX_WBITS),
    "deflate": lambda: _Zlib(-zlib.MAX_WBITS),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY),
}
