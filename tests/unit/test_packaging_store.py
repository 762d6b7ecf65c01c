"""The store: what goes in comes out the same, and nothing else comes out."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_packaging.build import build_artifact
from model_packaging.errors import (
    BlobMissing,
    DigestMismatch,
    NotInStore,
    PackagingError,
    StoreDamaged,
    VersionExists,
)
from model_packaging.manifest import TITLE, canonical, manifest_document
from model_packaging.store import Store

PACKAGE = json.dumps(
    {
        "framework": {"name": "scikit-learn", "version": "1.9.1"},
        "training_data": "made up",
        "licence": "Apache-2.0",
        "samples": [{"prompt": "hello"}],
    }
)


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.yaml").write_text(PACKAGE)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial" in path.name or path.parent.name == ".uploads"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def digest(store: Store, tmp_path: Path) -> str:
    files = {"model.bin": b"weights" * 1000, "settings.json": b"{}", "parts/tokens.txt": b"a b c"}
    return build_artifact(make_folder(tmp_path / "model", files), "tumour", "1.0.0", store).digest


def blob(store: Store, digest: str) -> Path:
    return store.path / "blobs" / "sha256" / digest.removeprefix("sha256:")


def layer_blob(store: Store, digest: str, name: str) -> Path:
    return blob(store, dict(store.manifest(digest).files)[PurePosixPath(name)].digest)


def put_by_hand(store: Store, digest: str, change: dict[str, Any], layer_change: dict[str, Any]) -> str:
    """A manifest nobody built: that of `digest` with other fields, and with another first layer."""
    document = json.loads(blob(store, digest).read_bytes())
    document["layers"][0] |= layer_change
    return store.put(canonical(document | change), "handmade", "1.0.0")[0]


def with_title(title: str) -> dict[str, Any]:
    return {"annotations": {TITLE: title}}


def test_an_unpacked_artifact_holds_the_files_that_were_packaged(store: Store, digest: str, tmp_path: Path) -> None:
    unpacked = store.unpack(digest, tmp_path / "unpacked")
    expected = tree(tmp_path / "model")
    del expected["package.yaml"]
    assert tree(unpacked) == expected


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
TREES = st.recursive(st.binary(max_size=300), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(NAMES.filter(lambda name: name != "package.yaml"), TREES, min_size=1, max_size=4))
def test_any_tree_of_files_comes_out_as_it_went_in(
    files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("tree")
    flat: dict[str, bytes] = {}

    def flatten(node: Any, path: str) -> None:
        if isinstance(node, bytes):
            flat[path] = node
        else:
            for name, child in node.items():
                flatten(child, f"{path}/{name}" if path else name)

    flatten(files, "")
    folder = make_folder(base / "model", flat | {"always": b"one"})
    store = Store(base / "store")
    built = build_artifact(folder, "tree", "1.0.0", store)
    assert tree(store.unpack(built.digest, base / "out")) == flat | {"always": b"one"}


def test_the_layout_is_one_that_oci_tools_read(store: Store, digest: str) -> None:
    assert json.loads((store.path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.path / "index.json").read_text())
    assert index["schemaVersion"] == 2
    (entry,) = index["manifests"]
    manifest = blob(store, digest).read_bytes()
    assert (entry["digest"], entry["size"]) == (digest, len(manifest))
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "tumour:1.0.0"
    assert json.loads(manifest)["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"


def test_a_version_resolves_to_its_digest(store: Store, digest: str) -> None:
    assert store.resolve("tumour", "1.0.0") == digest


def test_a_missing_version_names_the_store_what_it_has_and_the_remedy(store: Store, digest: str) -> None:
    with pytest.raises(NotInStore) as raised:
        store.resolve("tumour", "2.0.0")
    for part in (str(store.path), "tumour 2.0.0", "it has 1.0.0", "lepton package build"):
        assert part in str(raised.value)


def test_a_store_that_is_not_there_has_no_versions(tmp_path: Path) -> None:
    with pytest.raises(NotInStore, match="no version of tumour"):
        Store(tmp_path / "nowhere").resolve("tumour", "1.0.0")


def test_putting_the_same_bytes_again_changes_nothing(store: Store, digest: str, tmp_path: Path) -> None:
    before = tree(store.path)
    again = build_artifact(tmp_path / "model", "tumour", "1.0.0", store)
    assert (again.digest, again.created) == (digest, False)
    assert tree(store.path) == before


def test_a_version_with_other_bytes_is_refused_naming_both_digests(store: Store, digest: str, tmp_path: Path) -> None:
    (tmp_path / "model" / "model.bin").write_bytes(b"other")
    with pytest.raises(VersionExists) as raised:
        build_artifact(tmp_path / "model", "tumour", "1.0.0", store)
    assert raised.value.stored == digest
    assert raised.value.stored in str(raised.value)
    assert raised.value.offered in str(raised.value)
    assert raised.value.offered != digest
    assert store.resolve("tumour", "1.0.0") == digest


def _build_in_a_process(folder: Path, store: Path) -> str:
    try:
        return build_artifact(folder, "tumour", "1.0.0", Store(store)).digest
    except VersionExists:
        return "refused"


def test_of_builds_of_one_version_with_other_bytes_at_once_one_wins(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / f"model-{number}", {"w": bytes([number]) * 50_000}) for number in range(6)]
    with ProcessPoolExecutor(3) as pool:
        outcomes = list(pool.map(_build_in_a_process, folders, [tmp_path / "store"] * len(folders)))
    assert outcomes.count("refused") == len(folders) - 1
    (winner,) = [outcome for outcome in outcomes if outcome != "refused"]
    store = Store(tmp_path / "store")
    assert store.resolve("tumour", "1.0.0") == winner
    store.verify(winner)


def test_versions_built_at_once_are_all_kept(store: Store, digest: str, tmp_path: Path) -> None:
    versions = [f"2.0.{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        built = list(
            pool.map(lambda version: build_artifact(tmp_path / "model", "tumour", version, store).digest, versions)
        )
    assert [store.resolve("tumour", version) for version in versions] == built
    assert store.resolve("tumour", "1.0.0") == digest


def test_an_index_that_gives_one_version_as_another_is_found(store: Store, digest: str, tmp_path: Path) -> None:
    other = build_artifact(tmp_path / "model", "tumour", "1.1.0", store).digest
    index = (store.path / "index.json").read_text()
    (store.path / "index.json").write_text(index.replace(digest, other))
    with pytest.raises(StoreDamaged, match=r"as tumour 1\.0\.0, but that artifact is tumour 1\.1\.0"):
        store.resolve("tumour", "1.0.0")


def test_a_deleted_manifest_is_found_and_named(store: Store, digest: str) -> None:
    blob(store, digest).unlink()
    with pytest.raises(BlobMissing, match="manifest"):
        store.resolve("tumour", "1.0.0")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def extend(file: Path) -> None:
    with open(file, "ab") as opened:
        opened.write(b"x")


@pytest.mark.parametrize("harm", [flip, truncate, extend])
def test_a_harmed_file_is_found_and_named(store: Store, digest: str, tmp_path: Path, harm: Any) -> None:
    harmed = layer_blob(store, digest, "model.bin")
    harm(harmed)
    with pytest.raises(DigestMismatch, match=r"model\.bin") as raised:
        store.verify(digest)
    assert raised.value.expected == f"sha256:{harmed.name}"
    assert raised.value.found != raised.value.expected
    with pytest.raises(DigestMismatch, match=r"model\.bin"):
        store.unpack(digest, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("harm", [flip, truncate, extend])
@pytest.mark.parametrize("part", ["manifest", "config"])
def test_a_harmed_manifest_or_config_is_found_and_named(
    store: Store, digest: str, tmp_path: Path, harm: Any, part: str
) -> None:
    harm(blob(store, digest if part == "manifest" else store.manifest(digest).config.digest))
    for refuse in (store.verify, store.description, lambda digest: store.unpack(digest, tmp_path / "unpacked")):
        with pytest.raises(DigestMismatch, match=part):
            refuse(digest)
    assert not (tmp_path / "unpacked").exists()


def test_swapped_files_are_both_found(store: Store, digest: str, tmp_path: Path) -> None:
    one, other = layer_blob(store, digest, "model.bin"), layer_blob(store, digest, "settings.json")
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert [fault.what for fault in store.check(digest) if isinstance(fault, DigestMismatch)] == [
        "file 'model.bin'",
        "file 'settings.json'",
    ]


def test_a_deleted_file_is_found_and_named(store: Store, digest: str, tmp_path: Path) -> None:
    layer_blob(store, digest, "parts/tokens.txt").unlink()
    with pytest.raises(BlobMissing, match=r"parts/tokens\.txt"):
        store.verify(digest)
    with pytest.raises(BlobMissing, match=r"parts/tokens\.txt"):
        store.unpack(digest, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_a_file_of_a_declared_size_that_is_not_its_own_is_refused(store: Store, digest: str, tmp_path: Path) -> None:
    size = store.manifest(digest).layers[0].size
    handmade = put_by_hand(store, digest, {}, {"size": size - 1})
    with pytest.raises(DigestMismatch, match="declared"):
        store.unpack(handmade, tmp_path / "unpacked")


def test_a_blob_that_is_a_link_is_not_followed(store: Store, digest: str, tmp_path: Path) -> None:
    file = layer_blob(store, digest, "model.bin")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreDamaged, match=r"model\.bin"):
        store.verify(digest)


def test_building_the_same_files_again_mends_the_store(store: Store, digest: str, tmp_path: Path) -> None:
    flip(layer_blob(store, digest, "model.bin"))
    blob(store, digest).unlink()
    build_artifact(tmp_path / "model", "tumour", "1.0.0", store)
    store.verify(digest)


@pytest.mark.parametrize(
    "title", ["../escaped", "/escaped", "a/../../escaped", "..", ".", "", "a//b", "a/./b", "a/", "nul\0", "\ud800"]
)
def test_a_name_that_could_leave_the_folder_is_refused(store: Store, digest: str, tmp_path: Path, title: str) -> None:
    document = json.loads(blob(store, digest).read_bytes())
    document["layers"][0]["annotations"][TITLE] = title
    handmade, _ = store.put(json.dumps(document).encode(), "handmade", "1.0.0")
    with pytest.raises(StoreDamaged, match="file name"):
        store.unpack(handmade, tmp_path / "inner" / "unpacked")
    assert not list(tmp_path.rglob("escaped"))
    assert not (tmp_path / "inner" / "unpacked").exists()


def test_a_layer_without_a_name_is_refused(store: Store, digest: str, tmp_path: Path) -> None:
    handmade = put_by_hand(store, digest, {}, {"annotations": {}})
    with pytest.raises(StoreDamaged, match="no file name"):
        store.unpack(handmade, tmp_path / "unpacked")


@pytest.mark.parametrize(("title", "words"), [("settings.json", "there twice"), ("parts", "is a file, and the folder")])
def test_names_that_fall_on_each_other_are_refused(
    store: Store, digest: str, tmp_path: Path, title: str, words: str
) -> None:
    handmade = put_by_hand(store, digest, {}, with_title(title))
    with pytest.raises(StoreDamaged, match=words):
        store.unpack(handmade, tmp_path / "unpacked")


@pytest.mark.parametrize(
    "change", [{"artifactType": "application/x-other"}, {"layers": []}, {"config": None}, {"schemaVersion": 1}]
)
def test_a_manifest_that_is_not_a_models_is_refused(store: Store, digest: str, change: dict[str, Any]) -> None:
    document = json.loads(blob(store, digest).read_bytes()) | change
    handmade, _ = store.put(canonical(document), "handmade", "1.0.0")
    with pytest.raises(StoreDamaged, match="not that of a model"):
        store.verify(handmade)


def test_an_archive_layer_is_refused_rather_than_served_packed(store: Store, digest: str) -> None:
    handmade = put_by_hand(store, digest, {}, {"mediaType": "application/vnd.cncf.model.weight.v1.tar"})
    with pytest.raises(StoreDamaged, match="not a plain file"):
        store.manifest(handmade)


def test_a_config_without_our_description_is_refused(store: Store, digest: str) -> None:
    config = canonical({"descriptor": {}, "config": {}, "modelfs": {"type": "layers", "diffIds": []}})
    layers = json.loads(blob(store, digest).read_bytes())["layers"]
    handmade, _ = store.put(manifest_document(store.add_bytes(config), len(config), layers), "handmade", "1.0.0")
    with pytest.raises(StoreDamaged, match="lepton"):
        store.description(handmade)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"manifests": 3}', b'{"manifests": [3]}', b"[" * 100_000])
def test_an_index_that_is_not_one_is_an_error_that_names_it(store: Store, digest: str, content: bytes) -> None:
    (store.path / "index.json").write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"index\.json"):
        store.resolve("tumour", "1.0.0")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=JSON, field=st.sampled_from(["layers", "config", "artifactType", "mediaType", "annotations", None]))
def test_any_json_as_a_manifest_is_an_error_or_an_artifact(
    document: Any, field: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("any")
    store = Store(base / "store")
    built = build_artifact(make_folder(base / "model", {"w": b"1"}), "tumour", "1.0.0", store)
    manifest = json.loads(blob(store, built.digest).read_bytes())
    changed = document if field is None else manifest | {field: document}
    digest, _ = store.put(canonical(changed), "fuzz", "1.0.0")
    try:
        store.unpack(digest, base / "out")
    except PackagingError:
        assert not (base / "out").exists()
    else:
        assert tree(base / "out") == {"w": b"1"}


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../../etc/passwd", "md5:00", "sha256:" + "0" * 64])
def test_what_is_no_digest_of_the_store_is_refused(store: Store, digest: str) -> None:
    with pytest.raises(NotInStore):
        store.description(digest)


def test_unpacking_again_leaves_what_is_right_as_it_is(store: Store, digest: str, tmp_path: Path) -> None:
    before = store.unpack(digest, tmp_path / "unpacked").stat()
    layer_blob(store, digest, "model.bin").unlink()
    after = store.unpack(digest, tmp_path / "unpacked").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def change(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"Weights" * 1000)


def shorten(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights")


def remove(folder: Path) -> None:
    (folder / "model.bin").unlink()


def add(folder: Path) -> None:
    (folder / "parts" / "extra.py").touch()


def add_folder(folder: Path) -> None:
    (folder / "empty").mkdir()


def link(folder: Path) -> None:
    (folder / "model.bin").rename(folder.parent / "elsewhere")
    (folder / "model.bin").symlink_to(folder.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    (folder / "parts").rename(folder.parent / "elsewhere")
    (folder / "parts").symlink_to(folder.parent / "elsewhere")


def replace_by_file(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.write_text("a file")


def replace_by_link(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


HARMS = [change, shorten, remove, add, add_folder, link, link_folder, replace_by_file, replace_by_link]


@pytest.mark.parametrize("harm", HARMS)
def test_unpacking_again_puts_right_what_was_harmed(store: Store, digest: str, tmp_path: Path, harm: Any) -> None:
    folder = store.unpack(digest, tmp_path / "unpacked")
    expected = tree(folder)
    harm(folder)
    assert store.unpack(digest, folder) == folder
    assert tree(folder) == expected
    assert not any(path.is_symlink() for path in (folder, *folder.rglob("*")))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_harmed_folder_is_not_passed_off_where_the_store_is_harmed_too(
    store: Store, digest: str, tmp_path: Path
) -> None:
    change(store.unpack(digest, tmp_path / "unpacked"))
    damaged = layer_blob(store, digest, "model.bin")
    damaged.chmod(0o644)
    damaged.write_bytes(b"Weights" * 1000)
    with pytest.raises(DigestMismatch, match=r"model\.bin"):
        store.unpack(digest, tmp_path / "unpacked")
    assert not leftovers(tmp_path)


def test_what_a_killed_replacement_left_is_removed_by_the_next(store: Store, digest: str, tmp_path: Path) -> None:
    folder = store.unpack(digest, tmp_path / "unpacked")
    expected = tree(folder)
    folder.rename(tmp_path / ".unpacked.discarded")
    assert tree(store.unpack(digest, folder)) == expected
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_unpacking_at_once_makes_one_whole_folder(store: Store, digest: str, tmp_path: Path) -> None:
    start = threading.Barrier(6)

    def unpack(_: int) -> dict[str, bytes]:
        start.wait(10)
        return tree(store.unpack(digest, tmp_path / "unpacked"))

    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(unpack, range(6)))
    assert all(one == seen[0] for one in seen)
    assert set(seen[0]) == {"model.bin", "settings.json", "parts/tokens.txt"}
    assert not leftovers(tmp_path)


def test_what_a_killed_unpack_left_does_not_get_into_the_folder(store: Store, digest: str, tmp_path: Path) -> None:
    left = tmp_path / ".unpacked.partial" / "parts"
    left.mkdir(parents=True)
    (left / "stale").write_bytes(b"half")
    assert "parts/stale" not in tree(store.unpack(digest, tmp_path / "unpacked"))
    assert not leftovers(tmp_path)
