"""Copies versions from one store to another: what the target has stays there, and the version's name comes last."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, BinaryIO, Protocol, cast, runtime_checkable

from model_packaging.artifact import Artifact
from model_packaging.errors import (
    AttachmentsDiffer,
    DigestMismatch,
    NotInStore,
    StoreDamaged,
    StoreUnreachable,
    VersionExists,
)
from model_packaging.manifest import BlobDescriptor, ImageManifest, parse_document
from model_packaging.progress import Meter, Progress
from model_packaging.stores.store import Store
from model_packaging.threads import threads

ATTACHMENT_KINDS = ("sig", "att", "sbom")
"""What comes along with an artifact: the kinds that cosign attaches."""

_ATTEMPTS = 3
"""At a blob whose source, or target, is lost on the way. Stores that can't be asked at all have been waited for."""


@dataclass(frozen=True)
class Copied:
    """What a copy did."""

    model: str
    version: str
    digest: str
    created: bool
    """False where the target had the version already."""
    sent_blobs: int
    sent_bytes: int
    present_blobs: int
    """Blobs that the target had, or could take from another place in the same registry."""
    present_bytes: int


@runtime_checkable
class _Mounts(Protocol):
    """A store that can take blobs from another without their bytes being sent."""

    def mount(self, model: str, digest: str, source: Store) -> bool: ...


def copy_version(source: Store, target: Store, model: str, version: str, *, progress: Progress | None = None) -> Copied:
    """Copies a version with what is attached to it, such as signatures; the digest stays what it was.

    Every byte is compared with its digest on the way. Cut at any moment, and run again, it sends what the target lacks.

    Args:
        progress: Told how many bytes of the blobs are in the target.

    Raises:
        NotInStore: the source has no such version.
        VersionExists: the target has it with other bytes; nothing was sent.
        AttachmentsDiffer: each has signatures that the other lacks; nothing was sent.
        BlobMissing, DigestMismatch, StoreDamaged: the source is harmed; the target has no such version then.
        StoreUnreachable, DiskFull, NotWritable: the target does not take it.
    """
    artifact = Artifact.find(source, model, version)
    with target.writing():
        try:
            present = target.resolve(model, version)
        except NotInStore:
            present = None
        if present not in (None, artifact.digest):
            raise VersionExists(target.location, model, version, present, artifact.digest)
        attachments = [
            attachment for kind in ATTACHMENT_KINDS if (attachment := _attachment(artifact, target, kind)) is not None
        ]
        blobs = {blob.digest: blob for blob in _named_in(artifact, attachments)}
        copying = _Copying(artifact, target, Meter(progress, sum(blob.size for blob in blobs.values())))
        copying.copy(list(blobs.values()))
        # Whoever sees the version may ask at once who signed it.
        for attachment in attachments:
            attachment.write(artifact, target)
        created = target.put(model, version, source.read_manifest(model, artifact.digest))
    sent = [blob for blob in blobs.values() if blob.digest in copying.sent]
    here = [blob for blob in blobs.values() if blob.digest not in copying.sent]
    return Copied(
        model,
        version,
        artifact.digest,
        created,
        sent_blobs=len(sent),
        sent_bytes=sum(blob.size for blob in sent),
        present_blobs=len(here),
        present_bytes=sum(blob.size for blob in here),
    )


def copy_model(source: Store, target: Store, model: str, *, progress: Progress | None = None) -> Iterator[Copied]:
    """Copies all versions of a model, one after the other, as `copy_version` does.

    Args:
        progress: Told of each version anew.

    Raises:
        NotInStore: the source has none.
    """
    entries = list(source.entries(model))
    if not entries:
        raise NotInStore(f"{source.location} has no version of {model}; name a model that it has")
    for entry in entries:
        yield copy_version(source, target, model, entry.version, progress=progress)


@dataclass(frozen=True)
class _Attachment:
    """What the target is to get beside an artifact, in place of what it has."""

    kind: str
    manifest: bytes
    document: ImageManifest
    replaced: bytes | None

    def write(self, artifact: Artifact, target: Store) -> None:
        if not target.attach(artifact.model, artifact.digest, self.kind, self.manifest, self.replaced):
            raise AttachmentsDiffer(target.location, artifact.model, artifact.digest, self.kind)


