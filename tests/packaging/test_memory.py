"""What was read before is not read again, and what changed since is never taken for it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from model_packaging.artifact import Artifact
from model_packaging.build import Built, build_artifact
from model_packaging.errors import FolderRefused
from model_packaging.memory import Layer, Memory, Stamp
from model_packaging.stores.layout import Layout
from tests.packaging.model_folders import FILES, layer_blob

SIZE = sum(map(len, FILES.values()))
LATER_NS = 10**10


def later() -> int:
    """Ten seconds from now: what was written just now is settled then."""
    return time.time_ns() + LATER_NS


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "cache" / "digests.sqlite", now_ns=later)


def read(folder: Path, store: Layout, memory: Memory, version: str = "1.0.0") -> Built:
    return build_artifact(folder, "tumour", version, store, memory=memory, part_bytes=1_000)


def test_files_that_nobody_touched_are_not_read_again(folder: Path, store: Layout, memory: Memory) -> None:
    first = read(folder, store, memory)
    again = read(folder, store, memory)
    assert (first.read_bytes, again.read_bytes) == (SIZE, 0)
    assert again.digest == first.digest


def test_the_next_version_costs_the_file_that_changed(folder: Path, store: Layout, memory: Memory) -> None:
    read(folder, store, memory)
    (folder / "settings.json").write_bytes(b"[1]")
    assert read(folder, store, memory, "1.1.0").read_bytes == 3
    Artifact.find(store, "tumour", "1.1.0").verify()


def test_what_is_remembered_counts_for_another_store_only_once_it_has_it(
    folder: Path, store: Layout, memory: Memory, tmp_path: Path
) -> None:
    read(folder, store, memory)
    other = Layout(tmp_path / "other")
    assert read(folder, other, memory).read_bytes == SIZE
    Artifact.find(other, "tumour", "1.0.0").verify()


def test_a_file_whose_layer_the_store_lost_is_read_again(folder: Path, store: Layout, memory: Memory) -> None:
    digest = read(folder, store, memory).digest
    layer_blob(store, digest, "settings.json").unlink()
    assert read(folder, store, memory).read_bytes == len(FILES["settings.json"])
    Artifact.find(store, "tumour", "1.0.0").verify()


def rewrite_and_put_the_time_back(file: Path) -> None:
    before = file.stat()
    file.write_bytes(b"Weights" * 1000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_one_of_the_same_time(file: Path) -> None:
    before = file.stat()
    (file.parent / "new").write_bytes(b"Weights" * 1000)
    os.utime(file.parent / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (file.parent / "new").rename(file)


@pytest.mark.parametrize("change", [rewrite_and_put_the_time_back, replace_by_one_of_the_same_time])
def test_a_change_of_the_same_size_that_hides_its_time_is_seen(
    folder: Path, store: Layout, memory: Memory, change: Callable[[Path], None]
) -> None:
    read(folder, store, memory)
    change(folder / "model.bin")
    assert read(folder, store, memory, "1.1.0").read_bytes == 7_000


def test_a_file_that_changed_just_before_is_not_remembered(folder: Path, store: Layout, tmp_path: Path) -> None:
    memory = Memory(tmp_path / "digests.sqlite")
    read(folder, store, memory)
    assert read(folder, store, memory).read_bytes == SIZE


def test_what_was_made_into_other_layers_is_no_answer(folder: Path, store: Layout, memory: Memory) -> None:
    read(folder, store, memory)
    again = build_artifact(folder, "tumour", "1.1.0", store, memory=memory, part_bytes=2_000)
    packed = build_artifact(folder, "tumour", "1.2.0", store, memory=memory, part_bytes=1_000, compression="zstd")
    assert again.read_bytes == packed.read_bytes == SIZE


def test_compressed_files_are_remembered_too(folder: Path, store: Layout, memory: Memory) -> None:
    first = build_artifact(folder, "tumour", "1.0.0", store, memory=memory, compression="zstd")
    again = build_artifact(folder, "tumour", "1.0.0", store, memory=memory, compression="zstd")
    assert (again.read_bytes, again.digest) == (0, first.digest)


def test_what_a_failed_build_read_need_not_be_read_again(folder: Path, store: Layout, memory: Memory) -> None:
    def meddle(done: int, total: int) -> None:
        if done == total:
            (folder / "settings.json").write_bytes(b"[]")

    with pytest.raises(FolderRefused):
        build_artifact(folder, "tumour", "1.0.0", store, memory=memory, part_bytes=1_000, progress=meddle)
    assert read(folder, store, memory).read_bytes <= SIZE - 7_000


def test_a_build_without_a_memory_reads_everything(folder: Path, store: Layout, memory: Memory) -> None:
    read(folder, store, memory)
    assert build_artifact(folder, "tumour", "1.0.0", store, part_bytes=1_000).read_bytes == SIZE


# Its file


def corrupt_everywhere(file: Path) -> None:
    file.write_bytes(b"no database" * 1000)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def be_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def be_of_another_program(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table files (name text)")


@pytest.mark.parametrize("harm", [corrupt_everywhere, cut, empty, be_a_folder, be_of_another_program])
def test_a_memory_that_cannot_be_read_is_none(
    folder: Path, store: Layout, memory: Memory, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    digest = read(folder, store, memory).digest
    harm(tmp_path / "cache" / "digests.sqlite")
    again = read(folder, store, memory)
    assert (again.read_bytes, again.digest) == (SIZE, digest)


def test_a_memory_that_was_no_database_is_one_again(
    folder: Path, store: Layout, memory: Memory, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    corrupt_everywhere(tmp_path / "cache" / "digests.sqlite")
    read(folder, store, memory)
    read(folder, store, memory)
    assert read(folder, store, memory).read_bytes == 0


def test_a_digest_that_a_failing_disk_changed_is_not_believed(
    folder: Path, store: Layout, memory: Memory, tmp_path: Path
) -> None:
    read(folder, store, memory)
    file = tmp_path / "cache" / "digests.sqlite"
    with closing(sqlite3.connect(file)) as database, database:
        rows = database.execute("select inode, layers from files").fetchall()
        # Each gets the layers of the next: digests that the store has, of another file.
        for (inode, _), (_, layers) in zip(rows, [*rows[1:], rows[0]], strict=True):
            database.execute("update files set layers = ? where inode = ?", (layers, inode))
    assert read(folder, store, memory).read_bytes == SIZE
    Artifact.find(store, "tumour", "1.0.0").verify()


def test_two_builds_at_once_both_remember(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "digests.sqlite", now_ns=later)
    stamps = [Stamp(1, 2**64 - number, 3, 4, 5) for number in range(1, 41)]
    layers = (Layer("sha256:" + "0" * 64, 3, "sha256:" + "0" * 64),)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda stamp: memory.remember({stamp: layers}, "none 1"), stamps))
    assert memory.recall(stamps, "none 1") == dict.fromkeys(stamps, layers)


def test_what_is_old_is_forgotten(tmp_path: Path) -> None:
    moment = [0]
    memory = Memory(tmp_path / "digests.sqlite", now_ns=lambda: moment[0])
    old, new = Stamp(1, 1, 3, 4, 5), Stamp(1, 2, 3, 4, 5)
    memory.remember({old: ()}, "none 1")
    moment[0] = 91 * 86400 * 10**9
    memory.remember({new: ()}, "none 1")
    assert memory.recall([old, new], "none 1") == {new: ()}


def test_the_users_memory_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Memory.of_user().remember({}, "none 1")
    assert list((tmp_path / "lepton").iterdir()) == [tmp_path / "lepton" / "digests.sqlite"]


def test_a_user_without_a_place_for_caches_has_no_memory_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memory = Memory(tmp_path / "file" / "digests.sqlite")
    memory.remember({Stamp(1, 2, 3, 4, 5): ()}, "none 1")
    assert memory.recall([Stamp(1, 2, 3, 4, 5)], "none 1") == {}
