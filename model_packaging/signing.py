"""Signatures over artifacts, kept beside them as cosign keeps its own.

Sources: cosign's SIGNATURE_SPEC (tag-based discovery, simple signing); the payload is that of containers-signature(5).
Why so, and what is not checked: docs/decisions/signatures.md.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.settings.values import Digest
from model_packaging.artifact import Artifact
from model_packaging.digests import digest_of
from model_packaging.errors import (
    BlobMissing,
    DigestMismatch,
    NotInStore,
    PackagingError,
    SignatureInvalid,
    StoreDamaged,
    Unsigned,
    Untrusted,
)
from model_packaging.keys import PrivateKey, PublicKey
from model_packaging.manifest import MANIFEST_TYPE, BlobDescriptor, ImageManifest, canonical, parse_document

KIND = "sig"
"""The attachment's tag ends in it."""

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
KEY = "lepton.signature.key"
"""Fingerprint of the key that a signature says it is by, for who reads errors: only the key itself proves it."""

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_PAYLOAD_KIND = "cosign container image signature"
_LARGEST_PAYLOAD = 64 << 10
_MOST_SIGNATURES = 100
_ATTEMPTS = 100


@dataclass(frozen=True)
class TrustedKey:
    """A key whose signature counts."""

    name: str
    """As the config names it."""
    key: PublicKey

    def __str__(self) -> str:
        return f"{self.name} ({self.key.fingerprint})"


@dataclass(frozen=True)
class ArtifactSignature:
    """A signature as it was found: nothing in it is true before a trusted key has verified it."""

    payload: bytes
    value: bytes
    signed: str
    """Digest of the artifact that the payload names."""
    signer: str | None
    """Who signed, by their own word."""
    key: str | None
    """Fingerprint of the key that it says it is by."""


class _Part(BaseModel):
    """Base of the parts of documents that others may write too."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class _Image(_Part):
    digest: Digest = Field(alias="docker-manifest-digest")


class _Critical(_Part):
    image: _Image
    type: str


class _Payload(_Part):
    critical: _Critical
    # cosign writes null where there is none.
    optional: dict[str, Any] | None = None


def sign(artifact: Artifact, key: PrivateKey, signer: str) -> bool:
    """Adds the key's signature over an artifact's manifest, beside those that are there. False where it was there.

    `signer` says who signs, for people: a name, an address, a job's URL.

    Raises:
        SignatureInvalid: what is in the signatures' place is something else.
        PackagingError: there are too many, or others add theirs all the time.
    """
    for _ in range(_ATTEMPTS):
        before = _attachment(artifact)
        found, _ = _read(artifact, before)
        if any(_is_by(key.public, artifact, signature) for signature in found):
            return False
        with artifact.store.writing():
            after = _with(artifact, before, key, signer)
            if artifact.store.attach(artifact.model, artifact.digest, KIND, after, before):
                return True
    raise PackagingError(
        f"{_named(artifact)} was given other signatures {_ATTEMPTS} times while this one was added; sign it again"
    )


def signatures(artifact: Artifact) -> list[ArtifactSignature]:
    """The artifact's signatures that can be read, not verified.

    Raises:
        SignatureInvalid: what is in their place is something else.
    """
    return _read(artifact, _attachment(artifact))[0]


def verify_signature(artifact: Artifact, trusted: Sequence[TrustedKey]) -> TrustedKey:
    """The first trusted key that has signed the artifact's manifest, and so every byte of it.

    Raises:
        Unsigned: nobody has signed it.
        SignatureInvalid: what is there is of another artifact, or not by the key that it names, or no signature.
        Untrusted: all who have signed it are others.
    """
    found, faults = _read(artifact, _attachment(artifact))
    for known in trusted:
        if any(_is_by(known.key, artifact, signature) for signature in found):
            return known
    hint = f"{_trusts(trusted)}; {_how_to_sign(artifact)}"
    if not found and not faults:
        raise Unsigned(f"{_named(artifact)} is not signed; {hint}")
    faults += [fault for signature in found if (fault := _fault(artifact, signature, trusted)) is not None]
    if faults:
        raise SignatureInvalid(f"{_named(artifact)} is not signed by a trusted key: {'; '.join(faults)}; {hint}")
    others = ", ".join(_claimed(signature) for signature in found)
    raise Untrusted(f"{_named(artifact)} is not signed by a trusted key, but by {others}; {hint}")


def _is_by(key: PublicKey, artifact: Artifact, signature: ArtifactSignature) -> bool:
    return signature.signed == artifact.digest and key.verifies(signature.value, signature.payload)


def _fault(artifact: Artifact, signature: ArtifactSignature, trusted: Sequence[TrustedKey]) -> str | None:
    """Why a signature that no trusted key has verified can't be an honest one; None where it is just another key's."""
    if signature.signed != artifact.digest:
        return f"a signature is of another artifact, {signature.signed}"
    named = next((known for known in trusted if known.key.fingerprint == signature.key), None)
    return None if named is None else f"a signature says that it is by {named}, and is not"


def _claimed(signature: ArtifactSignature) -> str:
    return "a key that it does not name" if signature.key is None else f"{signature.key!r:.80}"


def _with(artifact: Artifact, before: bytes | None, key: PrivateKey, signer: str) -> bytes:
    """The attachment with one more signature; other layers stay as they are, whoever wrote them."""
    payload = canonical(
        {
            "critical": {
                "identity": {"docker-reference": f"{artifact.model}:{artifact.description.version}"},
                "image": {"docker-manifest-digest": artifact.digest},
                "type": _PAYLOAD_KIND,
            },
            "optional": {"signer": signer},
        }
    )
    layer = {
        **_add(artifact, payload, PAYLOAD_TYPE),
        "annotations": {
            SIGNATURE: base64.b64encode(key.sign(payload)).decode(),
            KEY: key.public.fingerprint,
        },
    }
    layers = [*(json.loads(before)["layers"] if before is not None else []), layer]
    if len(layers) > _MOST_SIGNATURES:
        raise PackagingError(f"{_named(artifact)} has {_MOST_SIGNATURES} signatures, and no more are read")
    # What cosign writes: an image of no platform.
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in layers]},
    }
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _add(artifact, canonical(config), _CONFIG_TYPE),
            "layers": layers,
        }
    )


def _add(artifact: Artifact, content: bytes, media_type: str) -> dict[str, Any]:
    digest = artifact.store.add_blob(artifact.model, BytesIO(content), len(content))
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _attachment(artifact: Artifact) -> bytes | None:
    try:
        return artifact.store.attachment(artifact.model, artifact.digest, KIND)
    except (BlobMissing, DigestMismatch, NotInStore, StoreDamaged) as error:
        raise _unreadable(artifact, str(error)) from error


def _read(artifact: Artifact, attachment: bytes | None) -> tuple[list[ArtifactSignature], list[str]]:
    """The signatures in an attachment, and what is wrong with those that can't be read."""
    found: list[ArtifactSignature] = []
    faults: list[str] = []
    for layer in [] if attachment is None else _layers(artifact, attachment):
        # Whatever else somebody attached under this tag is nothing to us.
        if layer.media_type == PAYLOAD_TYPE:
            try:
                found.append(_signature(artifact, layer))
            except ValueError as error:
                faults.append(f"layer {layer.digest} is no signature: {error}")
    return found, faults


