"""What is offered to a store, checked before it touches anything, and the names that attachments are kept under."""

from __future__ import annotations

import re
from typing import TypeVar

from infra.settings.loading import SettingsError, parse_value
from infra.settings.values import Name, SemanticVersion
from model_packaging.errors import ManifestRefused
from model_packaging.manifest import ImageManifest, Manifest, parse_document

_KIND = re.compile(r"[a-z][a-z0-9]*")

D = TypeVar("D", bound=ImageManifest)


def parse_version(model: str, version: str, manifest: bytes) -> Manifest:
    """The manifest that is to be a version.

    Raises:
        ManifestRefused: it is no model's manifest, or model or version can't name a version.
    """
    try:
        parse_value(Name, model, "model")
        parse_value(SemanticVersion, version, "version")
    except SettingsError as error:
        raise ManifestRefused(f"'{model}:{version}' can't name a version: {error}") from None
    return _parse(Manifest, manifest, f"what is offered as {model} {version} is no model's manifest")


def parse_attachment(model: str, digest: str, manifest: bytes) -> ImageManifest:
    """The manifest that is to be kept beside an artifact.

    Raises:
        ManifestRefused: it is no image manifest.
    """
    return _parse(ImageManifest, manifest, f"what is to be attached to {model} {digest} is no image manifest")


def attachment_tag(digest: str, kind: str) -> str:
    """The tag of an attachment.

    Source: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md, tag-based discovery.

    Raises:
        ManifestRefused: `kind` is no word for a tag.
    """
    if not _KIND.fullmatch(kind):
        raise ManifestRefused(f"{kind!r} is no kind of attachment; one is a word in lower case, such as 'sig'")
    return attachment_tags(digest) + kind


def attachment_tags(digest: str) -> str:
    """How the tags of all attachments of an artifact begin."""
    return f"{digest.replace(':', '-')}."


def _parse(kind: type[D], content: bytes, what: str) -> D:
    try:
        return parse_document(kind, content)
    except ValueError as error:
        raise ManifestRefused(f"{what}: {error}") from None
