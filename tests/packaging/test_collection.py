"""Garbage collection: frees what deleted versions were made of, and nothing that anybody needs or may come to need."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.errors import BlobMissing, DigestMismatch, PackagingError
from model_packaging.manifest import INDEX_TYPE, canonical
from model_packaging.memory import Memory
from model_packaging.stores import open_store
from model_packaging.stores.collection import Collected
from model_packaging.stores.layout import Layout
from tests.deadline import until
from tests.packaging.model_folders import FILES, blob, build, layer_blob, leftovers, make_folder, tree, visible

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def two(store: Layout, folder: Path) -> list[str]:
    """Versions 1.0.0 and 1.1.0, which share all files but one."""
    first = build(folder, store, "1.0.0")
    (folder / "model.bin").write_bytes(b"other")
    return [first, build(folder, store, "1.1.0")]


def blobs(store: Layout) -> set[str]:
    return set(tree(store.path / "blobs"))


def test_nothing_of_the_versions_there_are_is_freed(store: Layout, two: list[str]) -> None:
    before = visible(store.path)
    assert store.collect() == Collected()
    assert visible(store.path) == before


def test_what_only_a_deleted_version_was_made_of_is_freed(store: Layout, two: list[str]) -> None:
    everything = blobs(store)
    config = Artifact.at(store, "tumour", two[0]).manifest.config.digest
    freed = {two[0], config, f"sha256:{layer_blob(store, two[0], 'model.bin').name}"}
    size = sum(blob(store, digest).stat().st_size for digest in freed)
    store.delete("tumour", "1.0.0")
    assert store.collect() == Collected(blobs=3, freed_bytes=size)
    assert everything - blobs(store) == {f"sha256/{digest.removeprefix('sha256:')}" for digest in freed}
    Artifact.find(store, "tumour", "1.1.0").verify()


def test_a_dry_run_says_what_would_be_freed_and_frees_nothing(store: Layout, two: list[str]) -> None:
    store.delete("tumour", "1.0.0")
    before = tree(store.path)
    would = store.collect(dry_run=True)
    assert tree(store.path) == before
    assert store.collect() == would
    assert would.blobs == 3


def test_a_deleted_version_can_be_built_again_after_a_collection(store: Layout, two: list[str], folder: Path) -> None:
    store.delete("tumour", "1.1.0")
    store.collect()
    assert build(folder, store, "1.1.0") == two[1]
    Artifact.find(store, "tumour", "1.1.0").verify()


def test_a_store_that_is_not_there_has_nothing_to_free_and_is_not_made(tmp_path: Path) -> None:
    assert Layout(tmp_path / "nowhere").collect() == Collected()
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    for name in ("blobs/sha256/" + "0" * 64, ".uploads/mine", "thesis.tex"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    before = tree(tmp_path)
    assert Layout(tmp_path).collect() == Collected()
    assert tree(tmp_path) == before


def test_the_blobs_of_a_registry_are_left_to_its_operator() -> None:
    freed = open_store("oci://localhost:1/models").collect()
    assert (freed.blobs, freed.freed_bytes) == (0, 0)
    assert freed.note is not None
    assert "oci://localhost:1/models is a registry" in freed.note


# What is attached, and what others keep there


def manifest_of(store: Layout, content: bytes) -> bytes:
    layer = store.add_blob("tumour", io.BytesIO(content), len(content))
    config = store.add_blob("tumour", io.BytesIO(b"null"), 4)
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 4},
            "layers": [{"mediaType": "application/x-test", "digest": layer, "size": len(content)}],
        }
    )


def test_what_is_attached_to_a_version_stays_with_it_and_goes_with_it(store: Layout, two: list[str]) -> None:
    signature = manifest_of(store, b"signature")
    store.attach("tumour", two[0], "sig", signature, None)
    store.collect()
    assert store.attachment("tumour", two[0], "sig") == signature
    assert store.has_blob("tumour", json.loads(signature)["layers"][0]["digest"])
    store.delete("tumour", "1.0.0")
    # Beside the three of the version: manifest, config and layer of the attachment.
    assert store.collect().blobs == 6


def test_an_attachment_that_was_replaced_is_freed(store: Layout, two: list[str]) -> None:
    first, second = manifest_of(store, b"first"), manifest_of(store, b"second")
    store.attach("tumour", two[0], "sig", first, None)
    store.attach("tumour", two[0], "sig", second, first)
    assert store.collect().blobs == 2
    assert store.attachment("tumour", two[0], "sig") == second


def test_images_that_others_keep_in_the_layout_stay_whole(store: Layout, two: list[str]) -> None:
    image = manifest_of(store, b"an image for one platform")
    inner = store.add_blob("tumour", io.BytesIO(image), len(image))
    index = canonical(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [
                {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": inner, "size": len(image)}
            ],
        }
    )
    outer = store.add_blob("tumour", io.BytesIO(index), len(index))
    document = json.loads((store.path / "index.json").read_text())
    document["manifests"].append({"mediaType": INDEX_TYPE, "digest": outer, "size": len(index)})
    (store.path / "index.json").write_bytes(canonical(document))
    before = blobs(store)
    assert store.collect().blobs == 0
    assert blobs(store) == before


def flip(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"sha256:", b"sha257:"))


@pytest.mark.parametrize(("harm", "error"), [(Path.unlink, BlobMissing), (flip, DigestMismatch)])
def test_nothing_is_freed_while_a_manifest_cannot_be_read(
    store: Layout, two: list[str], harm: Callable[[Path], None], error: type[PackagingError]
) -> None:
    store.delete("tumour", "1.0.0")
    harm(blob(store, two[1]))
    before = tree(store.path)
    with pytest.raises(error):
        store.collect()
    assert tree(store.path) == before
    store.delete("tumour", "1.1.0")
    store.collect()
    assert blobs(store) == set()


def test_a_store_that_lost_its_index_does_not_lose_its_blobs_too(store: Layout, two: list[str]) -> None:
    (store.path / "index.json").unlink()
    before = visible(store.path)
    freed = store.collect()
    assert freed.note is not None
    assert "no index.json" in freed.note
    assert visible(store.path) == before


def test_files_that_are_no_blobs_are_left_alone(store: Layout, two: list[str]) -> None:
    place = store.path / "blobs" / "sha256"
    (place / "notes.txt").touch()
    (place / ("0" * 64)).symlink_to("notes.txt")
    assert store.collect().blobs == 0
    assert (place / "notes.txt").exists()


# Beside those who write


def _write(path: Path, folder: Path, memory: Path, stop_at: int, end: Connection) -> None:
    """Builds 1.2.0, and waits on the way when so many bytes are done."""
    reached: list[int] = []

    def wait(done: int, _: int) -> None:
        if done >= stop_at and not reached:
            reached.append(done)
            end.send("reached")
            end.recv()

    known = Memory(memory, now_ns=lambda: 2**62)
    build_artifact(folder, "tumour", "1.2.0", Layout(path), progress=wait, memory=known)


@contextmanager
def builder_on_the_way(store: Layout, folder: Path, tmp_path: Path, stop_at: int) -> Iterator[BaseProcess]:
    """Another process that builds and has come so far; it goes on after the block, unless it was killed."""
    own, other = FORK.Pipe()
    arguments = (store.path, folder, tmp_path / "digests.sqlite", stop_at, other)
    process = FORK.Process(target=_write, args=arguments)
    process.start()
    other.close()
    try:
        assert own.poll(30)
        assert own.recv() == "reached"
        yield process
        if process.is_alive():
            own.send("go on")
            process.join(30)
            assert process.exitcode == 0
    finally:
        own.close()
        process.kill()
        process.join()
        process.close()


def test_what_a_build_has_added_stays_until_it_puts_its_manifest(
    store: Layout, two: list[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "new.bin").write_bytes(b"new" * 1000)
    size = sum(len(content) for name, content in tree(folder).items() if name != "package.yaml")
    with builder_on_the_way(store, folder, tmp_path, stop_at=size):
        # Its other threads still write what they have read.
        until(lambda: store.collect().kept, what="a blob of the build")
    Artifact.find(store, "tumour", "1.2.0").verify()
    # Its lease has ended.
    store.delete("tumour", "1.2.0")
    assert store.collect().kept == 0


def test_what_a_build_found_in_the_store_stays_though_its_version_is_deleted(
    store: Layout, two: list[str], folder: Path, tmp_path: Path
) -> None:
    make_folder(folder, FILES)
    known = Memory(tmp_path / "digests.sqlite", now_ns=lambda: 2**62)
    build_artifact(folder, "tumour", "1.0.0", store, memory=known)
    # All files are known: the build goes by what is there.
    with builder_on_the_way(store, folder, tmp_path, stop_at=1):
        for version in ("1.0.0", "1.1.0"):
            store.delete("tumour", version)
        store.collect()
    Artifact.find(store, "tumour", "1.2.0").verify()


def test_what_no_build_can_count_on_is_freed_beside_one(
    store: Layout, two: list[str], folder: Path, tmp_path: Path
) -> None:
    with builder_on_the_way(store, folder, tmp_path, stop_at=1):
        store.delete("tumour", "1.0.0")
        assert store.collect().blobs >= 2
    Artifact.find(store, "tumour", "1.2.0").verify()


def test_a_killed_build_holds_nothing_and_what_it_left_is_removed(
    store: Layout, two: list[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "new.bin").write_bytes(os.urandom(100_000))
    with builder_on_the_way(store, folder, tmp_path, stop_at=90_000) as builder:
        assert leftovers(store.path)
        builder.kill()
        builder.join()
        freed = store.collect()
        assert freed.uploads >= 1
        assert freed.kept == 0
    assert not leftovers(store.path)
    assert {entry.version for entry in store.entries()} == {"1.0.0", "1.1.0"}


def test_an_upload_of_a_living_process_is_left_alone(
    store: Layout, two: list[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "new.bin").write_bytes(os.urandom(100_000))
    with builder_on_the_way(store, folder, tmp_path, stop_at=90_000):
        # A file that another thread has made and not yet locked goes, empty, and is made again.
        assert store.collect().freed_bytes == 0
    Artifact.find(store, "tumour", "1.2.0").verify()


def test_a_manifest_is_not_put_once_its_blobs_were_collected(store: Layout, two: list[str]) -> None:
    """Who adds blobs without a lease is told, and no version comes to be that is not whole."""
    content = b"nobody needs it yet"
    added = store.add_blob("tumour", io.BytesIO(content), len(content))
    document = json.loads(blob(store, two[0]).read_bytes())
    document["layers"][0] |= {"digest": added, "size": len(content)}
    assert store.collect().blobs == 1
    with pytest.raises(BlobMissing):
        store.put("tumour", "3.0.0", canonical(document))
