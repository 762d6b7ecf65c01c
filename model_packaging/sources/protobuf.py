"""Reads the fields of a protobuf message from a file, without a schema and without reading what is not asked for.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

_PAGE = 1 << 14
_LONGEST_VARINT = 10
_FIXED64 = 1


class Malformed(ValueError):
    """The bytes are no protobuf message."""


class Span(NamedTuple):
    """Where a message, a text or a run of bytes lies in the file."""

    start: int
    end: int


@dataclass(frozen=True)
class Field:
    """One field of a message."""

    number: int
    value: int | Span

    @property
    def span(self) -> Span:
        """
        Raises:
            Malformed: the field holds a number.
        """
        if isinstance(self.value, int):
            raise Malformed(f"field {self.number} holds a number, not bytes")
        return self.value

    @property
    def integer(self) -> int:
        """The number, as an int64.

        Raises:
            Malformed: the field holds bytes.
        """
        if isinstance(self.value, Span):
            raise Malformed(f"field {self.number} holds bytes, not a number")
        return self.value - (1 << 64) if self.value >> 63 else self.value


class MessageFile:
    """A file that holds one message. Only the pages that are asked for are read, and one is kept."""

    # Not mapped into memory: a mapped file that is cut short while it is read kills the process.

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self._page = b""
        self._start = 0
        self.whole = Span(0, os.fstat(self._descriptor).st_size)

    def fields(self, message: Span) -> Iterator[Field]:
        """
        Raises:
            Malformed: these bytes are no message.
        """
        place = message.start
        while place < message.end:
            key, place = self._varint(place, message.end)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise Malformed(f"a field at byte {place - 1} has the number 0")
            match wire:
                case 0:
                    value, place = self._varint(place, message.end)
                    yield Field(number, value)
                case 2:
                    length, place = self._varint(place, message.end)
                    place = self._step(place, length, message.end)
                    yield Field(number, Span(place - length, place))
                case 1 | 5:
                    width = 8 if wire == _FIXED64 else 4
                    place = self._step(place, width, message.end)
                    yield Field(number, int.from_bytes(self.content(Span(place - width, place)), "little"))
                case _:
                    raise Malformed(f"a field at byte {place - 1} has the wire type {wire}")

    def content(self, span: Span) -> bytes:
        """
        Raises:
            Malformed: the file was cut short meanwhile.
        """
        if not (self._start <= span.start and span.end <= self._start + len(self._page)):
            self._start = span.start
            self._page = os.pread(self._descriptor, max(_PAGE, span.end - span.start), span.start)
        content = self._page[span.start - self._start : span.end - self._start]
        if len(content) < span.end - span.start:
            raise Malformed("the file ends in the midst of a field")
        return content

    def text(self, span: Span, longest: int = 4096) -> str:
        """
        Raises:
            Malformed: the text is not UTF-8, or longer than `longest` bytes.
        """
        if span.end - span.start > longest:
            raise Malformed(f"a text at byte {span.start} has {span.end - span.start} bytes; {longest} are plenty")
        try:
            return self.content(span).decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed(f"a text at byte {span.start} is not UTF-8") from None

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(_LONGEST_VARINT):
            if place >= end:
                raise Malformed(f"a number is cut off at byte {place}")
            octet = self.content(Span(place, place + 1))[0]
            place += 1
            value |= (octet & 0x7F) << 7 * shift
            if octet < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, place
        raise Malformed(f"a number at byte {place - _LONGEST_VARINT} has no end")

    def _step(self, place: int, length: int, end: int) -> int:
        if length > end - place:
            raise Malformed(f"a field at byte {place} has {length} bytes, and {end - place} are left")
        return place + length