def _layers(artifact: Artifact, attachment: bytes) -> Sequence[BlobDescriptor]:
    try:
        layers = parse_document(ImageManifest, attachment).layers
    except ValueError as error:
        raise _unreadable(artifact, str(error)) from None
    if len(layers) > _MOST_SIGNATURES:
        raise _unreadable(artifact, f"{len(layers)} layers are more than {_MOST_SIGNATURES}")
    return layers


def _unreadable(artifact: Artifact, problem: str) -> SignatureInvalid:
    return SignatureInvalid(
        f"{_named(artifact)}: its signatures can't be read: {problem}; delete the tag "
        f"{artifact.digest.replace(':', '-')}.{KIND} of {artifact.model} in that store, and {_how_to_sign(artifact)}"
    )


def _signature(artifact: Artifact, layer: BlobDescriptor) -> ArtifactSignature:
    """Raises ValueError where the layer holds no signature."""
    try:
        value = base64.b64decode(layer.annotations.get(SIGNATURE, ""), validate=True)
    except ValueError:
        value = b""
    if not value:
        raise ValueError(f"its annotation {SIGNATURE} should hold one in base64")
    payload = _content(artifact, layer)
    try:
        document = _Payload.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"its payload is not that of a signature: {place} {first['msg']}") from None
    if document.critical.type != _PAYLOAD_KIND:
        raise ValueError(f"its payload is a {document.critical.type!r:.80}, not a {_PAYLOAD_KIND!r}")
    signer = (document.optional or {}).get("signer")
    return ArtifactSignature(
        payload=payload,
        value=value,
        signed=document.critical.image.digest,
        signer=signer if isinstance(signer, str) else None,
        key=layer.annotations.get(KEY),
    )


def _content(artifact: Artifact, layer: BlobDescriptor) -> bytes:
    if layer.size > _LARGEST_PAYLOAD:
        raise ValueError(f"{layer.size} bytes are more than any has")
    try:
        with artifact.store.open_blob(artifact.model, layer.digest, "a signature") as source:
            content = source.read(layer.size + 1)
    except BlobMissing:
        raise ValueError("its blob is missing") from None
    if len(content) != layer.size or digest_of(content) != layer.digest:
        raise ValueError("its bytes do not match its digest and size")
    return content


def _named(artifact: Artifact) -> str:
    return f"{artifact.store.location}: {artifact.model} {artifact.description.version} ({artifact.digest})"


def _trusts(trusted: Sequence[TrustedKey]) -> str:
    return f"trusted: {', '.join(map(str, trusted))}" if trusted else "no key is trusted"


def _how_to_sign(artifact: Artifact) -> str:
    return (
        f"sign it: lepton package sign {artifact.model}:{artifact.description.version} "
        f"--key FILE --store {artifact.store.location}"
    )
