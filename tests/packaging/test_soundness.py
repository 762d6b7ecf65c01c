"""A store is sound whatever happens to those who write: killed at any moment, out of room, or all at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.digests import digest_of
from model_packaging.errors import DiskFull, PackagingError
from model_packaging.layers import Compression
from model_packaging.memory import Memory
from model_packaging.stores.layout import Layout
from tests.packaging.model_folders import build, leftovers, make_folder, tree, visible

FORK = multiprocessing.get_context("fork")
KILLS = 50


def assert_sound(store: Layout) -> int:
    """Every version is whole, every visible file is what its name says. Returns the number of versions."""
    entries = list(store.entries())
    for entry in entries:
        Artifact.find(store, entry.model, entry.version).verify()
    for name, content in visible(store.path).items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{digest_of(content).removeprefix('sha256:')}"
        else:
            json.loads(content)
    return len(entries)


# Killed


def _work_for_ever(path: Path, folder: Path, memory: Path, seed: int, started: Connection) -> None:
    """Builds, deletes and collects, in an order of the seed's."""
    store, chance = Layout(path), random.Random(seed)
    started.send(None)
    # What was written just now counts as settled: a digest that is wrongly remembered would show.
    known = Memory(memory, now_ns=lambda: 2**62)
    while True:
        version = f"1.0.{chance.randrange(6)}"
        folder_now = folder / str(chance.randrange(3))
        compression: Compression = chance.choice(["none", "zstd"])
        with suppress(PackagingError):
            build_artifact(
                folder_now, "tumour", version, store, memory=known, compression=compression, part_bytes=40_000
            )
        if chance.random() < 0.5:
            with suppress(PackagingError):
                store.delete("tumour", f"1.0.{chance.randrange(6)}")
        if chance.random() < 0.5:
            store.collect()


def test_the_store_is_sound_after_kills_at_random_moments(tmp_path: Path) -> None:
    store, chance = Layout(tmp_path / "store"), random.Random(20)
    for number in range(3):
        files = {"shared.bin": bytes(range(256)) * 800, "own.bin": random.Random(number).randbytes(90_000)}
        make_folder(tmp_path / "models" / str(number), files)
    # What a worker would import first is there when it is forked, so that the moments fall into its work.
    build(tmp_path / "models" / "0", Layout(tmp_path / "other"), compression="zstd")
    states = set[bytes]()
    for seed in range(KILLS):
        own, other = FORK.Pipe(duplex=False)
        with own, other:
            arguments = (store.path, tmp_path / "models", tmp_path / "digests.sqlite")
            workers = [
                FORK.Process(target=_work_for_ever, args=(*arguments, seed + KILLS * number, other))
                for number in range(1 + seed % 2)
            ]
            for worker in workers:
                worker.start()
            own.recv()
            # The moment of the kill, not a wait for anything.
            workers[0].join(chance.uniform(0, 0.1))
            for worker in workers:
                assert worker.is_alive(), "it ended by itself"
                worker.kill()
                worker.join()
                worker.close()
        assert_sound(store)
        states.update([(store.path / "index.json").read_bytes()] if (store.path / "index.json").exists() else [])
    assert len(states) > 3, "too little happened between the kills"
    store.collect()
    assert not leftovers(store.path)
    assert_sound(store)
    build(tmp_path / "models" / "0", store, "2.0.0")
    assert_sound(store)


# No room


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_build_onto_a_full_disk_fails_clearly_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", {"w": random.Random(1).randbytes(200_000)})
    with small_disk(tmp_path / "disk") as disk:
        store = Layout(disk / "store")
        build(folder, store, "1.0.0")
        (folder / "more").write_bytes(random.Random(2).randbytes(2_000_000))
        before = visible(store.path)
        with pytest.raises(DiskFull, match="has no room left: No space left on device; free some"):
            build(folder, store, "1.1.0")
        assert visible(store.path).keys() - before.keys() <= {
            f"blobs/sha256/{digest_of((folder / name).read_bytes())[7:]}" for name in ("w", "more")
        }
        assert not leftovers(store.path)
        assert assert_sound(store) == 1
        (folder / "more").write_bytes(b"little")
        build(folder, store, "1.1.0")
        assert assert_sound(store) == 2


def test_a_version_is_not_half_named_when_the_index_finds_no_room(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", {"w": b"1"})
    with small_disk(tmp_path / "disk") as disk:
        store = Layout(disk / "store")
        build(folder, store, "1.0.0")
        filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
        try:
            with suppress(OSError):
                while os.write(filler, bytes(1 << 16)):
                    pass
        finally:
            os.close(filler)
        with pytest.raises(DiskFull):
            build(folder, store, "1.1.0")
        assert assert_sound(store) == 1
        (disk / "filler").unlink()
        build(folder, store, "1.1.0")
        assert assert_sound(store) == 2


def test_unpacking_onto_a_full_disk_fails_clearly_and_leaves_nothing(tmp_path: Path) -> None:
    store = Layout(tmp_path / "store")
    build(make_folder(tmp_path / "model", {"w": random.Random(2).randbytes(2_000_000)}), store)
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(DiskFull, match="No space left on device"):
            Artifact.find(store, "tumour", "1.0.0").unpack(disk / "model")
        assert tree(disk) == {}


def test_a_limit_on_file_sizes_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = Layout(tmp_path / "store")
    folder = make_folder(tmp_path / "model", {"w": random.Random(2).randbytes(2_000_000)})
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    with files_of_at_most(1_000_000), pytest.raises(DiskFull, match="File too large"):
        build(folder, store)
    assert not leftovers(store.path)
    build(folder, store)
    assert assert_sound(store) == 1
