"""Copying versions between stores: only what is missing is sent, every byte is checked, and the name comes last."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from model_packaging.artifact import Artifact
from model_packaging.digests import digest_of
from model_packaging.errors import (
    AttachmentsDiffer,
    BlobMissing,
    DigestMismatch,
    NotInStore,
    StoreUnreachable,
    VersionExists,
)
from model_packaging.keys import PrivateKey
from model_packaging.signing import TrustedKey, sign, signatures, verify_signature
from model_packaging.stores import Store
from model_packaging.stores.copying import copy_model, copy_version
from model_packaging.stores.layout import Layout
from tests.deadline import until
from tests.packaging.model_folders import FILES, build, layer_blob, make_folder, tree, visible
from tests.packaging.registry_server import Server, proxy_to, serving
from tests.processes import FORK

KIB, MIB = 1 << 10, 1 << 20
KILLS = 25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With TLS and a login."""
    with serving(tmp_path_factory.mktemp("guarded"), login=True, tls=True) as running:
        yield running


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A part of the registry that is this test's alone."""
    return request.node.name.replace("_", "-").partition("[")[0]


@pytest.fixture
def source(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "source")


def large_files(count: int = 20, size: int = 100 * KIB) -> dict[str, bytes]:
    return {f"shard-{number:02}.bin": os.urandom(size) for number in range(count)}


def new_key() -> PrivateKey:
    return PrivateKey(Ed25519PrivateKey.generate())


def signers(store: Store, digest: str) -> list[str]:
    return sorted(found.signer for found in signatures(Artifact.at(store, "tumour", digest)) if found.signer)


def test_a_version_keeps_its_digest_through_stores_of_every_kind(
    guarded: Server, server: Server, prefix: str, source: Layout, folder: Path, tmp_path: Path
) -> None:
    digest = build(folder, source)
    stores: list[Store] = [source, guarded.store(prefix), server.store(prefix), Layout(tmp_path / "target")]

    for one, other in itertools.pairwise(stores):
        copy_version(one, other, "tumour", "1.0.0")

    found = Artifact.find(stores[-1], "tumour", "1.0.0")
    assert found.digest == digest
    assert tree(found.unpack(tmp_path / "out")) == FILES


def test_a_copy_between_folders_is_the_same_store(source: Layout, folder: Path, tmp_path: Path) -> None:
    build(folder, source)

    copy_version(source, Layout(tmp_path / "target"), "tumour", "1.0.0")

    assert visible(tmp_path / "target") == visible(source.path)


def test_what_a_copy_did_is_told(server: Server, prefix: str, source: Layout, folder: Path) -> None:
    digest = build(folder, source)
    target = server.store(prefix)

    first = copy_version(source, target, "tumour", "1.0.0")
    second = copy_version(source, target, "tumour", "1.0.0")

    size = sum(described.size for described in Artifact.at(source, "tumour", digest).manifest.blobs)
    assert (first.created, first.sent_blobs, first.sent_bytes, first.present_blobs) == (True, 4, size, 0)
    assert (second.created, second.sent_blobs, second.present_blobs, second.present_bytes) == (False, 0, 4, size)


def test_progress_ends_at_the_size_of_all_blobs(server: Server, prefix: str, source: Layout, folder: Path) -> None:
    digest = build(folder, source)
    told: list[tuple[int, int]] = []

    copy_version(source, server.store(prefix), "tumour", "1.0.0", progress=lambda *each: told.append(each))

    size = sum(described.size for described in Artifact.at(source, "tumour", digest).manifest.blobs)
    assert told[-1] == (size, size)


