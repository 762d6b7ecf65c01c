"""Puts files into a store as layers: in parts, side by side, and only those that it hasn't got."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from model_packaging.digests import HashingReader
from model_packaging.errors import DigestMismatch
from model_packaging.files import ModelFile, Stretch, changed
from model_packaging.folders import writing_to
from model_packaging.manifest import Part
from model_packaging.memory import Layer, Memory, Stamp
from model_packaging.progress import Meter
from model_packaging.stores import Store
from model_packaging.threads import threads

Compression = Literal["none", "zstd"]

_ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Form:
    """How files are made into layers."""

    compression: Compression
    part_bytes: int
    """Of the longest layer's content."""

    def __str__(self) -> str:
        return f"{self.compression} {self.part_bytes}"

    def stretches(self, size: int) -> list[tuple[int, int]]:
        """Offset and length of each part of a file of `size` bytes."""
        starts = range(0, size, self.part_bytes) or [0]
        return [(start, min(self.part_bytes, size - start)) for start in starts]


@dataclass(frozen=True)
class Added:
    """A file that a store has."""

    file: ModelFile
    parts: tuple[Part, ...]
    was_read: bool
    """False where it was known, and the store had it."""


def add_files(
    store: Store, model: str, files: Sequence[ModelFile], form: Form, memory: Memory | None, meter: Meter
) -> list[Added]:
    """Has `store` hold the content of files, read by several threads at once.

    Raises:
        FolderRefused: a file can't be read, or changed since it was listed.
        DiskFull, NotWritable, StoreDamaged, StoreUnreachable: the store doesn't take it.
    """
    adding = _Adding(store, model, form, meter)
    known = memory.recall((file.stamp for file in files), str(form)) if memory else {}
    # Asked before the first byte is read: a change from here on must show in the stamp.
    settled = {file.stamp for file in files if memory and memory.is_settled(file.stamp)}
    learnt: dict[Stamp, tuple[Layer, ...]] = {}
    added: list[Added] = []
    try:
        with threads() as pool:
            kept = list(pool.map(adding.find, files, (known.get(file.stamp) for file in files)))
            due = [() if parts else adding.start(pool, file) for file, parts in zip(files, kept, strict=True)]
            for file, parts, reading in zip(files, kept, due, strict=True):
                read = tuple(part.result() for part in reading)
                added.append(Added(file, parts or read, was_read=bool(read)))
                if read and file.stamp in settled:
                    learnt[file.stamp] = tuple(Layer(part.digest, part.stored, part.content) for part in read)
    finally:
        # Also after a failure: the next attempt need not read them again.
        if memory and learnt:
            memory.remember(learnt, str(form))
    return added


@dataclass(frozen=True)
class _Adding:
    store: Store
    model: str
    form: Form
    meter: Meter

    def find(self, file: ModelFile, layers: tuple[Layer, ...] | None) -> tuple[Part, ...]:
        """The parts of a file whose layers are known; none where the store hasn't got them all."""
        if not layers or not all(self.store.has_blob(self.model, layer.digest) for layer in layers):
            return ()
        self.meter.add(file.size)
        stretches = self.form.stretches(file.size)
        return tuple(_part(file, *stretch, layer) for stretch, layer in zip(stretches, layers, strict=True))

    def start(self, pool: ThreadPoolExecutor, file: ModelFile) -> tuple[Future[Part], ...]:
        """Has the pool read a file, and store each part of it."""
        return tuple(pool.submit(self._add, file, offset, length) for offset, length in self.form.stretches(file.size))

    def _add(self, file: ModelFile, offset: int, length: int) -> Part:
        with file.opened(offset, length, self.meter.add) as content:
            try:
                layer = (self._add_packed if self.form.compression == "zstd" else self._add_plain)(content, length)
            except DigestMismatch:
                # It is shorter than it was.
                raise changed(file.folder / file.path) from None
        return _part(file, offset, length, layer)

    def _add_plain(self, content: Stretch, length: int) -> Layer:
        digest = self.store.add_blob(self.model, cast("BinaryIO", content), length)
        return Layer(digest, length, digest)

    def _add_packed(self, content: Stretch, length: int) -> Layer:
        """Stores the content with zstd; as it is, where that is no longer."""
        # A store asks for a layer's size first, and memory is no place for a part.
        place = Path(tempfile.gettempdir())
        with writing_to(place), tempfile.TemporaryFile(dir=place) as packed:
            digest, stored = _compress(content, packed, length)
            if stored >= length:
                content.seek(0)
                return self._add_plain(content, length)
            packed.seek(0)
            return Layer(self.store.add_blob(self.model, packed, stored), stored, digest)


def _compress(content: Stretch, packed: BinaryIO, length: int) -> tuple[str, int]:
    """Digest of the content, and bytes of the one frame that it was packed into."""
    import zstandard  # noqa: PLC0415 - few builds need it

    hashed = HashingReader(cast("BinaryIO", content))
    # One thread and a size that is known at the start: the bytes alone decide what comes out.
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=0, write_checksum=False, write_content_size=True)
    try:
        _, stored = compressor.copy_stream(cast("BinaryIO", hashed), packed, size=length)
    except zstandard.ZstdError:
        # The only thing that can go wrong: the content is not as long as said.
        raise changed(content.file) from None
    return hashed.digest, stored


def _part(file: ModelFile, offset: int, length: int, layer: Layer) -> Part:
    compressed = layer.digest != layer.content
    return Part(file.path, offset, length, layer.digest, layer.stored, compressed=compressed, content=layer.content)
