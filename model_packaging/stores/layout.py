"""A store in a folder: an OCI image layout, with blobs named by their digests, and an index of versions."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic import TypeAdapter, ValidationError

from infra.settings.values import Digest
from model_packaging.digests import copy, digest_of
from model_packaging.errors import BlobMissing, DigestMismatch, NotInStore, StoreDamaged, VersionExists
from model_packaging.folders import sync_folder, writing_to
from model_packaging.manifest import INDEX_TYPE, MANIFEST_TYPE, REF_NAME, ImageManifest, canonical
from model_packaging.semver import is_semantic, precedence
from model_packaging.stores.collection import Collected, reachable
from model_packaging.stores.offered import attachment_tag, attachment_tags, parse_attachment, parse_version
from model_packaging.stores.store import Claim, Entry
from model_packaging.stores.writers import Upload, lease, new_upload, oldest_lease, remove_dead

_LARGEST_DOCUMENT = 64 << 20
_LAYOUT = {"imageLayoutVersion": "1.0.0"}
_DIGEST = TypeAdapter[str](Digest)
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")

Descriptor = dict[str, Any]


class Layout:
    """A store in the folder `path`, made when the first artifact comes in. The methods are those of `Store`.

    Every change of the index, and every removal of blobs, is made under a lock on the folder. What the index names is
    on disk before it is named: after a power cut as after a kill, a version is there whole or not at all.
    """

    def __init__(self, path: Path, *, claim: Claim | None = None) -> None:
        """`claim` makes sure, for all stores, that a version is put with the same bytes only."""
        self.path = path
        self._claim = claim
        self._marker = path / "oci-layout"
        self._index_file = path / "index.json"
        self._blobs = path / "blobs" / "sha256"
        self._uploads = path / ".uploads"
        self._leases = path / ".leases"
        self._leased = set[object]()

    @property
    def location(self) -> str:
        return str(self.path)

    def require_there(self) -> None:
        """For who must not take a store that is gone for an empty one; to readers they are the same.

        Raises:
            StoreDamaged: the folder, or what makes it a store, is not there.
        """
        missing = next((file for file in (self._marker, self._index_file) if not file.is_file()), None)
        if missing is not None:
            raise StoreDamaged(
                f"{self.path} is no store now: {missing} is not there; mount or restore the folder. If it is gone for "
                "good, build a version into it first, so that it is a store again"
            )

    # Versions

    def entries(self, model: str | None = None) -> Iterator[Entry]:
        found = []
        for descriptor in self._index():
            name, colon, version = (_ref_name(descriptor) or "").partition(":")
            if colon and model in (None, name) and is_semantic(version):
                found.append(Entry(name, version, self._digest_in(descriptor)))
        return iter(sorted(found, key=lambda entry: (entry.model, precedence(entry.version))))

    def resolve(self, model: str, version: str) -> str:
        descriptor = _named(f"{model}:{version}", self._index())
        if descriptor is None:
            raise NotInStore.version(self.location, model, version, [entry.version for entry in self.entries(model)])
        return self._digest_in(descriptor)

    def put(self, model: str, version: str, manifest: bytes) -> bool:
        document, name = parse_version(model, version, manifest), f"{model}:{version}"
        digest = digest_of(manifest)
        with self._locked():
            index = self._index()
            stored = _named(name, index)
            if stored is not None and stored.get("digest") != digest:
                raise VersionExists(self.location, model, version, str(stored.get("digest")), digest)
            self._keep_manifest(document, manifest)
            if self._claim is not None:
                self._claim(self, model, version, manifest)
            if stored is None:
                self._write_index([*index, _descriptor(name, document, manifest)])
        return stored is None

    def attachment(self, model: str, digest: str, kind: str) -> bytes | None:
        descriptor = _named(f"{model}:{attachment_tag(digest, kind)}", self._index())
        return None if descriptor is None else self.read_manifest(model, self._digest_in(descriptor))

    def attach(self, model: str, digest: str, kind: str, manifest: bytes, replacing: bytes | None) -> bool:
        document, name = parse_attachment(model, digest, manifest), f"{model}:{attachment_tag(digest, kind)}"
        with self._locked():
            if self.attachment(model, digest, kind) != replacing:
                return False
            self._keep_manifest(document, manifest)
            others = [descriptor for descriptor in self._index() if _ref_name(descriptor) != name]
            self._write_index([*others, _descriptor(name, document, manifest)])
        return True

    def delete(self, model: str, version: str) -> None:
        if not self._marker.is_file():
            raise NotInStore.version(self.location, model, version, [])
        with self._locked():
            digest, index = self.resolve(model, version), self._index()
            attached = f"{model}:{attachment_tags(digest)}"
            is_last = [entry.digest for entry in self.entries(model)].count(digest) == 1
            self._write_index(
                [
                    descriptor
                    for descriptor in index
                    if (name := _ref_name(descriptor)) != f"{model}:{version}"
                    and not (is_last and name is not None and name.startswith(attached))
                ]
            )

    # Blobs

    def read_manifest(self, model: str, digest: str) -> bytes:
        # Not has_blob, whose lock whoever attaches holds already.
        if not _is_file(self._blob(digest)):
            if any(entry.digest == digest for entry in self.entries(model)):
                raise BlobMissing(self.location, f"the manifest {digest}", digest)
            raise NotInStore.digest(self.location, digest)
        return self._document(digest)

    def has_blob(self, model: str, digest: str) -> bool:
        blob = self._blob(digest)
        if not self._leased:
            return _is_file(blob)
        with self._locked(fcntl.LOCK_SH):
            try:
                # Younger than the lease now, for `collect` to see.
                os.utime(blob, follow_symlinks=False)
            except (FileNotFoundError, PermissionError):
                return False
            return _is_file(blob)

    def open_blob(self, model: str, digest: str, what: str) -> BinaryIO:
        blob = self._blob(digest)
        try:
            descriptor = os.open(blob, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise BlobMissing(self.location, what, digest) from None
        except OSError as error:
            raise StoreDamaged(f"{self.path}: {what} can't be read from {blob}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StoreDamaged(f"{self.path}: {what} can't be read, as {blob} is not a plain file")
        return open(descriptor, "rb")

    def add_blob(self, model: str, source: BinaryIO, size: int, digest: str | None = None) -> str:
        with self._upload() as upload:
            found, length = copy(source, upload, at_most=size)
            if length != size or digest not in (None, found):
                expected = digest or "the digest of the whole"
                raise DigestMismatch(self.location, "a blob", expected, found, f"{length} bytes of {size}")
            # In place of what may be there: if that was harmed, it is whole now.
            upload.publish(self._blob(found))
        return found

    @contextmanager
    def writing(self) -> Iterator[None]:
        self._prepare()
        with ExitStack() as stack:
            with self._locked():
                stack.enter_context(lease(self._leases))
            # A set, as threads build at once.
            mark = object()
            self._leased.add(mark)
            stack.callback(self._leased.discard, mark)
            yield

    def collect(self, *, dry_run: bool = False) -> Collected:
        """Removes the blobs that nothing in the index leads to."""
        if not self._marker.is_file():
            return Collected()
        with self._locked():
            if not self._index_file.exists():
                # Lost, or never written: a collection must not be what makes the loss final.
                return Collected(note=f"{self.path} has no index.json yet to say what is in use: nothing was freed")
            in_use = self._in_use()
            began = oldest_lease(self._leases)
            removed, kept = list[int](), 0
            for blob in self._stray(in_use):
                found = blob.stat()
                if began is not None and found.st_mtime_ns >= began:
                    kept += 1
                    continue
                if not dry_run:
                    blob.unlink()
                removed.append(found.st_size)
            uploads = remove_dead(self._uploads, dry_run=dry_run)
        return Collected(len(removed), len(uploads), sum(removed) + sum(uploads), kept)

    # Inside

    def _blob(self, digest: str) -> Path:
        try:
            return self._blobs / _DIGEST.validate_python(digest).removeprefix("sha256:")
        except ValidationError:
            raise NotInStore.digest(self.location, digest) from None

    def _document(self, digest: str) -> bytes:
        what = f"the manifest {digest}"
        with self.open_blob("", digest, what) as source:
            content = source.read(_LARGEST_DOCUMENT + 1)
        found = digest_of(content)
        if found != digest:
            raise DigestMismatch(self.location, what, digest, found, f"{len(content)} bytes")
        return content

    def _keep_manifest(self, document: ImageManifest, manifest: bytes) -> None:
        """Writes it, if its blobs are there: under the lock, so that none goes before the index names it."""
        for blob in document.blobs:
            if not _is_file(self._blob(blob.digest)):
                raise BlobMissing(self.location, f"blob {blob.digest}", blob.digest)
        self._write(self._blob(digest_of(manifest)), manifest)

    def _in_use(self) -> set[str]:
        index = self._index()
        for descriptor in index:
            self._digest_in(descriptor)
        try:
            return reachable(index, self._document)
        except (ValueError, RecursionError) as error:
            raise StoreDamaged(
                f"{self.path}: a manifest in index.json is not JSON: {error}; delete its version"
            ) from None

    def _stray(self, in_use: set[str]) -> Iterator[Path]:
        if not self._blobs.is_dir():
            return
        with os.scandir(self._blobs) as files:
            for file in files:
                is_blob = _BLOB_NAME.fullmatch(file.name) and file.is_file(follow_symlinks=False)
                if is_blob and f"sha256:{file.name}" not in in_use:
                    yield Path(file.path)

    @contextmanager
    def _upload(self) -> Iterator[Upload]:
        """A new file in the store; gone after the block unless published."""
        self._prepare()
        with new_upload(self._uploads) as upload:
            yield upload

    def _prepare(self) -> None:
        """Makes the folder a layout.

        Raises:
            StoreDamaged: it is a folder of something else.
        """
        if self._marker.exists():
            return
        with writing_to(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            found = {name for name in os.listdir(self.path) if not name.startswith(".")}
        # Two may be at it at once.
        others = sorted(found - {"blobs", self._index_file.name, self._marker.name})
        if others:
            raise StoreDamaged(
                f"{self.path} holds {others[0]!r} and is no store (an OCI image layout has a file "
                f"{self._marker.name!r}); name a store, or a folder that is new or empty"
            )
        with writing_to(self.path):
            self._blobs.mkdir(parents=True, exist_ok=True)
            with new_upload(self._uploads) as upload:
                upload.write(canonical(_LAYOUT))
                upload.publish(self._marker)
            for folder in (self._blobs.parent, self.path, self.path.parent):
                sync_folder(folder)

    def _write(self, place: Path, content: bytes) -> None:
        with self._upload() as upload:
            upload.write(content)
            upload.publish(place)

    def _index(self) -> list[Descriptor]:
        file = self._index_file
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreDamaged(f"{file} can't be read: {error.strerror}") from error
        try:
            index = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise StoreDamaged(f"{file} is not JSON: {error}; restore it from an intact store") from None
        entries = cast("Descriptor", index).get("manifests") if isinstance(index, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast("list[object]", entries)):
            raise StoreDamaged(f"{file} is no OCI index: 'manifests' should be a list of descriptors")
        return cast("list[Descriptor]", entries)

    def _write_index(self, descriptors: list[Descriptor]) -> None:
        sync_folder(self._blobs)
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": descriptors}
        self._write(self._index_file, canonical(index))
        sync_folder(self.path)

    def _digest_in(self, descriptor: Descriptor) -> str:
        try:
            return _DIGEST.validate_python(descriptor.get("digest"))
        except ValidationError:
            raise StoreDamaged(
                f"{self.path}: {_ref_name(descriptor)} in index.json has no digest 'sha256:…' but "
                f"{descriptor.get('digest')!r:.80}; restore index.json from an intact store"
            ) from None

    @contextmanager
    def _locked(self, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        with writing_to(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # Read only, so that all who share the store can lock it, whoever made the file.
            lock = os.open(self.path / ".lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(lock, how)
                yield
            finally:
                os.close(lock)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _named(name: str, index: list[Descriptor]) -> Descriptor | None:
    return next((descriptor for descriptor in index if _ref_name(descriptor) == name), None)


def _ref_name(descriptor: Descriptor) -> str | None:
    annotations = descriptor.get("annotations")
    name = cast("Descriptor", annotations).get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def _descriptor(name: str, document: ImageManifest, manifest: bytes) -> Descriptor:
    return {
        "mediaType": MANIFEST_TYPE,
        **({"artifactType": document.artifact_type} if document.artifact_type else {}),
        "digest": digest_of(manifest),
        "size": len(manifest),
        "annotations": {REF_NAME: name},
    }