def test_a_pull_moves_only_what_is_missing(
    server: Server, prefix: str, source: Layout, folder: Path, tmp_path: Path
) -> None:
    files = large_files()
    build(make_folder(folder, files), server.store(prefix))
    changed = files | {"shard-00.bin": os.urandom(100 * KIB)}
    build(make_folder(folder, changed), server.store(prefix), "1.0.1")
    copy_version(server.store(prefix), source, "tumour", "1.0.0")

    with proxy_to(server) as proxy:
        copied = copy_version(server.through(proxy).store(prefix), source, "tumour", "1.0.1")

    total = sum(map(len, changed.values()))
    assert copied.sent_bytes < 0.06 * total
    # On the wire there are the manifest, the config and the headers too.
    assert proxy.received < 0.07 * total


def test_all_versions_of_a_model_are_copied(server: Server, prefix: str, source: Layout, folder: Path) -> None:
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        build(folder, source, version)
    target = server.store(prefix)

    copied = list(copy_model(source, target, "tumour"))

    assert [each.version for each in copied] == ["1.0.0", "1.9.0", "1.10.0"]
    assert list(target.entries("tumour")) == list(source.entries("tumour"))


def test_a_model_that_is_not_there_is_told(server: Server, prefix: str, source: Layout) -> None:
    with pytest.raises(NotInStore, match="no version of tumour"):
        list(copy_model(source, server.store(prefix), "tumour"))


def test_between_prefixes_of_a_registry_nothing_is_sent(server: Server, prefix: str, folder: Path) -> None:
    files = large_files(4, 500 * KIB)
    digest = build(make_folder(folder, files), server.store(f"{prefix}/dev"))

    with proxy_to(server) as proxy:
        near = server.through(proxy)
        copied = copy_version(near.store(f"{prefix}/dev"), near.store(f"{prefix}/prod"), "tumour", "1.0.0")

    assert (copied.sent_blobs, copied.digest) == (0, digest)
    assert proxy.sent + proxy.received < 100 * KIB
    Artifact.find(server.store(f"{prefix}/prod"), "tumour", "1.0.0").verify()


# What is refused


def test_other_bytes_under_the_name_are_refused_before_any_is_sent(
    server: Server, prefix: str, source: Layout, folder: Path
) -> None:
    kept = build(folder, server.store(prefix))
    (folder / "model.bin").write_bytes(os.urandom(MIB))
    build(folder, source)

    with proxy_to(server) as proxy, pytest.raises(VersionExists, match=kept):
        copy_version(source, server.through(proxy).store(prefix), "tumour", "1.0.0")

    assert proxy.sent < 10 * KIB


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content.swapcase(),
        lambda content: content[:-1],
        lambda content: b"",
    ],
    ids=["changed", "truncated", "emptied"],
)
def test_a_harmed_blob_is_named_and_its_version_not_made(
    server: Server, prefix: str, source: Layout, folder: Path, harm: Callable[[bytes], bytes]
) -> None:
    digest = build(folder, source)
    file = layer_blob(source, digest, "model.bin")
    content = file.read_bytes()
    file.write_bytes(harm(content))
    target = server.store(f"{prefix}-{len(harm(content))}")

    with pytest.raises(DigestMismatch, match=rf"{source.location}: file 'model\.bin'"):
        copy_version(source, target, "tumour", "1.0.0")

    assert list(target.entries("tumour")) == []
    assert not target.has_blob("tumour", digest_of(content))


def test_a_blob_that_is_harmed_in_the_registry_does_not_come_into_a_folder(
    guarded: Server, prefix: str, source: Layout, folder: Path
) -> None:
    content = b"only of this test"
    (folder / "model.bin").write_bytes(content)
    build(folder, guarded.store(prefix))
    guarded.blob(digest_of(content)).write_bytes(content.swapcase())

    with pytest.raises(DigestMismatch, match=r"file 'model\.bin'"):
        copy_version(guarded.store(prefix), source, "tumour", "1.0.0")

    assert list(source.entries()) == []
    assert not source.has_blob("tumour", digest_of(content))