def _attachment(artifact: Artifact, target: Store, kind: str) -> _Attachment | None:
    """The source's attachment of a kind, if it holds anything that the target's does not.

    cosign adds a layer with each signature: one that has all layers of the other is the later one.
    """
    offered = artifact.store.attachment(artifact.model, artifact.digest, kind)
    if offered is None:
        return None
    document = _attached_document(artifact, artifact.store, kind, offered)
    present = target.attachment(artifact.model, artifact.digest, kind)
    if present is None:
        return _Attachment(kind, offered, document, None)
    layers = _layers(document)
    has = _layers(_attached_document(artifact, target, kind, present))
    if layers <= has:
        return None
    if not has <= layers:
        raise AttachmentsDiffer(target.location, artifact.model, artifact.digest, kind)
    return _Attachment(kind, offered, document, present)


def _attached_document(artifact: Artifact, store: Store, kind: str, manifest: bytes) -> ImageManifest:
    try:
        return parse_document(ImageManifest, manifest)
    except ValueError as error:
        raise StoreDamaged(
            f"{store.location}: what is attached to {artifact.model} as {kind!r} is no image manifest: "
            f"{error}; delete that tag"
        ) from None


def _layers(document: ImageManifest) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    # Two keys sign the same payload: what tells their layers apart is in the annotations.
    return {(layer.digest, frozenset(layer.annotations.items())) for layer in document.layers}


def _named_in(artifact: Artifact, attachments: Sequence[_Attachment]) -> Iterator[BlobDescriptor]:
    yield from artifact.manifest.blobs
    for attachment in attachments:
        yield from attachment.document.blobs


class _Copying:
    """Brings blobs into a store."""

    def __init__(self, artifact: Artifact, target: Store, meter: Meter) -> None:
        self.sent = set[str]()
        self._artifact = artifact
        self._target = target
        self._meter = meter
        self._names = {part.digest: part.name for part in artifact.parts}
        self._stopped = Event()
        self._lock = Lock()

    def copy(self, blobs: Sequence[BlobDescriptor]) -> None:
        """Raises the first thing that goes wrong; the transfers that are under way end with it."""
        with threads() as pool:
            due = [pool.submit(self._bring, blob) for blob in blobs]
            try:
                done, _ = wait(due, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()
            finally:
                self._stopped.set()

    def _bring(self, blob: BlobDescriptor) -> None:
        model, source = self._artifact.model, self._artifact.store
        if self._target.has_blob(model, blob.digest) or (
            isinstance(self._target, _Mounts) and self._target.mount(model, blob.digest, source)
        ):
            self._meter.add(blob.size)
            return
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._send(blob)
            except StoreUnreachable:
                if attempt == _ATTEMPTS:
                    raise
            else:
                break
        with self._lock:
            self.sent.add(blob.digest)

    def _send(self, blob: BlobDescriptor) -> None:
        what = self._names.get(blob.digest, f"blob {blob.digest}")
        model, store = self._artifact.model, self._artifact.store
        with store.open_blob(model, blob.digest, what) as source:
            passing = _Passing(source, self._meter, self._stopped)
            try:
                self._target.add_blob(model, cast("BinaryIO", passing), blob.size, blob.digest)
            except DigestMismatch as error:
                # It is the target that has noticed, and the source that is to be mended.
                sizes = f"{passing.done} bytes read of {blob.size} declared"
                raise DigestMismatch(store.location, what, blob.digest, error.found, sizes) from None
            except StoreUnreachable:
                self._meter.add(-passing.done)
                raise


class _Stopped(Exception):
    """Ends a transfer whose copy has failed elsewhere, or was interrupted."""


class _Passing(io.RawIOBase):
    """A blob on its way from store to store, for one attempt at it."""

    def __init__(self, source: BinaryIO, meter: Meter, stopped: Event) -> None:
        super().__init__()
        self.done = 0
        """Bytes."""
        self._source = source
        self._meter = meter
        self._stopped = stopped

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._stopped.is_set():
            raise _Stopped
        count: int = cast("Any", self._source).readinto(buffer) or 0
        self.done += count
        self._meter.add(count)
        return count
