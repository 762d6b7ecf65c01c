"""What can go wrong with an artifact or a store. Each text says what was found, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import UserError


class PackagingError(UserError):
    """Base of every error that packaging raises for a reason the user can act on."""


class FolderRefused(PackagingError):
    """A model folder holds something that no artifact can."""


class GitFailed(PackagingError):
    """Git could not say which commit a model comes from."""


class VersionExists(PackagingError):
    """The store has this version with other bytes."""

    def __init__(self, store: str, model: str, version: str, stored: str, offered: str) -> None:
        super().__init__(
            f"{store} already has {model} {version} with other bytes: it holds {stored}, this build is {offered}; "
            "a version never changes, so build the new bytes under a new version"
        )
        self.stored = stored
        self.offered = offered


class AttachmentsDiffer(PackagingError):
    """Two stores have attached different things, such as signatures, to the same artifact."""

    def __init__(self, store: str, model: str, digest: str, kind: str) -> None:
        tag = f"{digest.replace(':', '-')}.{kind}"
        super().__init__(
            f"{store} has {tag} attached to {model}, with content that the copy would lose; "
            f"take the tag {tag} away there, copy again, and then attach there again (lepton package sign for 'sig')"
        )


class NotInStore(PackagingError):
    """The store has no such version, or no such artifact."""

    @classmethod
    def version(cls, store: str, model: str, version: str, known: Sequence[str]) -> NotInStore:
        has = f"of {model} it has {', '.join(known)}" if known else f"it has no version of {model}"
        return cls(
            f"{store} has no {model} {version}; {has}. Ask for one of those, or package it: "
            f"lepton package build DIR --model {model} --version {version} --store {store}"
        )

    @classmethod
    def digest(cls, store: str, digest: str) -> NotInStore:
        return cls(
            f"{store} has no artifact {digest}; name the store it was built into, "
            "or build it there with lepton package build"
        )


class StoreUnreachable(PackagingError):
    """A store can't be asked: it doesn't answer, or refuses who asks."""


class StoreDamaged(PackagingError):
    """Something in the store is not what an OCI image layout, or a model's artifact, can be."""


class BlobMissing(PackagingError):
    """A blob that an artifact is made of is not in the store."""

    def __init__(self, store: str, what: str, digest: str) -> None:
        super().__init__(
            f"{store}: {what} is missing, its blob {digest} is not there; "
            "copy the blob from an intact store, or build the same version again from the same files"
        )
        self.digest = digest


class DigestMismatch(PackagingError):
    """A blob's bytes are not those its digest stands for."""

    def __init__(self, store: str, what: str, expected: str, found: str, size: str) -> None:
        super().__init__(
            f"{store}: {what} does not match its digest: expected {expected}, found {found} ({size}); "
            "nothing of this artifact may be served: restore the blob from an intact store"
        )
        self.what = what
        self.expected = expected
        self.found = found


class DiskFull(PackagingError):
    """There is no room for what is to be written."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(
            f"{place} has no room left: {reason}; free some (lepton package gc frees what deleted versions were made "
            "of), or name a place on another disk. Nothing half-written is visible, so the same command can run again"
        )


class NotWritable(PackagingError):
    """A store or a folder may not be written, or is not there to be written."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place} can't be written: {reason}; grant access to it, or name another place")


class ManifestRefused(PackagingError):
    """A document that no store keeps: it is not a model's manifest, or names itself as no version can."""


class KeyRefused(PackagingError):
    """A file that should hold a key for signatures can't be used."""


class Untrusted(PackagingError):
    """Nobody who is trusted has signed an artifact."""


class Unsigned(Untrusted):
    """An artifact has no signature."""


class SignatureInvalid(Untrusted):
    """A signature is not what it says: of another artifact, not by the key it names, or no signature at all."""


class CatalogueFailed(PackagingError):
    """The catalogue's database can't be used, or did not do what it was asked."""


class NotInCatalogue(PackagingError):
    """The catalogue has no such version."""

    def __init__(self, model: str, version: str, latest: Sequence[str]) -> None:
        has = f"the latest of {model} are {', '.join(latest)}" if latest else f"it has no version of {model}"
        super().__init__(
            f"the catalogue has no {model} {version}; {has}. Ask for one that it has, package this one "
            "(lepton package build), or rebuild the catalogue from the store that has it"
        )


class RecordRefused(PackagingError):
    """Something that the catalogue can't hold."""


class QueryRefused(PackagingError):
    """A question to the catalogue that has no meaning."""


class DeletionRefused(PackagingError):
    """A version is in a stage in which it may serve."""


class TransitionRefused(PackagingError):
    """A version may not go to that lifecycle stage, yet or ever."""

    def __init__(self, version: str, stage: str, target: str, unmet: Sequence[str]) -> None:
        super().__init__(
            "\n".join([f"{version} can't go from {stage} to {target}:", *(f"- {condition}" for condition in unmet)])
        )
        self.unmet = tuple(unmet)


class ApprovalRefused(PackagingError):
    """An approval that could not count."""


class DatasetRefused(PackagingError):
    """A held-out data set can't be used: the file, a column, or a value in it."""


class EvaluationRefused(PackagingError):
    """A version can't be evaluated as asked: its signature, its server or an option doesn't allow it."""


class ServerFailed(PackagingError):
    """A model's server did not become ready, ended, or did not answer a request."""


class AnswerRefused(PackagingError):
    """A model's server answered something that can't be judged."""


class EngineMissing(PackagingError):
    """What an evaluation was asked to run on is not there."""


class PickleRefused(PackagingError):
    """A file would run code when it is loaded, and nobody allowed it by name; or the allowance fits no file."""


class SourceRefused(PackagingError):
    """A model's source, or a file of it, is not what it should be."""


class Contradiction(PackagingError):
    """`package.yaml` says something else than the model's own files."""


class ExportRefused(PackagingError):
    """An artifact can't be exported as asked."""


class TargetExists(ExportRefused):
    """There is something where an export is to go."""

    def __init__(self, target: str) -> None:
        super().__init__(
            f"{target} is there already, and is not this version; name a place that is free, or ask for it to be "
            "replaced"
        )


class BaseRefused(ExportRefused):
    """The image that an image is to be built on can't be used."""


class DockerFailed(PackagingError):
    """No Docker Engine answers, or it refuses."""
