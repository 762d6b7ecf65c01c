"""Keeps artifacts in an OCI image layout: a folder of blobs named by their digests, and an index of versions.

What is in the folder is not trusted: every byte that leaves it has been hashed on the way.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from infra.settings.values import Digest
from model_packaging.errors import (
    BlobMissing,
    DigestMismatch,
    FolderRefused,
    NotInStore,
    PackagingError,
    StoreDamaged,
    VersionExists,
)
from model_packaging.manifest import (
    ARTIFACT_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    REF_NAME,
    BlobDescriptor,
    Description,
    Manifest,
    ModelConfig,
    canonical,
)

_CHUNK = 1 << 20
_LARGEST_DOCUMENT = 64 << 20
_LAYOUT = {"imageLayoutVersion": "1.0.0"}

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class _Upload:
    file: BinaryIO
    path: Path

    def publish(self, place: Path) -> None:
        """Makes the file appear at `place`, whole and on disk."""
        self.file.flush()
        os.fchmod(self.file.fileno(), 0o644)
        os.fsync(self.file.fileno())
        os.replace(self.path, place)


class Store:
    """An artifact store in the folder `path`, made when the first artifact comes in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blobs = path / "blobs" / "sha256"
        self._uploads = path / ".uploads"

    # Writing

    def add_file(self, file: Path) -> tuple[str, int]:
        """Copies a file in, in one pass, and returns its digest and size in bytes.

        Raises:
            FolderRefused: it is a link or a device, can't be read, or changed while it was read.
        """
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise FolderRefused(f"{file} can't be read: {error.strerror}") from error
        with open(descriptor, "rb") as source, self._upload() as upload:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise FolderRefused(f"{file} is not a plain file; an artifact holds plain files only")
            digest, size = _copy(source, upload.file)
            after = os.fstat(descriptor)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != before.st_size:
                raise FolderRefused(f"{file} changed while it was read; build again once nothing writes to it")
            upload.publish(self._blob(digest))
        return digest, size

    def add_bytes(self, content: bytes) -> str:
        """Keeps a small blob, and returns its digest."""
        digest = _digest(content)
        self._write(self._blob(digest), content)
        return digest

    def put(self, manifest: bytes, model: str, version: str) -> tuple[str, bool]:
        """Makes `manifest` the artifact of a version; its blobs are there already.

        Returns its digest, and whether it is new.

        Raises:
            VersionExists: the version is there with other bytes.
        """
        digest = _digest(manifest)
        with self._locked():
            entries = self._entries()
            stored = next((entry.get("digest") for entry in entries if _ref_name(entry) == f"{model}:{version}"), None)
            if stored not in (None, digest):
                raise VersionExists(self.path, model, version, str(stored), digest)
            self.add_bytes(manifest)
            if stored == digest:
                return digest, False
            entry = {
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "digest": digest,
                "size": len(manifest),
                "annotations": {REF_NAME: f"{model}:{version}"},
            }
            _sync(self._blobs)
            self._write(self.path / "oci-layout", canonical(_LAYOUT))
            self._write(
                self.path / "index.json",
                canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*entries, entry]}),
            )
            _sync(self.path)
        return digest, True

    # Reading

    def resolve(self, model: str, version: str) -> str:
        """The digest of a version's artifact, which says itself that it is that version.

        Raises:
            NotInStore: naming the store, and what it has of the model.
            BlobMissing, DigestMismatch, StoreDamaged: its description can't be trusted, or is another version's.
        """
        names = {_ref_name(entry): entry for entry in self._entries()}
        entry = names.get(f"{model}:{version}")
        if entry is None:
            known = sorted(name.removeprefix(f"{model}:") for name in names if name and name.startswith(f"{model}:"))
            raise NotInStore.version(self.path, model, version, known)
        digest = self._parse(BlobDescriptor, entry, f"{model}:{version} in index.json").digest
        found = self.description(digest)
        if (found.model, found.version) != (model, version):
            raise StoreDamaged(
                f"{self.path}: index.json gives {digest} as {model} {version}, but that artifact is {found.model} "
                f"{found.version}; restore index.json from an intact store"
            )
        return digest

    def description(self, digest: str) -> Description:
        """What an artifact says about itself, its manifest and config verified.

        Raises:
            NotInStore, BlobMissing, DigestMismatch, StoreDamaged
        """
        return self._config(self.manifest(digest)).lepton

    def manifest(self, digest: str) -> Manifest:
        """An artifact's manifest, verified.

        Raises:
            NotInStore, BlobMissing, DigestMismatch, StoreDamaged
        """
        try:
            TypeAdapter(Digest).validate_python(digest)
        except ValidationError:
            raise NotInStore(
                f"{digest!r} is no digest; one is 'sha256:' and 64 lower-case hexadecimal digits"
            ) from None
        entry = next((entry for entry in self._entries() if entry.get("digest") == digest), None)
        if entry is None and not self._blob(digest).exists():
            raise NotInStore.digest(self.path, digest)
        size = entry.get("size") if entry is not None else None
        content = self._read(digest, size if isinstance(size, int) else None, f"the manifest {digest}")
        return self._parse(Manifest, _json(content, self._blob(digest)), f"the manifest {digest}")

    def check(self, digest: str) -> Iterator[PackagingError]:
        """Hashes every byte of an artifact, and yields what is wrong with it."""
        try:
            manifest = self.manifest(digest)
        except PackagingError as fault:
            yield fault
            return
        try:
            self._config(manifest)
        except PackagingError as fault:
            yield fault
        for path, layer in manifest.files:
            try:
                self._transfer(layer, f"file {str(path)!r}", None)
            except PackagingError as fault:
                yield fault

    def verify(self, digest: str) -> None:
        """Hashes every byte of an artifact.

        Raises:
            NotInStore, BlobMissing, DigestMismatch, StoreDamaged: the first thing that is wrong; `check` gives all.
        """
        for fault in self.check(digest):
            raise fault

    def unpack(self, digest: str, destination: Path) -> Path:
        """Has the folder `destination` hold an artifact's files and nothing else, each byte verified, and returns it.

        A folder that is there already is hashed, and stays if it is right. Else a new one takes its place once whole:
        one that was right is never harmed, and one that is wrong stays only where the store has nothing better.

        Raises:
            NotInStore, BlobMissing, DigestMismatch, StoreDamaged
        """
        manifest = self.manifest(digest)
        self._config(manifest)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _held_folder(destination.with_name(f".{destination.name}.partial")) as partial:
            if _holds(destination, manifest):
                return destination
            for path, layer in manifest.files:
                file = partial / path
                file.parent.mkdir(parents=True, exist_ok=True)
                with open(file, "xb") as target:
                    self._transfer(layer, f"file {str(path)!r}", target)
                    target.flush()
                    os.fsync(target.fileno())
                # Whoever serves it may run as another user, in a container of its own.
                file.chmod(0o644)
            for folder, _, _ in os.walk(partial):
                Path(folder).chmod(0o755)
                _sync(Path(folder))
            discarded = destination.with_name(f".{destination.name}.discarded")
            _remove(discarded)
            with suppress(FileNotFoundError):
                os.rename(destination, discarded)
            os.rename(partial, destination)
            _remove(discarded)
        _sync(destination.parent)
        return destination

    # Blobs

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def _config(self, manifest: Manifest) -> ModelConfig:
        what = f"the config {manifest.config.digest}"
        content = self._read(manifest.config.digest, manifest.config.size, what)
        return self._parse(ModelConfig, _json(content, self._blob(manifest.config.digest)), what)

    def _read(self, digest: str, size: int | None, what: str) -> bytes:
        """A small blob whole."""
        with self._open(digest, what) as source:
            content = source.read(_LARGEST_DOCUMENT + 1)
        if len(content) > _LARGEST_DOCUMENT:
            raise StoreDamaged(f"{self.path}: {what} is larger than {_LARGEST_DOCUMENT >> 20} MiB, which none can be")
        self._compare(what, digest, size, _digest(content), len(content))
        return content

    def _transfer(self, blob: BlobDescriptor, what: str, target: BinaryIO | None) -> None:
        with self._open(blob.digest, what) as source:
            found, size = _copy(source, target, limit=blob.size)
        self._compare(what, blob.digest, blob.size, found, size)

    def _compare(self, what: str, digest: str, size: int | None, found: str, found_size: int) -> None:
        if found != digest or size not in (None, found_size):
            sizes = f"{found_size} bytes" if size is None else f"{found_size} bytes read of {size} declared"
            raise DigestMismatch(self.path, what, digest, found, sizes)

    def _open(self, digest: str, what: str) -> BinaryIO:
        blob = self._blob(digest)
        try:
            descriptor = os.open(blob, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise BlobMissing(self.path, what, digest) from None
        except OSError as error:
            raise StoreDamaged(f"{self.path}: {what} can't be read from {blob}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StoreDamaged(f"{self.path}: {what} can't be read, as {blob} is not a plain file")
        return open(descriptor, "rb")

    @contextmanager
    def _upload(self) -> Iterator[_Upload]:
        """A new file in the store; gone after the block unless published."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._uploads.mkdir(exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._uploads)
        with open(descriptor, "wb") as file:
            try:
                yield _Upload(file, Path(name))
            finally:
                Path(name).unlink(missing_ok=True)

    def _write(self, place: Path, content: bytes) -> None:
        with self._upload() as upload:
            upload.file.write(content)
            upload.publish(place)

    # The index

    def _entries(self) -> list[dict[str, Any]]:
        file = self.path / "index.json"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreDamaged(f"{file} can't be read: {error.strerror}") from error
        index = _json(content, file)
        entries = index.get("manifests")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast("list[object]", entries)):
            raise StoreDamaged(f"{file} is no OCI index: 'manifests' should be a list of descriptors")
        return cast("list[dict[str, Any]]", entries)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _parse(self, kind: type[M], document: object, what: str) -> M:
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise StoreDamaged(
                f"{self.path}: {what} is not that of a model: {place + ': ' if place else ''}"
                f"{first['msg'].removeprefix('Value error, ')}; "
                "build the version again, or copy it from an intact store"
            ) from None


def _copy(source: BinaryIO, target: BinaryIO | None, limit: int | None = None) -> tuple[str, int]:
    """Hashes `source` while writing it to `target`; stops one byte past `limit`. Returns digest and size."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK))
    readinto = cast("Any", source).readinto
    while limit is None or size <= limit:
        room = _CHUNK if limit is None else min(_CHUNK, limit + 1 - size)
        count = readinto(buffer[:room])
        if not count:
            break
        digest.update(buffer[:count])
        if target is not None:
            target.write(buffer[:count])
        size += count
    return f"sha256:{digest.hexdigest()}", size


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(content: bytes, file: Path) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreDamaged(f"{file} is not JSON: {error}; restore it from an intact store") from None
    if not isinstance(document, dict):
        raise StoreDamaged(f"{file} holds {str(cast('object', document))[:40]!r}, not a JSON object")
    return cast("dict[str, Any]", document)


def _ref_name(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    name = cast("dict[str, Any]", annotations).get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def _holds(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder holds the manifest's files, byte for byte, and nothing else."""
    files = {folder / path: blob for path, blob in manifest.files}
    folders = {parent for file in files for parent in file.parents if parent.is_relative_to(folder)}
    found = {Path(place, name) for place, inner, names in os.walk(folder) for name in (*inner, *names)} | {folder}
    # The sizes first: they cost nothing to compare.
    return (
        found == files.keys() | folders
        and all(stat.S_ISDIR(path.lstat().st_mode) for path in folders)
        and all(_has_size(path, blob.size) for path, blob in files.items())
        and all(_has_digest(path, blob.digest) for path, blob in files.items())
    )


def _has_size(file: Path, size: int) -> bool:
    found = file.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _has_digest(file: Path, digest: str) -> bool:
    with open(file, "rb") as source:
        return _copy(source, None)[0] == digest


def _sync(folder: Path) -> None:
    """Makes the renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _held_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that no other process has; what a dead one left in it is removed."""
    while True:
        # Not Path.mkdir(exist_ok=True), which fails if the folder is renamed away just then.
        with suppress(FileExistsError):
            os.mkdir(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = os.fstat(descriptor)
            try:
                current = os.stat(folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if (held.st_dev, held.st_ino) != (current.st_dev, current.st_ino):
                # Whoever held it before renamed or removed it.
                continue
            _clear(folder)
            try:
                yield folder
            finally:
                # Renamed, where all went well.
                if folder.exists() and os.path.samestat(held, os.stat(folder)):
                    shutil.rmtree(folder)
            return
        finally:
            os.close(descriptor)


def _clear(folder: Path) -> None:
    for child in folder.iterdir():
        _remove(child)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
