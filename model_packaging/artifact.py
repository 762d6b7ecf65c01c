"""Reads an artifact from any store. What a store holds is not trusted: every byte has been hashed on the way out."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from infra.settings.values import Digest
from model_packaging.digests import CHUNK_BYTES, HashingReader, Target, copy, digest_of
from model_packaging.errors import DigestMismatch, NotInStore, PackagingError, StoreDamaged
from model_packaging.folders import held_folder, remove, sync_folder, writing_to
from model_packaging.manifest import (
    Description,
    Document,
    Files,
    Manifest,
    ModelConfig,
    Part,
    parse_document,
    read_files,
)
from model_packaging.progress import Meter, Metered, Progress
from model_packaging.stores.store import Store
from model_packaging.threads import threads

_LARGEST_CONFIG = 64 << 20
_LARGEST_WINDOW = 8 << 20
"""Bytes of memory that unpacking may take: what RFC 8878 (3.1.1.1.2) asks every decoder to allow."""

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Artifact:
    """A model version's artifact: what it says about itself, verified, and its files, to be verified when read."""

    store: Store
    model: str
    digest: str
    manifest: Manifest
    description: Description
    files: Files

    @classmethod
    def find(cls, store: Store, model: str, version: str) -> Artifact:
        """The artifact of a version, which says itself that it is that version.

        Raises:
            NotInStore: naming the store, and what it has of the model.
            BlobMissing, DigestMismatch, StoreDamaged: its description can't be trusted, or is another version's.
        """
        found = cls.at(store, model, store.resolve(model, version))
        said = found.description
        if (said.model, said.version) != (model, version):
            raise StoreDamaged(
                f"{store.location} gives {found.digest} as {model} {version}, but that artifact is {said.model} "
                f"{said.version}; restore the version's name from an intact store"
            )
        return found

    @classmethod
    def at(cls, store: Store, model: str, digest: str) -> Artifact:
        """The artifact with that digest among those of `model`.

        Raises:
            NotInStore, BlobMissing, DigestMismatch, StoreDamaged
        """
        try:
            TypeAdapter(Digest).validate_python(digest)
        except ValidationError:
            raise NotInStore(
                f"{digest!r} is no digest; one is 'sha256:' and 64 lower-case hexadecimal digits"
            ) from None
        return cls.of(store, model, store.read_manifest(model, digest))

    @classmethod
    def of(cls, store: Store, model: str, content: bytes) -> Artifact:
        """The artifact of `model` with that manifest, which may be on its way in: the store has its config.

        Raises:
            BlobMissing, DigestMismatch, StoreDamaged
        """
        digest = digest_of(content)
        manifest = _parse(store, Manifest, content, f"the manifest {digest}")
        config = _config(store, model, manifest)
        try:
            files = read_files(manifest, config)
        except ValueError as error:
            raise _damaged(store, f"the manifest {digest}", str(error)) from None
        return cls(store, model, digest, manifest, config.lepton, files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.length for parts in self.files.values() for part in parts)

    @property
    def parts(self) -> list[Part]:
        return [part for parts in self.files.values() for part in parts]

    def check(self, progress: Progress | None = None) -> Generator[PackagingError, None, None]:
        """Hashes every byte, and yields what is wrong.

        Args:
            progress: Told how many bytes of the files are done.
        """
        meter = Meter(progress, self.size)
        with threads() as pool:
            yield from filter(None, pool.map(lambda part: self._fault(part, meter), self.parts))

    def verify(self, progress: Progress | None = None) -> None:
        """Hashes every byte.

        Raises:
            BlobMissing, DigestMismatch, StoreDamaged: the first thing that is wrong; `check` gives all.
        """
        with closing(self.check(progress)) as faults:
            for fault in faults:
                raise fault

    def write(self, part: Part, target: Target) -> None:
        """Writes a part's content; it is verified only when this returns. Raises as `verify`."""
        self._transfer(part, target)

    def unpack(self, destination: Path, progress: Progress | None = None) -> Path:
        """Has the folder `destination` hold the files and nothing else, each byte verified, and returns it.

        A folder that is there already is hashed, and stays if it is right. Else a new one takes its place once whole:
        one that was right is never harmed, and one that is wrong stays only where the store has nothing better.

        Args:
            progress: Told how many bytes of the files are done.

        Raises:
            BlobMissing, DigestMismatch, StoreDamaged: the store has not got every byte.
            DiskFull, NotWritable: the folder can't be written.
        """
        with writing_to(destination.parent):
            destination.parent.mkdir(parents=True, exist_ok=True)
            with held_folder(destination.with_name(f".{destination.name}.partial")) as partial:
                if _holds(destination, self.files, Meter(progress, self.size)):
                    return destination
                self._write_into(partial, Meter(progress, self.size))
                discarded = destination.with_name(f".{destination.name}.discarded")
                remove(discarded)
                with suppress(FileNotFoundError):
                    os.rename(destination, discarded)
                os.rename(partial, destination)
                remove(discarded)
            sync_folder(destination.parent)
        return destination

    def is_in(self, folder: Path, progress: Progress | None = None) -> bool:
        """Whether the folder holds the files, byte for byte, and nothing else."""
        return _holds(folder, self.files, Meter(progress, self.size))

    def _write_into(self, folder: Path, meter: Meter) -> None:
        for path in self.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch(exist_ok=False)
        with threads() as pool:
            for done in [pool.submit(self._write_part, folder, part, meter) for part in self.parts]:
                done.result()
        for inner, _, _ in os.walk(folder):
            # Whoever serves it may run as another user, in a container of its own.
            Path(inner).chmod(0o755)
            sync_folder(Path(inner))

    def _write_part(self, folder: Path, part: Part, meter: Meter) -> None:
        with open(folder / part.file, "r+b") as file:
            file.seek(part.offset)
            self._transfer(part, Metered(meter, file))
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())

    def _fault(self, part: Part, meter: Meter) -> PackagingError | None:
        try:
            self._transfer(part, Metered(meter))
        except PackagingError as fault:
            return fault
        return None

    def _transfer(self, part: Part, target: Target) -> None:
        with self.store.open_blob(self.model, part.digest, part.name) as source:
            if part.compressed:
                self._transfer_packed(part, source, target)
            else:
                self._compare(part, *copy(source, target, at_most=part.stored + 1))

    def _transfer_packed(self, part: Part, source: BinaryIO, target: Target) -> None:
        """Unpacks a layer into `target`, which gets no more than the part's length and a byte, whatever is in it."""
        import zstandard  # noqa: PLC0415 - few artifacts need it

        stored = HashingReader(source)
        unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        found, problem = ("", 0), None
        try:
            # Across frames, so that what follows the first is no hiding place.
            with unpacker.stream_reader(cast("BinaryIO", stored), read_across_frames=True) as content:
                found = copy(cast("BinaryIO", content), target, at_most=part.length + 1)
        except zstandard.ZstdError as error:
            problem = str(error)
        while stored.size <= part.stored and stored.read(CHUNK_BYTES):
            # The rest has its say in the layer's digest.
            pass
        self._compare(part, stored.digest, stored.size)
        if problem is not None:
            raise _damaged(self.store, part.name, f"its layer {part.digest} is not zstd: {problem}")
        if found != (part.content, part.length):
            sizes = f"{found[1]} bytes unpacked of {part.length} declared"
            raise DigestMismatch(self.store.location, part.name, part.content, found[0], sizes)

    def _compare(self, part: Part, found: str, size: int) -> None:
        if (found, size) != (part.digest, part.stored):
            sizes = f"{size} bytes read of {part.stored} declared"
            raise DigestMismatch(self.store.location, part.name, part.digest, found, sizes)