def test_a_copy_that_fails_ends_the_transfers_under_way(
    server: Server, prefix: str, source: Layout, folder: Path
) -> None:
    digest = build(make_folder(folder, {"a-large.bin": bytes(100 * MIB)}), source)
    file = layer_blob(source, digest, "model.bin")
    file.write_bytes(file.read_bytes().swapcase())

    with proxy_to(server) as proxy, pytest.raises(DigestMismatch):
        copy_version(source, server.through(proxy).store(prefix), "tumour", "1.0.0")

    assert proxy.sent < 50 * MIB


def test_a_missing_blob_is_named(server: Server, prefix: str, source: Layout, folder: Path) -> None:
    digest = build(folder, source)
    layer_blob(source, digest, "model.bin").unlink()

    with pytest.raises(BlobMissing, match=r"file 'model\.bin'"):
        copy_version(source, server.store(prefix), "tumour", "1.0.0")

    assert list(server.store(prefix).entries("tumour")) == []


def test_a_copy_restores_what_the_target_lost(
    server: Server, prefix: str, source: Layout, folder: Path, tmp_path: Path
) -> None:
    digest = build(folder, server.store(prefix))
    copy_version(server.store(prefix), source, "tumour", "1.0.0")
    layer_blob(source, digest, "model.bin").unlink()

    copied = copy_version(server.store(prefix), source, "tumour", "1.0.0")

    assert copied.sent_blobs == 1
    Artifact.find(source, "tumour", "1.0.0").verify()


# Signatures


def test_signatures_come_along(server: Server, prefix: str, source: Layout, folder: Path, tmp_path: Path) -> None:
    key = new_key()
    sign(Artifact.at(source, "tumour", build(folder, source)), key, "ada")
    target = Layout(tmp_path / "target")

    copy_version(source, server.store(prefix), "tumour", "1.0.0")
    copy_version(server.store(prefix), target, "tumour", "1.0.0")

    trusted = TrustedKey("ada", key.public)
    assert verify_signature(Artifact.find(target, "tumour", "1.0.0"), [trusted]) == trusted


def test_a_signature_that_came_later_is_brought(server: Server, prefix: str, source: Layout, folder: Path) -> None:
    digest = build(folder, source)
    artifact, target = Artifact.at(source, "tumour", digest), server.store(prefix)
    sign(artifact, new_key(), "ada")
    copy_version(source, target, "tumour", "1.0.0")
    sign(artifact, new_key(), "grace")

    copy_version(source, target, "tumour", "1.0.0")

    assert signers(target, digest) == ["ada", "grace"]


def test_a_signature_that_only_the_target_has_stays(server: Server, prefix: str, source: Layout, folder: Path) -> None:
    digest = build(folder, source)
    target = server.store(prefix)
    sign(Artifact.at(source, "tumour", digest), new_key(), "ada")
    copy_version(source, target, "tumour", "1.0.0")
    sign(Artifact.at(target, "tumour", digest), new_key(), "grace")

    copy_version(source, target, "tumour", "1.0.0")

    assert signers(target, digest) == ["ada", "grace"]


def test_signatures_of_both_sides_are_not_lost_but_told(
    server: Server, prefix: str, source: Layout, folder: Path
) -> None:
    digest = build(folder, source)
    target = server.store(prefix)
    copy_version(source, target, "tumour", "1.0.0")
    sign(Artifact.at(source, "tumour", digest), new_key(), "ada")
    sign(Artifact.at(target, "tumour", digest), new_key(), "grace")

    with pytest.raises(AttachmentsDiffer, match=r"sha256-.*\.sig"):
        copy_version(source, target, "tumour", "1.0.0")

    assert signers(target, digest) == ["grace"]


# Cuts and kills


def test_after_a_cut_only_the_rest_is_sent(server: Server, prefix: str, source: Layout, folder: Path) -> None:
    digest = build(make_folder(folder, large_files(10, 400 * KIB)), source)
    size = sum(described.size for described in Artifact.at(source, "tumour", digest).manifest.blobs)
    with proxy_to(server) as proxy:
        proxy.once = False
        proxy.cut_after_sent = size // 2
        with pytest.raises(StoreUnreachable):
            copy_version(source, server.through(proxy).store(prefix), "tumour", "1.0.0")
        assert list(server.store(prefix).entries("tumour")) == []
        first = proxy.sent
        proxy.reset()

        copied = copy_version(source, server.through(proxy).store(prefix), "tumour", "1.0.0")

    # Of each blob that was under way, the part that was sent is sent again.
    assert copied.present_blobs >= 1
    assert first + proxy.sent < size + 4 * 400 * KIB
    Artifact.find(server.store(prefix), "tumour", "1.0.0").verify()


