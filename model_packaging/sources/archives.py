"""Lists what zip and tar archives hold, as leniently as those who load models from them, and within bounds.

The standard library's readers keep all names in memory, and stop at faults that PyTorch's reader doesn't mind: what one
must not miss is what others would load. Sources: PKWARE's APPNOTE 6.3.10, POSIX.1-2024 (pax), GNU tar's manual.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from model_packaging.sources.streams import Budget, decoded, part, size_of

_LOCAL = b"PK\x03\x04"
_CENTRAL = b"PK\x01\x02"
_END = b"PK\x05\x06"
_END64 = b"PK\x06\x06"
_END64_LOCATOR = b"PK\x06\x07"
_LONGEST_COMMENT = 0xFFFF
_UNKNOWN_32 = 0xFFFFFFFF
_ENCRYPTED = 1
_METHODS = {8: "deflate", 12: "bz2"}

_BLOCK = 512
_LONGEST_HEADER = 1 << 16
"""Bytes of a tar's long name or pax header; names are shorter."""


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    stream: io.BufferedReader | None
    """None where it can't be looked into: it is encrypted, damaged, or compressed in a way that is rare."""


def is_zip_start(head: bytes) -> bool:
    return head.startswith(_LOCAL)


def zip_members(stream: io.BufferedReader, budget: Budget) -> Iterator[Member] | None:
    """The files of a zip archive that ends where `stream` does; None if there is none."""
    directory = _zip_directory(stream)
    return None if directory is None else _zip_members(stream, *directory, budget)


def _zip_directory(stream: io.BufferedReader) -> tuple[int, int, int] | None:
    """Where the central directory starts, where it ends, and how many bytes lie before the archive."""
    size = size_of(stream)
    start = max(0, size - 22 - _LONGEST_COMMENT)
    stream.seek(start)
    tail = stream.read()
    place = tail.rfind(_END)
    if place < 0 or len(tail) - place < 22:
        return None
    length, offset = struct.unpack_from("<LL", tail, place + 12)
    end = start + place
    if tail[max(0, place - 20) : place][:4] == _END64_LOCATOR:
        (offset64,) = struct.unpack_from("<Q", tail, place - 12)
        # Where the archive has bytes before it, the record is found by its place before the locator.
        for where in (offset64, end - 20 - 56):
            if not 0 <= where <= size:
                continue
            stream.seek(where)
            record = stream.read(56)
            if len(record) == 56 and record.startswith(_END64):
                length, offset = struct.unpack_from("<QQ", record, 40)
                end = where
                break
    first = end - length
    stream.seek(max(0, first))
    if first < 0 or (length and stream.read(4) != _CENTRAL):
        return None
    return first, end, max(0, first - offset)


def _zip_members(stream: io.BufferedReader, place: int, end: int, before: int, budget: Budget) -> Iterator[Member]:
    while place + 46 <= end:
        stream.seek(place)
        header = stream.read(46)
        if len(header) < 46 or not header.startswith(_CENTRAL):
            return
        budget.spend(members=1)
        flags, method = struct.unpack_from("<HH", header, 8)
        stored, size = struct.unpack_from("<LL", header, 20)
        name_length, extra_length, comment_length = struct.unpack_from("<HHH", header, 28)
        (offset,) = struct.unpack_from("<L", header, 42)
        name = stream.read(name_length).decode("utf-8", "replace")
        extra = stream.read(extra_length)
        stored, offset = _zip64(extra, size, stored, offset)
        if not name.endswith("/"):
            yield Member(name, _zip_content(stream, before + offset, stored, method, flags, budget))
        place += 46 + name_length + extra_length + comment_length


def _zip64(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int]:
    """The stored size and the offset, from the extra field where they need 64 bits."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{min(length, len(extra) - place - 4) // 8}Q", extra, place + 4))
            if size == _UNKNOWN_32:
                next(values, None)
            stored = next(values, stored) if stored == _UNKNOWN_32 else stored
            offset = next(values, offset) if offset == _UNKNOWN_32 else offset
        place += 4 + length
    return stored, offset


def _zip_content(
    stream: io.BufferedReader, offset: int, stored: int, method: int, flags: int, budget: Budget
) -> io.BufferedReader | None:
    if offset > size_of(stream):
        return None
    stream.seek(offset)
    header = stream.read(30)
    if len(header) < 30 or not header.startswith(_LOCAL) or flags & _ENCRYPTED:
        return None
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    content = part(stream, offset + 30 + name_length + extra_length, stored, budget)
    if method == 0:
        return content
    return decoded(content, _METHODS[method], budget) if method in _METHODS else None


def is_tar_start(head: bytes) -> bool:
    """Whether `head`, 512 bytes, is a tar header: its checksum is right."""
    if len(head) < _BLOCK or not head[0]:
        return False
    try:
        given = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return given == sum(head[:148]) + 8 * 32 + sum(head[156:_BLOCK])


def tar_members(stream: io.BufferedReader, budget: Budget) -> Iterator[Member]:
    """The files of a tar archive. Where `stream` can't seek, each is to be read before the next is asked for."""
    name: str | None = None
    size: int | None = None
    place = 0
    while is_tar_start(header := _at(stream, place, _BLOCK)):
        budget.spend(members=1)
        place += _BLOCK
        own_size = _tar_number(header[124:136])
        if own_size is None:
            return
        kind = header[156:157]
        if kind in (b"x", b"L", b"g", b"K"):
            if own_size > _LONGEST_HEADER:
                yield Member("?", None)
                return
            content = _at(stream, place, own_size)
            if kind == b"L":
                name = content.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":
                name, size = _pax(content, name)
        else:
            length = own_size if size is None else size
            title = name or _tar_name(header)
            if kind in (b"0", b"\0", b"7"):
                yield Member(title, part(stream, place, length, budget))
            elif kind == b"S":
                # A sparse file's map may lie between header and content.
                yield Member(title, None)
                return
            own_size, name, size = length, None, None
        place += -(-own_size // _BLOCK) * _BLOCK


def _at(stream: io.BufferedReader, place: int, size: int) -> bytes:
    """Bytes from `place`: where the stream can't seek, what lies before is read and dropped."""
    if stream.seekable():
        stream.seek(place)
    else:
        while (ahead := place - stream.tell()) > 0 and stream.read(min(ahead, _LONGEST_HEADER)):
            pass
    return stream.read(size)


def _tar_number(octets: bytes) -> int | None:
    """Octal digits, or GNU's binary where those don't reach."""
    if octets[0] == 0x80:
        return int.from_bytes(octets[1:], "big")
    digits = octets.strip(b" \0")
    try:
        return max(0, int(digits, 8)) if digits else 0
    except ValueError:
        return None


def _tar_name(header: bytes) -> str:
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    name = header[:100].split(b"\0", 1)[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax(content: bytes, name: str | None) -> tuple[str | None, int | None]:
    """The name and size that a pax header gives, each line of which is `LENGTH KEY=VALUE`."""
    size = None
    for line in content.split(b"\n"):
        key, _, value = line.partition(b" ")[2].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size" and value.isdigit() and len(value) < 20:
            size = int(value)
    return name, size
