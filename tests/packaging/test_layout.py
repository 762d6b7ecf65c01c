"""The store on disk: what goes in comes out the same, one version is one artifact, and OCI tools read it."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.digests import digest_of
from model_packaging.errors import (
    BlobMissing,
    DigestMismatch,
    ManifestRefused,
    NotInStore,
    NotWritable,
    PackagingError,
    StoreDamaged,
    VersionExists,
)
from model_packaging.manifest import canonical
from model_packaging.stores import Entry, open_store
from model_packaging.stores.layout import Layout
from tests.packaging.model_folders import blob, build, leftovers, make_folder, tree, visible


@pytest.fixture
def digest(store: Layout, folder: Path) -> str:
    return build(folder, store)


# The layout


def test_the_layout_is_one_that_oci_tools_read(store: Layout, digest: str) -> None:
    assert json.loads((store.path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.path / "index.json").read_text())
    assert index["schemaVersion"] == 2
    (entry,) = index["manifests"]
    manifest = blob(store, digest).read_bytes()
    assert (entry["digest"], entry["size"]) == (digest, len(manifest))
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "tumour:1.0.0"
    assert json.loads(manifest)["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"


def test_every_blob_can_be_read_by_all(store: Layout, digest: str) -> None:
    assert {path.stat().st_mode & 0o777 for path in blob(store, digest).parent.iterdir()} == {0o644}


def test_a_location_without_a_scheme_is_a_layout(tmp_path: Path) -> None:
    assert open_store(tmp_path / "store").location == str(tmp_path / "store")


def test_a_folder_of_other_things_does_not_become_a_store(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(StoreDamaged, match=r"holds 'thesis\.tex' and is no store"):
        build(folder, Layout(tmp_path / "home"))
    assert tree(tmp_path / "home") == {"thesis.tex": b""}


def test_a_store_below_a_file_is_refused_and_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritable, match="file/store can't be written"):
        build(folder, Layout(tmp_path / "file" / "store"))


# Versions


def test_a_version_resolves_to_its_digest(store: Layout, digest: str) -> None:
    assert store.resolve("tumour", "1.0.0") == digest


def test_versions_are_listed_by_model_and_precedence(store: Layout, folder: Path) -> None:
    for version in ("1.10.0", "1.9.0", "1.10.0-rc.2", "1.10.0-rc.10"):
        build(folder, store, version)
    build_artifact(folder, "lesion", "2.0.0", store)
    listed = [(entry.model, entry.version) for entry in store.entries()]
    ordered = ["1.9.0", "1.10.0-rc.2", "1.10.0-rc.10", "1.10.0"]
    assert listed == [("lesion", "2.0.0"), *(("tumour", version) for version in ordered)]
    assert [entry.version for entry in store.entries("tumour")] == ordered


@pytest.mark.parametrize("name", ["latest", "tumour:latest", "tumour:1.0", "tumour:٣.0.0", "tumour:1.0.0+build", None])
def test_what_others_keep_in_the_layout_is_no_version(store: Layout, digest: str, name: str | None) -> None:
    index = json.loads((store.path / "index.json").read_text())
    other = index["manifests"][0] | {"annotations": {"org.opencontainers.image.ref.name": name} if name else None}
    index["manifests"].append(other)
    (store.path / "index.json").write_text(json.dumps(index))
    assert list(store.entries()) == [Entry("tumour", "1.0.0", digest)]


def test_a_missing_version_names_the_store_what_it_has_and_the_remedy(store: Layout, digest: str) -> None:
    with pytest.raises(NotInStore) as raised:
        store.resolve("tumour", "2.0.0")
    for part in (str(store.path), "tumour 2.0.0", "it has 1.0.0", "lepton package build"):
        assert part in str(raised.value)


def test_a_store_that_is_not_there_has_no_versions_and_is_not_made(tmp_path: Path) -> None:
    store = Layout(tmp_path / "nowhere")
    with pytest.raises(NotInStore, match="no version of tumour"):
        store.resolve("tumour", "1.0.0")
    with pytest.raises(NotInStore, match="no version of tumour"):
        store.delete("tumour", "1.0.0")
    assert not store.path.exists()


def test_putting_the_same_bytes_again_changes_nothing(store: Layout, digest: str, folder: Path) -> None:
    before = visible(store.path)
    again = build_artifact(folder, "tumour", "1.0.0", store)
    assert (again.digest, again.created) == (digest, False)
    assert visible(store.path) == before


def test_a_version_with_other_bytes_is_refused_naming_both_digests(store: Layout, digest: str, folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"other")
    with pytest.raises(VersionExists) as raised:
        build(folder, store)
    assert raised.value.stored == digest
    assert raised.value.stored in str(raised.value)
    assert raised.value.offered in str(raised.value)
    assert raised.value.offered != digest
    assert store.resolve("tumour", "1.0.0") == digest


def _build_in_a_process(folder: Path, store: Path) -> str:
    try:
        return build(folder, Layout(store))
    except VersionExists:
        return "refused"


def test_of_builds_of_one_version_with_other_bytes_at_once_one_wins(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / f"model-{number}", {"w": bytes([number]) * 50_000}) for number in range(6)]
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        outcomes = list(pool.map(_build_in_a_process, folders, [tmp_path / "store"] * len(folders)))
    assert outcomes.count("refused") == len(folders) - 1
    (winner,) = [outcome for outcome in outcomes if outcome != "refused"]
    store = Layout(tmp_path / "store")
    assert store.resolve("tumour", "1.0.0") == winner
    Artifact.find(store, "tumour", "1.0.0").verify()


def test_versions_built_at_once_are_all_kept(store: Layout, digest: str, folder: Path) -> None:
    versions = [f"2.0.{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        built = list(pool.map(lambda version: build(folder, store, version), versions))
    assert [store.resolve("tumour", version) for version in versions] == built
    assert store.resolve("tumour", "1.0.0") == digest


def test_a_deleted_version_is_gone_and_may_come_back(store: Layout, digest: str, folder: Path) -> None:
    kept = build(folder, store, "1.1.0")
    store.delete("tumour", "1.0.0")
    assert [entry.digest for entry in store.entries()] == [kept]
    with pytest.raises(NotInStore):
        store.delete("tumour", "1.0.0")
    assert build(folder, store) == digest


# What is put


@pytest.mark.parametrize(
    "change",
    [
        {"artifactType": "application/x-other"},
        {"layers": []},
        {"layers": None},
        {"config": None},
        {"config": {"mediaType": "x", "digest": "sha256:../../etc", "size": 1}},
        {"schemaVersion": 1},
        {"mediaType": "application/vnd.oci.image.index.v1+json"},
    ],
)
def test_a_document_that_is_no_models_manifest_is_not_put(store: Layout, digest: str, change: dict[str, Any]) -> None:
    before = visible(store.path)
    document = json.loads(blob(store, digest).read_bytes()) | change
    with pytest.raises(ManifestRefused, match=r"tumour 2\.0\.0 is no model's manifest"):
        store.put("tumour", "2.0.0", canonical(document))
    assert visible(store.path) == before


@pytest.mark.parametrize("manifest", [b"", b"\xff", b"[]", b"null", b"[" * 100_000, b"1" * 5_000])
def test_bytes_that_are_no_json_object_are_not_put(store: Layout, manifest: bytes) -> None:
    with pytest.raises(ManifestRefused):
        store.put("tumour", "2.0.0", manifest)
    assert not store.path.exists()


@pytest.mark.parametrize(("model", "version"), [("a:b", "1.0.0"), ("../x", "1.0.0"), ("tumour", "latest")])
def test_a_name_that_no_version_has_is_not_put(store: Layout, digest: str, model: str, version: str) -> None:
    with pytest.raises(ManifestRefused, match="can't name a version"):
        store.put(model, version, blob(store, digest).read_bytes())


def test_a_manifest_whose_blobs_are_not_there_is_not_put(store: Layout, digest: str) -> None:
    document = json.loads(blob(store, digest).read_bytes())
    document["layers"][0]["digest"] = "sha256:" + "0" * 64
    with pytest.raises(BlobMissing, match="sha256:0000"):
        store.put("tumour", "2.0.0", canonical(document))
    assert [entry.version for entry in store.entries()] == ["1.0.0"]


def test_a_blob_of_other_bytes_than_said_is_not_kept(store: Layout, digest: str) -> None:
    before = visible(store.path)
    with pytest.raises(DigestMismatch):
        store.add_blob("tumour", io.BytesIO(b"other"), 5, digest_of(b"right"))
    with pytest.raises(DigestMismatch, match="5 bytes of 6"):
        store.add_blob("tumour", io.BytesIO(b"short"), 6)
    assert visible(store.path) == before
    assert not leftovers(store.path)


# Attachments


def attached(store: Layout, content: bytes) -> bytes:
    """An image manifest with one layer of `content`, whose blobs are there."""
    layer = store.add_blob("tumour", io.BytesIO(content), len(content))
    config = store.add_blob("tumour", io.BytesIO(b"{}"), 2)
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/x-test", "digest": layer, "size": len(content)}],
        }
    )


def test_an_attachment_is_found_by_its_artifact_and_is_no_version(store: Layout, digest: str) -> None:
    signature = attached(store, b"signature")
    assert store.attachment("tumour", digest, "sig") is None
    assert store.attach("tumour", digest, "sig", signature, None)
    assert store.attachment("tumour", digest, "sig") == signature
    assert [entry.version for entry in store.entries()] == ["1.0.0"]


def test_an_attachment_is_replaced_only_by_who_knows_the_present_one(store: Layout, digest: str) -> None:
    first, second = attached(store, b"first"), attached(store, b"second")
    assert store.attach("tumour", digest, "sig", first, None)
    assert not store.attach("tumour", digest, "sig", second, None)
    assert store.attachment("tumour", digest, "sig") == first
    assert store.attach("tumour", digest, "sig", second, first)
    assert store.attachment("tumour", digest, "sig") == second


def test_an_attachment_goes_with_the_version_it_is_attached_to(store: Layout, digest: str) -> None:
    store.attach("tumour", digest, "sig", attached(store, b"signature"), None)
    store.delete("tumour", "1.0.0")
    assert store.attachment("tumour", digest, "sig") is None
    assert json.loads((store.path / "index.json").read_text())["manifests"] == []


@pytest.mark.parametrize("manifest", [b"", b"{}", b'{"schemaVersion": 2, "layers": [{}]}'])
def test_what_is_no_image_manifest_is_not_attached(store: Layout, digest: str, manifest: bytes) -> None:
    with pytest.raises(ManifestRefused, match="no image manifest"):
        store.attach("tumour", digest, "sig", manifest, None)


@pytest.mark.parametrize("kind", ["", "../x", "SIG", "a:b"])
def test_a_kind_that_no_tag_ends_in_is_refused(store: Layout, digest: str, kind: str) -> None:
    with pytest.raises(ManifestRefused, match="no kind of attachment"):
        store.attach("tumour", digest, kind, attached(store, b"signature"), None)


# What is read


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"manifests": 3}', b'{"manifests": [3]}', b"[" * 100_000])
def test_an_index_that_is_not_one_is_an_error_that_names_it(store: Layout, digest: str, content: bytes) -> None:
    (store.path / "index.json").write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"index\.json"):
        store.resolve("tumour", "1.0.0")


@pytest.mark.parametrize("digest_given", [None, 3, "", "sha256:../../../etc/passwd", "sha512:" + "0" * 128])
def test_a_version_without_a_digest_is_an_error_that_names_it(store: Layout, digest: str, digest_given: Any) -> None:
    index = json.loads((store.path / "index.json").read_text())
    index["manifests"][0]["digest"] = digest_given
    (store.path / "index.json").write_text(json.dumps(index))
    with pytest.raises(StoreDamaged, match=r"tumour:1\.0\.0 in index\.json has no digest"):
        store.resolve("tumour", "1.0.0")


@pytest.mark.parametrize("given", ["", "sha256:", "sha256:../../../index.json", "md5:00", "sha256:" + "0" * 63])
def test_what_is_no_digest_leads_nowhere(store: Layout, digest: str, given: str) -> None:
    for read in (store.has_blob, store.read_manifest, lambda model, digest: store.open_blob(model, digest, "it")):
        with pytest.raises(NotInStore):
            read("tumour", given)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_blob_that_is_no_plain_file_is_not_read(store: Layout, digest: str, tmp_path: Path, kind: str) -> None:
    file = blob(store, digest)
    file.rename(tmp_path / "elsewhere")
    if kind == "link":
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(StoreDamaged, match="the manifest"):
        store.open_blob("tumour", digest, "the manifest")
    assert not store.has_blob("tumour", digest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from(["tumour:1.0.0", "tumour:2.0.0", "tumour:sha256-00.sig", "x"]) | st.text(max_size=8)
DIGESTS = st.sampled_from(["sha256:" + "0" * 64, "sha256:../../outside", "sha512:00"]) | st.text(max_size=8)
DESCRIPTORS = JSON | st.fixed_dictionaries(
    {},
    optional={
        "mediaType": st.sampled_from(["application/vnd.oci.image.manifest.v1+json", "x"]) | JSON,
        "digest": DIGESTS | JSON,
        "size": JSON,
        "annotations": JSON | st.fixed_dictionaries({"org.opencontainers.image.ref.name": NAMES | JSON}),
    },
)
INDEXES = st.binary(max_size=30) | st.builds(
    lambda document: json.dumps(document).encode(), JSON | st.fixed_dictionaries({"manifests": st.lists(DESCRIPTORS)})
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=INDEXES)
def test_any_index_is_an_error_or_a_list_of_versions(index: bytes, store: Layout, digest: str, tmp_path: Path) -> None:
    # Where "sha256:../../outside" would lead.
    (store.path / "outside").write_bytes(b"not yours")
    (store.path / "index.json").write_bytes(index)
    for ask in (
        lambda: list(store.entries()),
        lambda: store.resolve("tumour", "1.0.0"),
        lambda: Artifact.find(store, "tumour", "1.0.0").verify(),
        lambda: store.attachment("tumour", digest, "sig"),
        lambda: store.collect(dry_run=True),
    ):
        with suppress(PackagingError):
            assert b"not yours" not in repr(ask()).encode()