@pytest.mark.parametrize("of_download", [True, False], ids=["download", "upload"])
def test_a_cut_on_the_way_is_made_good(
    server: Server, prefix: str, source: Layout, folder: Path, tmp_path: Path, of_download: bool
) -> None:
    target_prefix = f"{prefix}-{of_download}".lower()
    digest = build(make_folder(folder, large_files(4, MIB)), source)
    with proxy_to(server) as proxy:
        remote = server.through(proxy).store(target_prefix)
        if of_download:
            copy_version(source, server.store(target_prefix), "tumour", "1.0.0")
            proxy.cut_after_received = MIB
            target: Store = Layout(tmp_path / "target")
            copy_version(remote, target, "tumour", "1.0.0")
        else:
            proxy.cut_after_sent = MIB
            target = remote
            copy_version(source, target, "tumour", "1.0.0")

        assert proxy.cuts == 1
    Artifact.at(server.store(target_prefix), "tumour", digest).verify()


def is_sound(store: Store) -> bool:
    """Whether the store has the version; what it has is whole."""
    entries = list(store.entries("tumour"))
    for entry in entries:
        Artifact.find(store, entry.model, entry.version).verify()
        assert signers(store, entry.digest) == ["ada"]
    return bool(entries)


@pytest.mark.parametrize("pull", [True, False], ids=["pull", "push"])
def test_a_copy_killed_at_any_moment_leaves_a_sound_store(
    server: Server, prefix: str, source: Layout, folder: Path, tmp_path: Path, pull: bool
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    digest = build(make_folder(folder, large_files(8, 100 * KIB)), source)
    sign(Artifact.at(source, "tumour", digest), new_key(), "ada")
    if pull:
        copy_version(source, server.store(f"{prefix}/pulled"), "tumour", "1.0.0")
    rounds = 0

    def stores() -> tuple[Store, Store]:
        if pull:
            return server.store(f"{prefix}/pulled"), Layout(tmp_path / f"target-{rounds}")
        return source, server.store(f"{prefix}/pushed-{rounds}")

    started = time.monotonic()
    copy_version(*stores(), "tumour", "1.0.0")
    whole_seconds = time.monotonic() - started
    rounds += 1
    for _ in range(KILLS):
        one, other = stores()
        process = FORK.Process(target=copy_version, args=(one, other, "tumour", "1.0.0"))
        process.start()
        process.join(chance.uniform(0.0, whole_seconds))
        process.kill()
        process.join()
        process.close()
        if is_sound(other):
            rounds += 1

    copied = copy_version(*stores(), "tumour", "1.0.0")
    assert copied.digest == digest
    assert is_sound(stores()[1])


def test_an_interrupted_copy_ends_soon_and_makes_no_version(
    server: Server, prefix: str, source: Layout, folder: Path, tmp_path: Path
) -> None:
    build(make_folder(folder, large_files(40, 500 * KIB)), source)
    started = tmp_path / "started"

    def note(done: int, total: int) -> None:
        if done > MIB:
            started.touch()

    def copy() -> None:
        # Python's own handler, which a fork of pytest has too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            copy_version(source, server.store(prefix), "tumour", "1.0.0", progress=note)
            os._exit(1)
        os._exit(0)

    process = FORK.Process(target=copy)
    process.start()
    try:
        until(started.exists, what="the copy")
        os.kill(process.pid or 0, signal.SIGINT)
        process.join(5)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()

    assert list(server.store(prefix).entries("tumour")) == []