def _config(store: Store, model: str, manifest: Manifest) -> ModelConfig:
    blob = manifest.config
    what = f"the config {blob.digest}"
    if blob.size > _LARGEST_CONFIG:
        raise _damaged(store, what, f"{blob.size} bytes are more than any has")
    with store.open_blob(model, blob.digest, what) as source:
        content = source.read(blob.size + 1)
    found = digest_of(content)
    if found != blob.digest or len(content) != blob.size:
        sizes = f"{len(content)} bytes read of {blob.size} declared"
        raise DigestMismatch(store.location, what, blob.digest, found, sizes)
    return _parse(store, ModelConfig, content, what)


def _parse(store: Store, kind: type[D], content: bytes, what: str) -> D:
    try:
        return parse_document(kind, content)
    except ValueError as error:
        raise _damaged(store, what, str(error)) from None


def _damaged(store: Store, what: str, problem: str) -> StoreDamaged:
    return StoreDamaged(
        f"{store.location}: {what} is not that of a model: {problem}; "
        "build the version again, or copy it from an intact store"
    )


def _holds(folder: Path, contents: Files, meter: Meter) -> bool:
    """Whether the folder holds these files, byte for byte, and nothing else."""
    files = {folder / path: parts for path, parts in contents.items()}
    folders = {parent for file in files for parent in file.parents if parent.is_relative_to(folder)}
    found = {Path(place, name) for place, inner, names in os.walk(folder) for name in (*inner, *names)} | {folder}
    # The sizes first: they cost nothing to compare.
    if not (
        found == files.keys() | folders
        and all(stat.S_ISDIR(path.lstat().st_mode) for path in folders)
        and all(_has_size(path, sum(part.length for part in parts)) for path, parts in files.items())
    ):
        return False
    with threads() as pool:
        parts = [part for parts in contents.values() for part in parts]
        return all(pool.map(lambda part: _has_content(folder / part.file, part, meter), parts))


def _has_size(file: Path, size: int) -> bool:
    found = file.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _has_content(file: Path, part: Part, meter: Meter) -> bool:
    with open(file, "rb") as source:
        source.seek(part.offset)
        return copy(source, Metered(meter), at_most=part.length)[0] == part.content
