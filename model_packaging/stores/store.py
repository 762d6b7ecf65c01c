"""What every store of artifacts can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple, Protocol

from model_packaging.stores.collection import Collected

REGISTRY_SCHEME = "oci://"
PLAIN_REGISTRY_SCHEME = "oci+http://"
"""Without TLS: for a registry on this machine, or behind something that encrypts."""


class Entry(NamedTuple):
    """A model version that a store has."""

    model: str
    version: str
    digest: str
    """Of its manifest."""


class Store(Protocol):
    """Keeps blobs by their digests, and manifests by the versions that they are.

    What is in a store is not trusted: who reads a blob compares it with its digest (see `artifact.Artifact`). All
    methods may be called from several threads and processes at once. Beside what they name, they raise StoreDamaged
    where the store can't be read for what it is, StoreUnreachable where it can't be asked, and DiskFull or NotWritable
    where it takes nothing.
    """

    @property
    def location(self) -> str:
        """What `open_store` opens it by."""
        ...

    def entries(self, model: str | None = None) -> Iterator[Entry]:
        """The versions there are, of one model or of all: by model, then by precedence."""
        ...

    def resolve(self, model: str, version: str) -> str:
        """The digest of a version's manifest.

        Raises:
            NotInStore: naming the versions that there are.
        """
        ...

    def read_manifest(self, model: str, digest: str) -> bytes:
        """A manifest of `model`, its bytes compared with its digest.

        Raises:
            NotInStore: there is no such manifest.
            BlobMissing: a version is that manifest, and its bytes are gone.
            DigestMismatch: its bytes are others.
        """
        ...

    def has_blob(self, model: str, digest: str) -> bool:
        """Whether the blob is there for versions of `model` to be made of. Within `writing`, it stays then."""
        ...

    def open_blob(self, model: str, digest: str, what: str) -> BinaryIO:
        """A blob's bytes as the store has them, not compared with anything; a context manager.

        Args:
            what: Names the blob in errors, such as "file 'model.onnx'".

        Raises:
            BlobMissing
        """
        ...

    def add_blob(self, model: str, source: BinaryIO, size: int, digest: str | None = None) -> str:
        """Keeps the next `size` bytes of `source`, and returns their digest.

        Args:
            source: Has `read` and `readinto`; `seek` too, where a store asks for the bytes twice.
            digest: What the bytes are known to be, so that a store that has them need not take them again.

        Raises:
            DigestMismatch: the bytes are not those of `digest`, or fewer than `size`; nothing is kept then.
        """
        ...

    def put(self, model: str, version: str, manifest: bytes) -> bool:
        """Makes `manifest` the artifact of a version, at once and for all who look. False where it was that before.

        Its blobs are there already.

        Raises:
            VersionExists: the version is there with other bytes, also if another process put it just now.
            BlobMissing: a blob that the manifest names isn't there.
            ManifestRefused: it is no model's manifest, or model or version is no name for one.
        """
        ...

    def attachment(self, model: str, digest: str, kind: str) -> bytes | None:
        """The manifest that is kept beside an artifact under the tag `sha256-HEX.KIND`, as cosign does; verified.

        None where there is none.
        """
        ...

    def attach(self, model: str, digest: str, kind: str, manifest: bytes, replacing: bytes | None) -> bool:
        """Keeps a manifest beside an artifact, in place of `replacing`. False, and nothing done, if another is there.

        Raises:
            BlobMissing: a blob that it names isn't there.
            ManifestRefused: it is no OCI image manifest, or `kind` is no word for a tag.
        """
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Has garbage collection spare, for the block, what is added in it or found by `has_blob`.

        Whoever adds blobs and later puts the manifest that names them does both in one such block.
        """
        ...

    def delete(self, model: str, version: str) -> None:
        """Takes away a version's name, and what is attached to its artifact if no other version is it.

        The blobs that only it was made of are freed by `collect`.

        Raises:
            NotInStore
        """
        ...

    def collect(self, *, dry_run: bool = False) -> Collected:
        """Frees what deleted versions were made of, and never what one in the store, or one on its way in, is made of.

        It may run beside builds, copies and other collections; it waits for none of them, and a build that begins
        meanwhile waits until it is done.

        Raises:
            StoreDamaged, BlobMissing, DigestMismatch: a manifest in the store can't be read, so nobody can say which
                blobs are in use; nothing was freed.
        """
        ...


Claim = Callable[[Store, str, str, bytes], object]
"""Told the store, model, version and manifest before the version is there; raises VersionExists where other bytes have
the name elsewhere. It may read the store, and not change it."""
