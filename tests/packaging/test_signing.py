"""Signatures over artifacts: who has signed is told, and nothing else passes for it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.digests import digest_of
from model_packaging.errors import PackagingError, SignatureInvalid, Unsigned, Untrusted
from model_packaging.keys import PrivateKey
from model_packaging.manifest import canonical
from model_packaging.signing import KEY, KIND, SIGNATURE, TrustedKey, sign, signatures, verify_signature
from model_packaging.stores.layout import Layout

SIGNER = "ada@example.org"
PACKAGE = {
    "framework": {"name": "none", "version": "1"},
    "training_data": "none",
    "licence": "Apache-2.0",
    "samples": [{"prompt": "hello"}],
}


def new_key() -> PrivateKey:
    return PrivateKey(Ed25519PrivateKey.generate())


def trusting(*keys: PrivateKey) -> list[TrustedKey]:
    return [TrustedKey(f"keys/{number}.pub", key.public) for number, key in enumerate(keys)]


TEAM, STRANGER = new_key(), new_key()
TRUSTED = trusting(TEAM)


@pytest.fixture
def artifact(store: Layout) -> Artifact:
    return built(store, "1.0.0")


def built(store: Layout, version: str) -> Artifact:
    folder = store.path.parent / version
    folder.mkdir()
    (folder / "package.yaml").write_text(json.dumps(PACKAGE))
    (folder / "weights.bin").write_text(f"weights of {version}")
    build_artifact(folder, "tumour", version, store)
    return Artifact.find(store, "tumour", version)


def attached(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.store.attachment("tumour", artifact.digest, KIND)
    assert manifest is not None
    return json.loads(manifest)


def attach(artifact: Artifact, document: dict[str, Any]) -> None:
    """Puts other signatures there than those that are, as whoever may write to the store can."""
    before = artifact.store.attachment("tumour", artifact.digest, KIND)
    assert artifact.store.attach("tumour", artifact.digest, KIND, canonical(document), before)


def add(artifact: Artifact, content: bytes) -> dict[str, Any]:
    return {"digest": artifact.store.add_blob("tumour", BytesIO(content), len(content)), "size": len(content)}


def payload_of(artifact: Artifact) -> dict[str, Any]:
    (signature,) = signatures(artifact)
    return json.loads(signature.payload)


def refusal(artifact: Artifact, trusted: list[TrustedKey]) -> Untrusted:
    with pytest.raises(Untrusted) as refused:
        verify_signature(artifact, trusted)
    return refused.value


def test_the_trusted_key_that_signed_is_told(artifact: Artifact) -> None:
    others = trusting(new_key(), TEAM, new_key())
    assert sign(artifact, TEAM, SIGNER)
    assert verify_signature(artifact, others) == others[1]


def test_an_unsigned_artifact_is_told_who_is_trusted_and_how_to_sign_it(artifact: Artifact) -> None:
    refused = refusal(artifact, TRUSTED)
    assert isinstance(refused, Unsigned)
    assert f"tumour 1.0.0 ({artifact.digest}) is not signed; trusted: keys/0.pub (sha256:" in str(refused)
    assert TEAM.public.fingerprint in str(refused)
    command = f"sign it: lepton package sign tumour:1.0.0 --key FILE --store {artifact.store.location}"
    assert str(refused).endswith(command)


def test_a_signature_by_another_key_does_not_count_and_is_named(artifact: Artifact) -> None:
    sign(artifact, STRANGER, SIGNER)
    refused = refusal(artifact, TRUSTED)
    assert type(refused) is Untrusted
    assert f"is not signed by a trusted key, but by '{STRANGER.public.fingerprint}'" in str(refused)


def test_without_a_trusted_key_no_signature_counts(artifact: Artifact) -> None:
    sign(artifact, TEAM, SIGNER)
    assert "no key is trusted" in str(refusal(artifact, []))


def test_a_signature_has_the_form_that_cosign_reads(artifact: Artifact) -> None:
    sign(artifact, TEAM, SIGNER)
    document = attached(artifact)
    (layer,) = document["layers"]
    assert document["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert document["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    with artifact.store.open_blob("tumour", layer["digest"], "the payload") as source:
        payload = source.read()
    assert json.loads(payload) == {
        "critical": {
            "identity": {"docker-reference": "tumour:1.0.0"},
            "image": {"docker-manifest-digest": artifact.digest},
            "type": "cosign container image signature",
        },
        "optional": {"signer": SIGNER},
    }
    value = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    assert TEAM.public.verifies(value, payload)
    with artifact.store.open_blob("tumour", document["config"]["digest"], "the config") as source:
        assert json.load(source)["rootfs"] == {"type": "layers", "diff_ids": [layer["digest"]]}


def test_a_signature_in_cosigns_own_spelling_counts(artifact: Artifact) -> None:
    """An annotation less, another reference, spaces, and null for what is optional."""
    sign(artifact, TEAM, SIGNER)
    payload = payload_of(artifact)
    payload["optional"] = None
    payload["critical"]["identity"]["docker-reference"] = "registry.example.org/models/tumour"
    content = json.dumps(payload, indent=3).encode()
    document = attached(artifact)
    document["layers"][0] |= add(artifact, content)
    document["layers"][0]["annotations"] = {SIGNATURE: base64.b64encode(TEAM.sign(content)).decode()}
    attach(artifact, document)
    assert verify_signature(artifact, TRUSTED) == TRUSTED[0]


def test_to_sign_again_changes_nothing(artifact: Artifact, store: Layout) -> None:
    assert sign(artifact, TEAM, SIGNER)
    before = (store.path / "index.json").read_bytes()
    assert not sign(artifact, TEAM, "somebody else")
    assert (store.path / "index.json").read_bytes() == before


def test_several_teams_sign_side_by_side(artifact: Artifact) -> None:
    for key in (TEAM, STRANGER):
        assert sign(artifact, key, SIGNER)
    assert [signature.key for signature in signatures(artifact)] == [
        TEAM.public.fingerprint,
        STRANGER.public.fingerprint,
    ]
    for key in (TEAM, STRANGER):
        verify_signature(artifact, trusting(key))


def test_signatures_made_at_once_are_all_kept(artifact: Artifact) -> None:
    keys = [new_key() for _ in range(12)]
    with ThreadPoolExecutor(len(keys)) as pool:
        assert all(pool.map(lambda key: sign(artifact, key, SIGNER), keys))
    for key in keys:
        verify_signature(artifact, trusting(key))


def test_what_others_attached_beside_stays_as_it_is(artifact: Artifact) -> None:
    sign(artifact, STRANGER, SIGNER)
    document = attached(artifact)
    foreign = {"mediaType": "application/vnd.example.seal", **add(artifact, b"seal"), "annotations": {"its": "own"}}
    document["layers"].append(foreign)
    attach(artifact, document)
    sign(artifact, TEAM, SIGNER)
    assert attached(artifact)["layers"][:2] == document["layers"]
    verify_signature(artifact, TRUSTED)


def test_a_signature_copied_from_another_artifact_is_refused(artifact: Artifact, store: Layout) -> None:
    other = built(store, "1.1.0")
    sign(other, TEAM, SIGNER)
    attach(artifact, attached(other))
    refused = refusal(artifact, TRUSTED)
    assert isinstance(refused, SignatureInvalid)
    assert f"a signature is of another artifact, {other.digest}" in str(refused)


def test_an_artifact_put_in_the_place_of_a_signed_one_is_unsigned(artifact: Artifact, store: Layout) -> None:
    sign(artifact, TEAM, SIGNER)
    index = json.loads((store.path / "index.json").read_text())
    other = Layout(store.path.parent / "other")
    (store.path.parent / "1.0.0" / "weights.bin").write_text("others")
    build_artifact(store.path.parent / "1.0.0", "tumour", "1.0.0", other)
    swapped = Artifact.find(other, "tumour", "1.0.0")
    for blob in (other.path / "blobs" / "sha256").iterdir():
        (store.path / "blobs" / "sha256" / blob.name).write_bytes(blob.read_bytes())
    for entry in index["manifests"]:
        if entry["digest"] == artifact.digest:
            entry["digest"] = swapped.digest
    (store.path / "index.json").write_text(json.dumps(index))
    assert isinstance(refusal(Artifact.find(store, "tumour", "1.0.0"), TRUSTED), Unsigned)


def other_digest(artifact: Artifact, layer: dict[str, Any]) -> None:
    payload = payload_of(artifact)
    payload["critical"]["image"]["docker-manifest-digest"] = "sha256:" + "0" * 64
    layer |= add(artifact, canonical(payload))


def other_signer(artifact: Artifact, layer: dict[str, Any]) -> None:
    layer |= add(artifact, canonical(payload_of(artifact) | {"optional": {"signer": "mallory@example.org"}}))


def other_type(artifact: Artifact, layer: dict[str, Any]) -> None:
    payload = payload_of(artifact)
    payload["critical"]["type"] = "atomic container signature"
    content = canonical(payload)
    layer |= add(artifact, content)
    layer["annotations"][SIGNATURE] = base64.b64encode(TEAM.sign(content)).decode()


def other_value(_: Artifact, layer: dict[str, Any]) -> None:
    layer["annotations"][SIGNATURE] = base64.b64encode(bytes(64)).decode()


def other_name(artifact: Artifact, layer: dict[str, Any]) -> None:
    content = canonical(payload_of(artifact))
    layer["annotations"][SIGNATURE] = base64.b64encode(STRANGER.sign(content)).decode()


def no_base64(_: Artifact, layer: dict[str, Any]) -> None:
    layer["annotations"][SIGNATURE] = "ä!"


def no_value(_: Artifact, layer: dict[str, Any]) -> None:
    del layer["annotations"][SIGNATURE]


def no_json(artifact: Artifact, layer: dict[str, Any]) -> None:
    layer |= add(artifact, b"\xff{")


def no_payload(artifact: Artifact, layer: dict[str, Any]) -> None:
    layer |= add(artifact, b'{"critical": {"image": 1}}')


def other_size(_: Artifact, layer: dict[str, Any]) -> None:
    layer["size"] -= 1


def large_payload(artifact: Artifact, layer: dict[str, Any]) -> None:
    layer |= add(artifact, b" " * 100_000)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (other_digest, "a signature is of another artifact, sha256:000"),
        (other_signer, "a signature says that it is by keys/0.pub (sha256:"),
        (other_value, "a signature says that it is by keys/0.pub (sha256:"),
        (other_name, "a signature says that it is by keys/0.pub (sha256:"),
        (other_type, "its payload is a 'atomic container signature', not a 'cosign container image signature'"),
        (no_base64, "its annotation dev.cosignproject.cosign/signature should hold one in base64"),
        (no_value, "its annotation dev.cosignproject.cosign/signature should hold one in base64"),
        (no_json, "its payload is not that of a signature: "),
        (no_payload, "its payload is not that of a signature: critical.image"),
        (other_size, "its bytes do not match its digest and size"),
        (large_payload, "100000 bytes are more than any has"),
    ],
)
def test_a_forged_signature_is_refused_and_said_to_be_one(
    artifact: Artifact, change: Callable[[Artifact, dict[str, Any]], None], problem: str
) -> None:
    sign(artifact, TEAM, SIGNER)
    document = attached(artifact)
    change(artifact, document["layers"][0])
    attach(artifact, document)
    refused = refusal(artifact, TRUSTED)
    assert isinstance(refused, SignatureInvalid)
    assert problem in str(refused)


def test_a_true_signature_beside_forged_ones_counts(artifact: Artifact) -> None:
    sign(artifact, STRANGER, SIGNER)
    document = attached(artifact)
    document["layers"][0]["annotations"] = {SIGNATURE: "ä", KEY: TEAM.public.fingerprint}
    attach(artifact, document)
    sign(artifact, TEAM, SIGNER)
    assert verify_signature(artifact, TRUSTED) == TRUSTED[0]


@pytest.mark.parametrize("content", [None, b"harmed"], ids=["missing", "harmed"])
def test_a_payload_whose_blob_is_not_whole_is_refused(artifact: Artifact, store: Layout, content: bytes | None) -> None:
    sign(artifact, TEAM, SIGNER)
    blob = store.path / "blobs" / "sha256" / attached(artifact)["layers"][0]["digest"].removeprefix("sha256:")
    blob.unlink()
    if content is not None:
        blob.write_bytes(content)
    assert "is no signature: its b" in str(refusal(artifact, TRUSTED))


def put_by_hand(artifact: Artifact, content: bytes) -> None:
    """Tags any bytes as the artifact's signatures, past all that a store checks."""
    folder = Path(artifact.store.location)
    digest = digest_of(content)
    (folder / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(content)
    index = json.loads((folder / "index.json").read_text())
    name = f"tumour:{artifact.digest.replace(':', '-')}.sig"
    descriptor = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": len(content),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    others = [entry for entry in index["manifests"] if entry["annotations"] != descriptor["annotations"]]
    (folder / "index.json").write_text(json.dumps(index | {"manifests": [*others, descriptor]}))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"layers": 7}', b"[" * 100_000, b'{"layers": [{"digest": "sha256:.."}]}'],
    ids=["empty", "binary", "list", "object", "number", "deep", "digest"],
)
def test_what_is_no_manifest_of_signatures_is_refused_and_left_alone(
    artifact: Artifact, store: Layout, content: bytes
) -> None:
    put_by_hand(artifact, content)
    before = (store.path / "index.json").read_bytes()
    for ask in (lambda: verify_signature(artifact, TRUSTED), lambda: sign(artifact, TEAM, SIGNER)):
        with pytest.raises(SignatureInvalid, match=r"signatures can't be read: .* delete the tag sha256-.*\.sig of"):
            ask()
    assert (store.path / "index.json").read_bytes() == before


