"""Brings a version's files to where they are served, with every byte verified: what an init container runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_packaging.artifact import Artifact
from model_packaging.keys import PublicKey
from model_packaging.progress import Progress
from model_packaging.signing import TrustedKey, verify_signature
from model_packaging.stores.store import Store


def pull(
    store: Store,
    model: str,
    digest: str,
    target: Path,
    keys: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Artifact:
    """Has the folder `target` hold the files of the artifact with that digest and nothing else.

    Nothing is there under that name before all is: a server that starts too early finds no folder, and no half of one.

    Args:
        keys: Files of public keys, one of which must have signed the artifact; none: signatures don't matter.

    Raises:
        NotInStore, BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable, DiskFull, NotWritable
        Untrusted: none of the keys has signed it.
        KeyRefused: one of them is none.
    """
    trusted = [TrustedKey(str(file), PublicKey.read(file)) for file in keys]
    artifact = Artifact.at(store, model, digest)
    if trusted:
        verify_signature(artifact, trusted)
    artifact.unpack(target, progress)
    return artifact
