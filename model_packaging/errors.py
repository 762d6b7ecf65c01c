"""What can go wrong with an artifact or a store. Each text says what was found, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.errors import UserError


class PackagingError(UserError):
    """Base of every error that packaging raises for a reason the user can act on."""


class FolderRefused(PackagingError):
    """A model folder holds something that no artifact can."""


class GitFailed(PackagingError):
    """Git could not say which commit a model comes from."""


class VersionExists(PackagingError):
    """The store has this version with other bytes."""

    def __init__(self, store: Path, model: str, version: str, stored: str, offered: str) -> None:
        super().__init__(
            f"{store} already has {model} {version} with other bytes: it holds {stored}, this build is {offered}; "
            "a version never changes, so build the new bytes under a new version"
        )
        self.stored = stored
        self.offered = offered


class NotInStore(PackagingError):
    """The store has no such version, or no such artifact."""

    @classmethod
    def version(cls, store: Path, model: str, version: str, known: Sequence[str]) -> NotInStore:
        has = f"of {model} it has {', '.join(known)}" if known else f"it has no version of {model}"
        return cls(
            f"{store} has no {model} {version}; {has}. Ask for one of those, or package it: "
            f"lepton package build DIR --model {model} --version {version} --store {store}"
        )

    @classmethod
    def digest(cls, store: Path, digest: str) -> NotInStore:
        return cls(
            f"{store} has no artifact {digest}; name the store it was built into, "
            "or build it there with lepton package build"
        )


class StoreDamaged(PackagingError):
    """Something in the store is not what an OCI image layout, or a model's artifact, can be."""


class BlobMissing(PackagingError):
    """A blob that an artifact is made of is not in the store."""

    def __init__(self, store: Path, what: str, digest: str) -> None:
        super().__init__(
            f"{store}: {what} is missing, its blob {digest} is not there; "
            "copy the blob from an intact store, or build the same version again from the same files"
        )
        self.digest = digest


class DigestMismatch(PackagingError):
    """A blob's bytes are not those its digest stands for."""

    def __init__(self, store: Path, what: str, expected: str, found: str, size: str) -> None:
        super().__init__(
            f"{store}: {what} does not match its digest: expected {expected}, found {found} ({size}); "
            "nothing of this artifact may be served: restore the blob from an intact store"
        )
        self.what = what
        self.expected = expected
        self.found = found
