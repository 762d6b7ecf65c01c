"""Reading an artifact: each harmed, missing, swapped or foreign byte is found and named, and none is unpacked."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.digests import digest_of
from model_packaging.errors import (
    BlobMissing,
    DigestMismatch,
    NotInStore,
    PackagingError,
    PickleRefused,
    SourceRefused,
    StoreDamaged,
)
from model_packaging.manifest import CONTENT_SIZE, FILE, OFFSET, SIZE, TITLE, canonical, manifest_document
from model_packaging.stores.layout import Layout
from tests.packaging.model_folders import (
    FILES,
    blob,
    build,
    layer_blob,
    leftovers,
    make_folder,
    plant,
    plant_changed,
    tree,
)


@pytest.fixture
def digest(store: Layout, tmp_path: Path) -> str:
    # In parts: model.bin has seven.
    return build(make_folder(tmp_path / "model", FILES), store, part_bytes=1_000)


def read(store: Layout, digest: str) -> Artifact:
    return Artifact.at(store, "tumour", digest)


def with_title(title: str) -> dict[str, Any]:
    return {"annotations": {TITLE: title}}


# What comes out


def test_an_unpacked_artifact_holds_the_files_that_were_packaged(store: Layout, digest: str, tmp_path: Path) -> None:
    assert tree(read(store, digest).unpack(tmp_path / "unpacked")) == FILES


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
TREES = st.recursive(st.binary(max_size=300), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=8)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(NAMES.filter(lambda name: name != "package.yaml"), TREES, min_size=1, max_size=4),
    part_bytes=st.integers(1, 400),
    compression=st.sampled_from(["none", "zstd"]),
)
def test_any_tree_of_files_comes_out_as_it_went_in(
    files: dict[str, Any], part_bytes: int, compression: Any, tmp_path_factory: pytest.TempPathFactory
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
    folder = make_folder(base / "model", flat | {"always": b"one" * 100})
    store = Layout(base / "store")
    try:
        build(folder, store, part_bytes=max(part_bytes, 20), compression=compression)
    except (PickleRefused, SourceRefused):
        # Bytes that happen to be such a file are not what this is about.
        reject()
    artifact = Artifact.find(store, "tumour", "1.0.0")
    assert tree(artifact.unpack(base / "out")) == flat | {"always": b"one" * 100}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_progress_of_reading_ends_with_every_byte(store: Layout, tmp_path: Path, compression: Any) -> None:
    folder = make_folder(tmp_path / "model", FILES)
    build(folder, store, part_bytes=1_000, compression=compression)
    artifact = Artifact.find(store, "tumour", "1.0.0")
    size = sum(map(len, FILES.values()))
    for work in (artifact.verify, lambda progress: artifact.unpack(tmp_path / "out", progress)):
        told: list[tuple[int, int]] = []
        work(lambda done, total, told=told: told.append((done, total)))
        assert told[-1] == (size, size)


@pytest.mark.parametrize("given", ["", "sha256:", "sha256:../../../etc/passwd", "md5:00", "sha256:" + "0" * 64])
def test_what_is_no_digest_of_the_store_is_refused(store: Layout, digest: str, given: str) -> None:
    with pytest.raises(NotInStore):
        read(store, given)


# Harm


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def extend(file: Path) -> None:
    with open(file, "ab") as opened:
        opened.write(b"x")


HARMS = [flip, truncate, extend]


def test_an_index_that_gives_one_version_as_another_is_found(store: Layout, digest: str, tmp_path: Path) -> None:
    other = build(tmp_path / "model", store, "1.1.0")
    index = (store.path / "index.json").read_text()
    (store.path / "index.json").write_text(index.replace(digest, other))
    with pytest.raises(StoreDamaged, match=r"as tumour 1\.0\.0, but that artifact is tumour 1\.1\.0"):
        Artifact.find(store, "tumour", "1.0.0")


def test_a_deleted_manifest_is_found_and_named(store: Layout, digest: str) -> None:
    blob(store, digest).unlink()
    with pytest.raises(BlobMissing, match="manifest"):
        Artifact.find(store, "tumour", "1.0.0")


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_file_is_found_and_named(
    store: Layout, tmp_path: Path, harm: Callable[[Path], None], compression: Any
) -> None:
    digest = build(make_folder(tmp_path / "model", FILES), store, compression=compression)
    harmed = layer_blob(store, digest, "model.bin")
    harm(harmed)
    with pytest.raises(DigestMismatch, match=r"model\.bin") as raised:
        read(store, digest).verify()
    assert raised.value.expected == f"sha256:{harmed.name}"
    assert raised.value.found != raised.value.expected
    with pytest.raises(DigestMismatch, match=r"model\.bin"):
        read(store, digest).unpack(tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("part", ["manifest", "config"])
def test_a_harmed_manifest_or_config_is_found_and_named(
    store: Layout, digest: str, harm: Callable[[Path], None], part: str
) -> None:
    harm(blob(store, digest if part == "manifest" else read(store, digest).manifest.config.digest))
    with pytest.raises(DigestMismatch, match=part):
        read(store, digest)


def test_swapped_files_are_both_found(store: Layout, digest: str, tmp_path: Path) -> None:
    one, other = layer_blob(store, digest, "parts/tokens.txt"), layer_blob(store, digest, "settings.json")
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert [fault.what for fault in read(store, digest).check() if isinstance(fault, DigestMismatch)] == [
        "file 'parts/tokens.txt'",
        "file 'settings.json'",
    ]


def test_parts_in_another_order_are_found(store: Layout, digest: str) -> None:
    document = json.loads(blob(store, digest).read_bytes())
    document["layers"][0], document["layers"][1] = document["layers"][1], document["layers"][0]
    with pytest.raises(StoreDamaged, match=r"the config says|a part starts at"):
        read(store, plant(store, canonical(document)))


def test_a_missing_part_is_named_with_its_place_in_the_file(store: Layout, digest: str) -> None:
    parts = next(parts for path, parts in read(store, digest).files.items() if path.name == "model.bin")
    assert len(parts) == 7
    blob(store, parts[3].digest).unlink()
    (missing,) = read(store, digest).check()
    assert "file 'model.bin' from byte 3000 is missing" in str(missing)


def test_a_deleted_file_is_found_and_named(store: Layout, digest: str, tmp_path: Path) -> None:
    layer_blob(store, digest, "parts/tokens.txt").unlink()
    with pytest.raises(BlobMissing, match=r"parts/tokens\.txt"):
        read(store, digest).verify()
    with pytest.raises(BlobMissing, match=r"parts/tokens\.txt"):
        read(store, digest).unpack(tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_a_blob_that_is_a_link_is_not_followed(store: Layout, digest: str, tmp_path: Path) -> None:
    file = layer_blob(store, digest, "model.bin")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreDamaged, match=r"model\.bin"):
        read(store, digest).verify()


def test_building_the_same_files_again_mends_the_store(store: Layout, digest: str, tmp_path: Path) -> None:
    flip(layer_blob(store, digest, "model.bin"))
    blob(store, digest).unlink()
    build(tmp_path / "model", store, part_bytes=1_000)
    read(store, digest).verify()


# Documents that nobody here wrote


def test_a_layer_of_a_declared_size_that_is_not_its_own_is_refused(store: Layout, tmp_path: Path) -> None:
    digest = build(make_folder(tmp_path / "model", FILES), store)
    size = read(store, digest).manifest.layers[0].size
    planted = plant_changed(store, digest, {}, {"size": size - 1})
    with pytest.raises(DigestMismatch, match="declared"):
        read(store, planted).unpack(tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize(
    "title",
    ["../escaped", "/escaped", "a/../../escaped", "..", ".", "", "a//b", "a/./b", "a/", "nul\0", "\ud800", "d/" * 200],
)
def test_a_name_that_could_leave_the_folder_is_refused(store: Layout, digest: str, title: str) -> None:
    document = json.loads(blob(store, digest).read_bytes())
    for annotation in (TITLE, FILE):
        document["layers"][0]["annotations"][annotation] = title
        planted = plant(store, json.dumps(document).encode())
        with pytest.raises(StoreDamaged, match="file name"):
            read(store, planted)


def test_a_layer_without_a_name_is_refused(store: Layout, digest: str) -> None:
    planted = plant_changed(store, digest, {}, {"annotations": {}})
    with pytest.raises(StoreDamaged, match="no file name"):
        read(store, planted)


@pytest.mark.parametrize(("title", "words"), [("settings.json", "there twice"), ("parts", "is a file, and the folder")])
def test_names_that_fall_on_each_other_are_refused(store: Layout, tmp_path: Path, title: str, words: str) -> None:
    digest = build(make_folder(tmp_path / "model", FILES), store)
    planted = plant_changed(store, digest, {}, with_title(title))
    with pytest.raises(StoreDamaged, match=words):
        read(store, planted)


@pytest.mark.parametrize(
    "change",
    [
        {OFFSET: "1"},
        {OFFSET: "x"},
        {OFFSET: "-1"},
        {SIZE: "6999"},
        {SIZE: "9" * 19},
        {SIZE: "7\u0660\u0660\u0660"},
        {FILE: "b"},
    ],
)
def test_parts_that_make_no_whole_file_are_refused(store: Layout, digest: str, change: dict[str, str]) -> None:
    document = json.loads(blob(store, digest).read_bytes())
    document["layers"][0]["annotations"] |= change
    with pytest.raises(StoreDamaged, match=r"a part starts at|its parts end at|a number of bytes"):
        read(store, plant(store, canonical(document)))


@pytest.mark.parametrize(
    "change", [{"artifactType": "application/x-other"}, {"layers": []}, {"config": None}, {"schemaVersion": 1}]
)
def test_a_manifest_that_is_not_a_models_is_refused(store: Layout, digest: str, change: dict[str, Any]) -> None:
    document = json.loads(blob(store, digest).read_bytes()) | change
    with pytest.raises(StoreDamaged, match="not that of a model"):
        read(store, plant(store, canonical(document)))


def test_an_archive_layer_is_refused_rather_than_served_packed(store: Layout, digest: str) -> None:
    planted = plant_changed(store, digest, {}, {"mediaType": "application/vnd.cncf.model.weight.v1.tar"})
    with pytest.raises(StoreDamaged, match="not a plain file"):
        read(store, planted)


def test_a_config_without_our_description_is_refused(store: Layout, digest: str) -> None:
    config = canonical({"descriptor": {}, "config": {}, "modelfs": {"type": "layers", "diffIds": []}})
    layers = json.loads(blob(store, digest).read_bytes())["layers"]
    added = store.add_blob("tumour", io.BytesIO(config), len(config))
    with pytest.raises(StoreDamaged, match="lepton"):
        read(store, plant(store, manifest_document(added, len(config), layers)))


def test_a_config_of_any_size_is_not_read_into_memory(store: Layout, digest: str) -> None:
    document = json.loads(blob(store, digest).read_bytes())
    document["config"]["size"] = 10**12
    with pytest.raises(StoreDamaged, match="more than any has"):
        read(store, plant(store, canonical(document)))


# Compressed layers


def packed_layer(store: Layout, tmp_path: Path, layer: bytes, content: bytes, **annotations: str) -> Artifact:
    """An artifact whose one layer is `layer`, said to hold `content`."""
    digest = build(make_folder(tmp_path / "packed", {"w": b"-"}), store, "1.0.0")
    document = json.loads(blob(store, digest).read_bytes())
    config = json.loads(blob(store, document["config"]["digest"]).read_bytes())
    config["modelfs"]["diffIds"] = [digest_of(content)]
    added = store.add_blob("tumour", io.BytesIO(canonical(config)), len(canonical(config)))
    document["config"] |= {"digest": added, "size": len(canonical(config))}
    document["layers"][0] |= {
        "mediaType": "application/vnd.cncf.model.weight.v1.raw+zstd",
        "digest": store.add_blob("tumour", io.BytesIO(layer), len(layer)),
        "size": len(layer),
        "annotations": {TITLE: "w", CONTENT_SIZE: str(len(content)), **annotations},
    }
    return read(store, plant(store, canonical(document)))


CONTENT = b"weights" * 10_000
FRAME = zstandard.ZstdCompressor().compress(CONTENT)


def test_a_layer_of_several_frames_is_read_as_one(store: Layout, tmp_path: Path) -> None:
    artifact = packed_layer(store, tmp_path, FRAME + FRAME, CONTENT * 2)
    assert (artifact.unpack(tmp_path / "out") / "w").read_bytes() == CONTENT * 2


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (FRAME + b"and more", "is not zstd"),
        (FRAME + FRAME, "bytes unpacked of 70000 declared"),
        (FRAME[:-1], "bytes unpacked of 70000 declared"),
        (b"", "0 bytes unpacked"),
        (b"no frame", "is not zstd"),
        (zstandard.ZstdCompressor().compress(CONTENT[:-1] + b"!"), "does not match its digest"),
    ],
    ids=["garbage after", "frame after", "truncated", "empty", "none", "other bytes"],
)
def test_a_compressed_layer_that_holds_something_else_is_found_and_named(
    store: Layout, tmp_path: Path, layer: bytes, words: str
) -> None:
    artifact = packed_layer(store, tmp_path, layer, CONTENT)
    with pytest.raises(PackagingError, match=words) as raised:
        artifact.unpack(tmp_path / "out")
    assert "file 'w'" in str(raised.value)
    assert not (tmp_path / "out").exists()


class _Counter:
    size = 0

    def write(self, content: memoryview) -> None:
        self.size += len(content)


def test_a_decompression_bomb_is_cut_off_at_the_declared_size(store: Layout, tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(256 << 20))
    assert len(bomb) < 20_000
    artifact, target = packed_layer(store, tmp_path, bomb, CONTENT), _Counter()
    with pytest.raises(DigestMismatch, match="70001 bytes unpacked of 70000 declared"):
        artifact.write(artifact.parts[0], target)
    assert target.size == len(CONTENT) + 1


def test_a_layer_that_asks_for_much_memory_is_refused(store: Layout, tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    layer = frame.compress(CONTENT) + frame.flush()
    with pytest.raises(StoreDamaged, match="is not zstd"):
        packed_layer(store, tmp_path, layer, CONTENT).verify()


# Any document

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
LAYER_CHANGES = st.dictionaries(
    st.sampled_from(["mediaType", "digest", "size", "annotations"]),
    JSON
    | st.integers(0, 2**70)
    | st.dictionaries(st.sampled_from([TITLE, FILE, OFFSET, SIZE, CONTENT_SIZE]), JSON | st.text("0123456789./a")),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, bytes]:
    base = tmp_path_factory.mktemp("small")
    store = Layout(base / "store")
    built = build_artifact(make_folder(base / "model", {"w": b"12345"}), "tumour", "1.0.0", store, part_bytes=2)
    return store, blob(store, built.digest).read_bytes()


@settings(max_examples=150)
@given(
    value=JSON,
    field=st.sampled_from(["layers", "config", "artifactType", "mediaType", "annotations", None]),
    layer=LAYER_CHANGES,
)
def test_any_manifest_is_an_error_or_an_artifact(
    value: Any,
    field: str | None,
    layer: dict[str, Any],
    small: tuple[Layout, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store, manifest = small
    document = json.loads(manifest)
    document["layers"][0] |= layer
    changed = value if field is None else document | ({} if value is None else {field: value})
    out = tmp_path_factory.mktemp("any") / "out"
    try:
        read(store, plant(store, canonical(changed))).unpack(out)
    except PackagingError:
        assert not out.exists()
    else:
        assert list(tree(out).values()) == [b"12345"]


@settings(max_examples=100)
@given(content=st.binary(max_size=60) | JSON.map(canonical), key=st.sampled_from(["lepton", "modelfs", None]))
def test_any_config_is_an_error_or_an_artifact(content: bytes, key: str | None, small: tuple[Layout, bytes]) -> None:
    store, manifest = small
    document = json.loads(manifest)
    if key is not None:
        config = json.loads(blob(store, document["config"]["digest"]).read_bytes())
        try:
            content = canonical(config | {key: json.loads(content)})
        except ValueError:
            return
    added = store.add_blob("tumour", io.BytesIO(content), len(content))
    document["config"] |= {"digest": added, "size": len(content)}
    with pytest.raises(StoreDamaged):
        read(store, plant(store, canonical(document)))


# Unpacking again


def test_unpacking_again_leaves_what_is_right_as_it_is(store: Layout, digest: str, tmp_path: Path) -> None:
    before = read(store, digest).unpack(tmp_path / "unpacked").stat()
    layer_blob(store, digest, "model.bin").unlink()
    after = read(store, digest).unpack(tmp_path / "unpacked").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def change(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"Weights" * 1000)


def change_the_end(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights" * 999 + b"weighty")


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


@pytest.mark.parametrize(
    "harm",
    [
        change,
        change_the_end,
        shorten,
        remove,
        add,
        add_folder,
        link,
        link_folder,
        replace_by_file,
        replace_by_link,
    ],
)
def test_unpacking_again_puts_right_what_was_harmed(
    store: Layout, digest: str, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder = read(store, digest).unpack(tmp_path / "unpacked")
    harm(folder)
    assert read(store, digest).unpack(folder) == folder
    assert tree(folder) == FILES
    assert not any(path.is_symlink() for path in (folder, *folder.rglob("*")))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_harmed_folder_is_not_passed_off_where_the_store_is_harmed_too(
    store: Layout, digest: str, tmp_path: Path
) -> None:
    change(read(store, digest).unpack(tmp_path / "unpacked"))
    layer_blob(store, digest, "model.bin").write_bytes(b"Weights" * 1000)
    with pytest.raises(DigestMismatch, match=r"model\.bin"):
        read(store, digest).unpack(tmp_path / "unpacked")
    assert not leftovers(tmp_path)


def test_what_a_killed_replacement_left_is_removed_by_the_next(store: Layout, digest: str, tmp_path: Path) -> None:
    folder = read(store, digest).unpack(tmp_path / "unpacked")
    folder.rename(tmp_path / ".unpacked.discarded")
    assert tree(read(store, digest).unpack(folder)) == FILES
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_unpacking_at_once_makes_one_whole_folder(store: Layout, digest: str, tmp_path: Path) -> None:
    start = threading.Barrier(6)

    def unpack(_: int) -> dict[str, bytes]:
        start.wait(10)
        return tree(read(store, digest).unpack(tmp_path / "unpacked"))

    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(unpack, range(6)))
    assert all(one == FILES for one in seen)
    assert not leftovers(tmp_path)


def test_what_a_killed_unpack_left_does_not_get_into_the_folder(store: Layout, digest: str, tmp_path: Path) -> None:
    left = tmp_path / ".unpacked.partial" / "parts"
    left.mkdir(parents=True)
    (left / "stale").write_bytes(b"half")
    assert "parts/stale" not in tree(read(store, digest).unpack(tmp_path / "unpacked"))
    assert not leftovers(tmp_path)