def test_signatures_without_end_are_not_read(artifact: Artifact) -> None:
    sign(artifact, TEAM, SIGNER)
    document = attached(artifact)
    document["layers"] *= 100
    attach(artifact, document)
    verify_signature(artifact, TRUSTED)
    with pytest.raises(PackagingError, match="has 100 signatures, and no more are read"):
        sign(artifact, STRANGER, SIGNER)
    document["layers"] *= 2
    attach(artifact, document)
    assert "200 layers are more than 100" in str(refusal(artifact, TRUSTED))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(st.sampled_from(["mediaType", "size", "digest", "annotations", "extra"]), JSON), top=JSON)
def test_no_signature_that_is_made_up_passes(artifact: Artifact, change: dict[str, Any], top: Any) -> None:
    sign_by_stranger = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **add(artifact, b"{}")},
    }
    payload = canonical({"critical": top, "optional": top})
    layer = {
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        **add(artifact, payload),
        "annotations": {SIGNATURE: base64.b64encode(STRANGER.sign(payload)).decode()},
    }
    for document in ({**sign_by_stranger, "layers": [layer | change]}, {**sign_by_stranger, "layers": top}, top):
        put_by_hand(artifact, json.dumps(document).encode())
        with pytest.raises(Untrusted):
            verify_signature(artifact, TRUSTED)
