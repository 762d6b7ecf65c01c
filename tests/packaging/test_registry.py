"""The registry store, against a real registry: it keeps what a store promises, and believes nothing that it is told."""

from __future__ import annotations

import base64
import errno
import json
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from model_packaging.artifact import Artifact
from model_packaging.digests import digest_of
from model_packaging.errors import (
    BlobMissing,
    DigestMismatch,
    ManifestRefused,
    NotInStore,
    PackagingError,
    StoreDamaged,
    StoreUnreachable,
    VersionExists,
)
from model_packaging.manifest import MANIFEST_TYPE
from model_packaging.stores import open_store
from model_packaging.stores.layout import Layout
from model_packaging.stores.registry import Registry
from model_packaging.stores.transport import Patience
from tests.packaging.model_folders import FILES, build, make_folder, tree
from tests.packaging.registry_server import HASTY, PASSWORD, USERNAME, Server, proxy_to, serving
from tests.packaging.scripted_server import Reply, Request, answering
from tests.packaging.tokens import TokenServer
from tests.processes import at_once

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With TLS and a login."""
    with serving(tmp_path_factory.mktemp("registry"), login=True, tls=True) as running:
        yield running


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With neither."""
    with serving(tmp_path_factory.mktemp("open"), settings="catalog: {maxentries: 2}") as running:
        yield running


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks go here where a test gives a store no environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A part of the registry that is this test's alone."""
    return request.node.name.replace("_", "-").partition("[")[0]


@pytest.fixture
def store(server: Server, prefix: str) -> Registry:
    return server.store(prefix)


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> Layout:
    """A store in a folder, with version 1.0.0."""
    layout = Layout(tmp_path / "source")
    build(folder, layout)
    return layout


def attach(store: Registry, digest: str, content: bytes, replacing: bytes | None = None) -> bytes:
    """Attaches a document as a signature, and returns its manifest."""
    manifest = attachment_of(store, content)
    assert store.attach("tumour", digest, "sig", manifest, replacing)
    return manifest


def attachment_of(store: Registry, content: bytes) -> bytes:
    blob = store.add_blob("tumour", BytesIO(content), len(content))
    descriptor = {"mediaType": "text/plain", "digest": blob, "size": len(content)}
    document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": descriptor, "layers": [descriptor]}
    return json.dumps(document).encode()


def set_tag(store: Registry, tag: str, digest: str) -> None:
    """As any other client of the registry can."""
    manifest = store.read_manifest("tumour", digest)
    store._write_manifest("tumour", tag, manifest)


class OneWay(RawIOBase):
    """A stream that can't go back, such as a download."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._content.readinto(buffer)


# What a store promises


def test_a_version_comes_back_byte_for_byte(store: Registry, folder: Path, tmp_path: Path) -> None:
    digest = build(folder, store)

    found = Artifact.find(store, "tumour", "1.0.0")

    assert found.digest == digest
    assert tree(found.unpack(tmp_path / "out")) == FILES


def test_a_store_is_opened_by_its_location(
    server: Server, store: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = build(folder, store)
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)

    assert open_store(store.location).resolve("tumour", "1.0.0") == digest


def test_the_same_version_can_be_put_again(store: Registry, folder: Path) -> None:
    digest = build(folder, store)

    assert store.put("tumour", "1.0.0", store.read_manifest("tumour", digest)) is False


def test_a_version_with_other_bytes_is_refused(store: Registry, folder: Path) -> None:
    digest = build(folder, store)
    (folder / "model.bin").write_bytes(b"others")

    with pytest.raises(VersionExists, match=digest):
        build(folder, store)

    assert store.resolve("tumour", "1.0.0") == digest


def test_of_pushes_at_once_with_other_bytes_one_has_the_version(server: Server, prefix: str, tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / str(number), {"model.bin": bytes([number])}) for number in range(4)]

    def push(number: int, wait: Callable[[], object]) -> list[str]:
        won = []
        store = server.store(prefix)
        for version in ("1.0.0", "1.0.1", "1.0.2"):
            wait()
            try:
                won.append(f"{version} {build(folders[number], store, version)}")
            except VersionExists:
                continue
        return won

    won = [one for each in at_once(4, push) for one in each]

    assert sorted(won) == [f"{entry.version} {entry.digest}" for entry in server.store(prefix).entries("tumour")]


def test_a_claim_that_is_refused_leaves_no_tag(server: Server, prefix: str, folder: Path) -> None:
    def claim(_: object, model: str, version: str, manifest: bytes) -> None:
        raise VersionExists("the catalogue", model, version, "sha256:other", digest_of(manifest))

    with pytest.raises(VersionExists, match="the catalogue"):
        build(folder, server.store(prefix, claim=claim))

    assert list(server.store(prefix).entries("tumour")) == []


def test_a_push_sees_that_another_machine_was_first_while_it_sent_its_blobs(
    server: Server, prefix: str, folder: Path, tmp_path: Path
) -> None:
    other = make_folder(tmp_path / "other", {"model.bin": b"first"})
    elsewhere = server.store(prefix, environ={**server.environ, "XDG_CACHE_HOME": str(tmp_path / "elsewhere")})
    pushed: list[str] = []

    with pytest.raises(VersionExists):
        build(folder, server.store(prefix, claim=lambda *_: pushed.append(build(other, elsewhere))))

    assert elsewhere.resolve("tumour", "1.0.0") == pushed[0]


def test_a_registry_that_keeps_tags_from_being_changed_decides_between_machines(source: Layout) -> None:
    """The other machine's push comes between our last look and our own."""
    first = digest_of(b"of the other machine")
    pushed: list[str] = []

    def answer(request: Request) -> Reply:
        if request.method == "PUT":
            pushed.append(first)
            return Reply(400, body=b'{"errors": [{"code": "TAG_INVALID", "message": "the tag is immutable"}]}')
        if "/manifests/" in request.path:
            return Reply(200, {"Docker-Content-Digest": first}) if pushed else Reply(404)
        return Reply(200)

    digest = source.resolve("tumour", "1.0.0")
    with answering(answer) as script, pytest.raises(VersionExists, match=first):
        scripted(script).put("tumour", "1.0.0", source.read_manifest("tumour", digest))


def test_versions_are_listed_by_precedence_and_signatures_are_none(store: Registry, folder: Path) -> None:
    for version in ("1.10.0", "1.9.0", "1.9.0-rc.1"):
        digest = build(folder, store, version)
    attach(store, digest, b"signed")

    assert [entry.version for entry in store.entries("tumour")] == ["1.9.0-rc.1", "1.9.0", "1.10.0"]


def test_all_models_are_listed_whatever_the_registry_gives_at_once(
    open_server: Server, prefix: str, folder: Path
) -> None:
    store = open_server.store(prefix)
    manifest = store.read_manifest("tumour", build(folder, store))
    models = ["a", "b", "c", "tumour"]
    for model in models[:-1]:
        for blob in json.loads(manifest)["layers"] + [json.loads(manifest)["config"]]:
            with store.open_blob("tumour", blob["digest"], "a blob") as source:
                store.add_blob(model, source, blob["size"], blob["digest"])
        store.put(model, "1.0.0", manifest)

    assert [entry.model for entry in store.entries()] == models


def test_more_versions_than_fit_a_page_are_listed(open_server: Server, prefix: str, folder: Path) -> None:
    store = open_server.store(prefix)
    build(folder, store, "0.0.0")
    tags = open_server.tags(f"{prefix}/tumour")
    for number in range(1, 1005):
        (tags / f"0.0.{number}").mkdir()

    with pytest.raises(NotInStore, match=r"0\.0\.1004\. Ask"):
        store.resolve("tumour", "1.0.0")


def test_a_version_that_is_not_there_is_told_with_those_that_are(store: Registry, folder: Path) -> None:
    build(folder, store)

    with pytest.raises(NotInStore, match=r"of tumour it has 1\.0\.0"):
        store.resolve("tumour", "2.0.0")


@pytest.mark.parametrize("model", ["nothing", "../tumour", "Tumour"])
def test_a_model_that_is_not_there_is_told(store: Registry, model: str) -> None:
    assert list(store.entries(model)) == []
    with pytest.raises(NotInStore, match="no version of"):
        store.resolve(model, "1.0.0")


def test_a_manifest_that_is_not_there_is_told(store: Registry, folder: Path) -> None:
    build(folder, store)

    with pytest.raises(NotInStore):
        store.read_manifest("tumour", digest_of(b"nothing"))


def test_a_blob_that_is_not_there_is_told_by_what_it_is(store: Registry, folder: Path) -> None:
    build(folder, store)

    with pytest.raises(BlobMissing, match=r"file 'model\.bin'"):
        store.open_blob("tumour", digest_of(b"nothing"), "file 'model.bin'")


def test_a_version_whose_blobs_are_not_there_is_refused(store: Registry, folder: Path) -> None:
    document = json.loads(store.read_manifest("tumour", build(folder, store)))
    document["layers"][0]["digest"] = digest_of(b"nothing")

    with pytest.raises(BlobMissing):
        store.put("tumour", "2.0.0", json.dumps(document).encode())

    assert [entry.version for entry in store.entries("tumour")] == ["1.0.0"]


def test_what_is_no_manifest_is_refused(store: Registry) -> None:
    with pytest.raises(ManifestRefused):
        store.put("tumour", "1.0.0", b"{}")


@pytest.mark.parametrize(("content", "size"), [(b"others", 6), (b"short", 9)])
def test_bytes_that_are_not_those_of_the_digest_are_not_kept(store: Registry, content: bytes, size: int) -> None:
    digest = digest_of(b"promised")

    with pytest.raises(DigestMismatch):
        store.add_blob("tumour", BytesIO(content), size, digest)

    assert not store.has_blob("tumour", digest)
    assert not store.has_blob("tumour", digest_of(content))


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("again", [True, False], ids=["again", "new"])
def test_blobs_follow_each_other_in_one_stream(store: Registry, known: bool, again: bool) -> None:
    first, second = f"{known}{again}".encode(), b"second"
    if again:
        store.add_blob("tumour", BytesIO(first), len(first))
    source = BytesIO(first + second)

    store.add_blob("tumour", source, len(first), digest_of(first) if known else None)

    assert store.add_blob("tumour", source, len(second)) == digest_of(second)


def test_a_stream_that_can_be_read_once_is_kept(store: Registry) -> None:
    digest = store.add_blob("tumour", cast("Any", OneWay(b"read once")), 9)

    with store.open_blob("tumour", digest, "a blob") as source:
        assert source.read() == b"read once"


def test_a_file_that_can_not_be_read_is_not_taken_for_a_lost_connection(store: Registry, tmp_path: Path) -> None:
    class Failing(OneWay):
        def readinto(self, buffer: Any, /) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(PackagingError, match="can't be read: Input/output error"):
        store.add_blob("tumour", cast("Any", Failing(b"")), 9, digest_of(b"unreadable"))


def test_an_empty_blob_is_kept(store: Registry) -> None:
    digest = store.add_blob("tumour", BytesIO(), 0)

    with store.open_blob("tumour", digest, "a blob") as source:
        assert (digest, source.read()) == (digest_of(b""), b"")


def test_an_attachment_is_replaced_only_by_who_knows_it(store: Registry, folder: Path) -> None:
    digest = build(folder, store)
    first = attach(store, digest, b"first")
    second = attachment_of(store, b"second")

    assert store.attach("tumour", digest, "sig", second, None) is False
    assert store.attachment("tumour", digest, "sig") == first
    assert store.attach("tumour", digest, "sig", second, first) is True
    assert store.attachment("tumour", digest, "sig") == second


def test_of_attachments_made_at_once_none_is_lost(server: Server, prefix: str, folder: Path) -> None:
    digest = build(folder, server.store(prefix))

    def add(number: int, wait: Callable[[], object]) -> bool:
        store = server.store(prefix)
        manifest = attachment_of(store, str(number).encode())
        wait()
        return store.attach("tumour", digest, "sig", manifest, None)

    assert sorted(at_once(4, add)) == [False, False, False, True]


# Deleting


def test_a_deleted_version_is_gone_with_what_is_attached_to_it(store: Registry, folder: Path) -> None:
    digest = build(folder, store)
    kept = build(folder, store, "2.0.0")
    attach(store, digest, b"signed")

    store.delete("tumour", "1.0.0")

    assert [entry.version for entry in store.entries("tumour")] == ["2.0.0"]
    assert store.attachment("tumour", digest, "sig") is None
    with pytest.raises(NotInStore):
        store.read_manifest("tumour", digest)
    Artifact.at(store, "tumour", kept).verify()


def test_a_version_that_has_another_tag_loses_only_its_own(store: Registry, folder: Path) -> None:
    digest = build(folder, store)
    set_tag(store, "latest", digest)

    store.delete("tumour", "1.0.0")

    assert list(store.entries("tumour")) == []
    assert store._tagged("tumour", "latest") == digest


def test_what_is_attached_to_two_versions_stays_with_the_other(store: Registry, folder: Path) -> None:
    first, second = build(folder, store), build(folder, store, "2.0.0")
    attach(store, first, b"the same for both")
    shared = attach(store, second, b"the same for both")

    store.delete("tumour", "1.0.0")

    assert store.attachment("tumour", second, "sig") == shared


def test_a_registry_that_keeps_manifests_takes_the_name_away(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path / "registry", storage="  delete: {enabled: false}") as running:
        store = running.store("models")
        digest = build(folder, store)

        store.delete("tumour", "1.0.0")

        assert list(store.entries("tumour")) == []
        assert store.read_manifest("tumour", digest)


def test_a_registry_that_lets_nobody_delete_is_told(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path / "registry") as running:
        build(folder, running.store("models"))
    readonly = "  maintenance: {readonly: {enabled: true}}"
    with serving(tmp_path / "registry", storage=readonly) as running:
        store = running.store("models")

        with pytest.raises(StoreUnreachable, match=r"does not delete: tumour 1\.0\.0 is still there.*HTTP 405"):
            store.delete("tumour", "1.0.0")
        with pytest.raises(StoreUnreachable, match="refuses to POST: HTTP 405"):
            build(folder, store, "2.0.0")


# What is wrong in the registry


def test_a_blob_that_was_changed_in_the_registry_is_named(
    server: Server, store: Registry, folder: Path, tmp_path: Path
) -> None:
    content = b"only of this test"
    (folder / "model.bin").write_bytes(content)
    build(folder, store)
    server.blob(digest_of(content)).write_bytes(content.swapcase())

    with pytest.raises(DigestMismatch, match=r"file 'model\.bin'"):
        Artifact.find(store, "tumour", "1.0.0").unpack(tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_manifest_that_was_changed_in_the_registry_is_refused(server: Server, store: Registry, folder: Path) -> None:
    digest = build(folder, store)
    file = server.blob(digest)
    file.write_bytes(file.read_bytes().replace(b"weight", b"WEIGHT"))

    with pytest.raises((DigestMismatch, StoreDamaged)):
        Artifact.find(server.store(store._prefix), "tumour", "1.0.0")


def scripted(script: Any, **more: Any) -> Registry:
    return Registry(f"oci+http://{script.host}/models", patience=HASTY, **more)


def test_an_answer_without_an_end_is_not_read_to_it() -> None:
    sent = []

    def without_end() -> Iterator[bytes]:
        while True:
            sent.append(MIB)
            yield bytes(MIB)

    def answer(request: Request) -> Reply:
        return Reply(200, body=without_end())

    with answering(answer) as script, pytest.raises(StoreDamaged, match="more than"):
        scripted(script).read_manifest("tumour", digest_of(b""))

    assert sum(sent) < 64 * MIB


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"not JSON"),
        ({}, b"[" * 100_000),
        ({}, b'{"tags": {"a": 1}}'),
        ({}, b'{"tags": [1]}'),
        ({"Link": '<file:///etc/passwd>; rel="next"'}, b'{"tags": ["1.0.0"]}'),
    ],
)
def test_a_listing_that_is_none_is_told(headers: dict[str, str], body: bytes) -> None:
    with answering(lambda _: Reply(200, headers, body)) as script, pytest.raises(StoreDamaged):
        list(scripted(script).entries("tumour"))


def test_a_listing_that_repeats_itself_ends() -> None:
    def answer(request: Request) -> Reply:
        if "tags/list" in request.path:
            return Reply(200, {"Link": f'<{request.path}>; rel="next"'}, b'{"tags": ["1.0.0"]}')
        return Reply(200, {"Docker-Content-Digest": digest_of(b"")})

    with answering(answer) as script:
        assert [entry.version for entry in scripted(script).entries("tumour")] == ["1.0.0"]


def test_a_tag_that_would_lead_elsewhere_is_no_part_of_an_address() -> None:
    present = {"1.0.0"}

    def answer(request: Request) -> Reply:
        if request.method == "DELETE":
            present.clear()
            return Reply(202)
        if "tags/list" in request.path:
            return Reply(200, body=b'{"tags": ["1.0.0", "../../escape/manifests/1.0.0"]}')
        return Reply(200, {"Docker-Content-Digest": digest_of(b"")}) if present else Reply(404)

    with answering(answer) as script:
        scripted(script).delete("tumour", "1.0.0")

    assert not present
    assert not [request.path for request in script.requests if "escape" in request.path]


def test_a_tag_without_a_digest_is_read_for_it(folder: Path) -> None:
    with answering(lambda _: Reply(200, body=b"a manifest")) as script:
        assert scripted(script).resolve("tumour", "1.0.0") == digest_of(b"a manifest")


def test_a_digest_that_is_none_is_told() -> None:
    answer = Reply(200, {"Docker-Content-Digest": "../../x"})
    with answering(lambda _: answer) as script, pytest.raises(StoreDamaged, match="has no digest"):
        scripted(script).resolve("tumour", "1.0.0")


def test_what_a_registry_says_can_be_printed() -> None:
    said = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[2Jno" + "o" * 5000}]}).encode()
    with answering(lambda _: Reply(418, body=said)) as script, pytest.raises(StoreUnreachable) as caught:
        scripted(script).read_manifest("tumour", digest_of(b""))

    assert "DENIED: [2Jnoo" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_registry_that_does_not_list_its_models_is_told() -> None:
    with answering(lambda _: Reply(404)) as script, pytest.raises(StoreUnreachable, match="name a model"):
        list(scripted(script).entries())


# The way there


def test_an_overloaded_registry_is_asked_again() -> None:
    digest, replies = digest_of(b""), iter([Reply(503), Reply(429, {"Retry-After": "1"})])

    def answer(request: Request) -> Reply:
        return next(replies, Reply(200, {"Docker-Content-Digest": digest}))

    with answering(answer) as script:
        assert scripted(script).resolve("tumour", "1.0.0") == digest

    assert len(script.requests) == 3


def test_a_registry_that_stays_overloaded_is_told() -> None:
    with answering(lambda _: Reply(503)) as script, pytest.raises(StoreUnreachable, match="HTTP 503, 3 times"):
        scripted(script).resolve("tumour", "1.0.0")

    assert len(script.requests) == HASTY.attempts


def test_a_registry_that_is_not_there_is_told() -> None:
    with answering(lambda _: Reply(200)) as script:
        gone = script
    with pytest.raises(StoreUnreachable, match=f"{gone.host}.*Connection refused"):
        scripted(gone).resolve("tumour", "1.0.0")


def test_a_registry_that_never_answers_is_told() -> None:
    ended = threading.Event()

    def answer(_: Request) -> Reply:
        ended.wait()
        return Reply(200)

    with answering(answer) as script:
        store = Registry(f"oci+http://{script.host}/models", patience=Patience(attempts=1, answer_seconds=0.1))
        try:
            with pytest.raises(StoreUnreachable, match="timed out"):
                store.resolve("tumour", "1.0.0")
        finally:
            ended.set()


@pytest.mark.parametrize("after", [10_000, 300_000, 900_000])
def test_an_upload_that_is_cut_is_sent_again(open_server: Server, prefix: str, after: int) -> None:
    content = os.urandom(MIB)
    with proxy_to(open_server) as proxy:
        store = open_server.through(proxy).store(prefix)
        store.has_blob("tumour", digest_of(b""))
        proxy.cut_after_sent = proxy.sent + after

        digest = store.add_blob("tumour", BytesIO(content), len(content))

    assert proxy.cuts == 1
    assert open_server.blob(digest).read_bytes() == content


def test_a_download_that_is_cut_is_told(open_server: Server, prefix: str) -> None:
    content = os.urandom(MIB)
    digest = open_server.store(prefix).add_blob("tumour", BytesIO(content), len(content))
    with proxy_to(open_server) as proxy:
        proxy.cut_after_received = 100_000
        store = open_server.through(proxy).store(prefix)
        with (
            store.open_blob("tumour", digest, "file 'model.bin'") as source,
            pytest.raises(StoreUnreachable, match=r"was cut while file 'model\.bin' was read"),
        ):
            source.read()


def test_memory_stays_small_whatever_is_sent(open_server: Server, prefix: str, tmp_path: Path) -> None:
    size = 150 * MIB
    file = tmp_path / "large"
    with file.open("wb") as large:
        large.truncate(size)

    def work(number: int, wait: Callable[[], object]) -> int:
        store = open_server.store(prefix)
        store.has_blob("tumour", digest_of(b""))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with file.open("rb") as source:
            digest = store.add_blob("tumour", source, size)
        with store.open_blob("tumour", digest, "a blob") as source:
            while source.read(MIB):
                pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert at_once(1, work)[0] < 32 * 1024, "KiB more"


def test_another_client_of_registries_pulls_the_files(
    open_server: Server, prefix: str, folder: Path, tmp_path: Path
) -> None:
    import oras.provider  # noqa: PLC0415

    build(folder, open_server.store(prefix))
    client = oras.provider.Registry(hostname=open_server.host, insecure=True)

    client.pull(target=f"{open_server.host}/{prefix}/tumour:1.0.0", outdir=str(tmp_path / "pulled"))

    assert tree(tmp_path / "pulled") == FILES


# Who we are


def test_a_login_that_is_missing_is_asked_for(server: Server, prefix: str) -> None:
    environ = {key: value for key, value in server.environ.items() if key not in _LOGIN}

    with pytest.raises(StoreUnreachable, match=f"docker login {server.host}"):
        server.store(prefix, environ=environ).resolve("tumour", "1.0.0")


def test_a_login_that_is_wrong_is_told_and_not_shown(server: Server, prefix: str) -> None:
    environ = server.environ | {"LEPTON_REGISTRY_PASSWORD": "wrong-secret"}
    store = server.store(prefix, environ=environ)

    with pytest.raises(StoreUnreachable, match="refuses the login") as caught:
        store.resolve("tumour", "1.0.0")

    assert "wrong-secret" not in f"{caught.value} {caught.value!r} {store!r}"


def test_half_a_login_is_told(server: Server, prefix: str) -> None:
    environ = {key: value for key, value in server.environ.items() if key != "LEPTON_REGISTRY_PASSWORD"}

    with pytest.raises(StoreUnreachable, match="only one of them is set"):
        server.store(prefix, environ=environ).resolve("tumour", "1.0.0")


def test_a_login_for_one_registry_is_not_given_to_another(server: Server, prefix: str) -> None:
    environ = server.environ | {"LEPTON_REGISTRY_HOST": "registry.example.org"}

    with pytest.raises(StoreUnreachable, match="there is none"):
        server.store(prefix, environ=environ).resolve("tumour", "1.0.0")


@pytest.mark.parametrize("form", ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "HOME"])
def test_the_login_of_docker_or_podman_is_used(
    server: Server, store: Registry, folder: Path, tmp_path: Path, form: str
) -> None:
    digest = build(folder, store)
    places = {
        "DOCKER_CONFIG": (tmp_path, "config.json"),
        "REGISTRY_AUTH_FILE": (tmp_path / "auth.json", ""),
        "XDG_RUNTIME_DIR": (tmp_path, "containers/auth.json"),
        "HOME": (tmp_path, ".docker/config.json"),
    }
    value, below = places[form]
    file = value / below if below else value
    file.parent.mkdir(parents=True, exist_ok=True)
    login = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    file.write_text(json.dumps({"auths": {server.host: {"auth": login}}}))
    environ = {key: each for key, each in server.environ.items() if key not in _LOGIN} | {form: str(value)}

    assert server.store(store._prefix, environ=environ).resolve("tumour", "1.0.0") == digest


def test_a_credential_helper_is_asked(
    server: Server, store: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = build(folder, store)
    helper = tmp_path / "docker-credential-tests"
    helper.write_text(f'#!/bin/sh\ncat >/dev/null\necho \'{{"Username": "{USERNAME}", "Secret": "{PASSWORD}"}}\'\n')
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {server.host: "tests"}}))
    environ = {key: each for key, each in server.environ.items() if key not in _LOGIN}

    found = server.store(store._prefix, environ=environ | {"DOCKER_CONFIG": str(tmp_path)})

    assert found.resolve("tumour", "1.0.0") == digest


def test_a_token_is_had_from_where_the_registry_says(tmp_path: Path, folder: Path) -> None:
    with TokenServer.serving(tmp_path / "registry") as tokens:
        store = tokens.registry.store("models")
        digest = build(folder, store)

        assert store.resolve("tumour", "1.0.0") == digest
        assert [entry.digest for entry in store.entries()] == [digest]

    assert {"repository:models/tumour:pull", "repository:models/tumour:pull,push"} <= set(tokens.asked)


def test_a_token_that_has_run_out_is_had_anew(tmp_path: Path, folder: Path) -> None:
    with TokenServer.serving(tmp_path / "registry") as tokens:
        store = tokens.registry.store("models")
        digest = build(folder, store)
        authorizations = store._transport._authorizations
        for right in authorizations:
            authorizations[right] = f"Bearer {tokens.expired('models/tumour')}"

        assert store.resolve("tumour", "1.0.0") == digest


def test_a_token_to_read_does_not_take_the_place_of_one_to_write(environ_with_login: dict[str, str]) -> None:
    """The upload of one part while another thread sees whether the registry has its own."""
    content = b"content"
    begun, has_read = threading.Event(), threading.Event()

    def registry(request: Request) -> Reply:
        url = urlsplit(request.path)
        if url.path == "/token":
            return Reply(200, body=json.dumps({"token": parse_qs(url.query)["scope"][0]}).encode())
        needed = "pull" if request.method in ("GET", "HEAD") else "pull,push"
        if not request.headers.get("Authorization", "").endswith(needed):
            if needed == "pull":
                # The answer to a reader that has no token yet comes when the upload has begun.
                begun.wait(10)
            realm = f"http://{request.headers['Host']}/token"
            challenge = f'Bearer realm="{realm}",service="s",scope="repository:models/tumour:{needed}"'
            return Reply(401, {"WWW-Authenticate": challenge})
        if request.method == "POST":
            begun.set()
            has_read.wait(10)
            return Reply(202, {"Location": "/upload"})
        return Reply(201 if request.method == "PUT" else 404)

    def read() -> None:
        store.has_blob("tumour", digest_of(b"another"))
        has_read.set()

    with answering(registry) as script:
        store = scripted(script, environ=environ_with_login)
        reader = threading.Thread(target=read)
        reader.start()
        store._upload("tumour", BytesIO(content), len(content), digest_of(content))
        reader.join()

    assert [request.method for request in script.requests if request.path.startswith("/upload")] == ["PUT"]


def test_a_token_is_refused_to_who_has_no_login(tmp_path: Path) -> None:
    with TokenServer.serving(tmp_path / "registry") as tokens:
        environ = tokens.registry.environ | {"LEPTON_REGISTRY_PASSWORD": "wrong-secret"}

        with pytest.raises(StoreUnreachable, match=f"gives no token for '{USERNAME}'") as caught:
            tokens.registry.store("models", environ=environ).resolve("tumour", "1.0.0")

    assert "wrong-secret" not in str(caught.value)


@pytest.fixture
def environ_with_login() -> dict[str, str]:
    return {"LEPTON_REGISTRY_USERNAME": USERNAME, "LEPTON_REGISTRY_PASSWORD": PASSWORD}


def test_a_login_does_not_follow_a_download_to_another_host(environ_with_login: dict[str, str]) -> None:
    content = b"from elsewhere"

    def storage(request: Request) -> Reply:
        return Reply(200, body=content)

    def registry(request: Request) -> Reply:
        if "Authorization" not in request.headers:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="tests"'})
        return Reply(307, {"Location": f"http://{elsewhere.host}/signed?key=1"})

    with (
        answering(storage) as elsewhere,
        answering(registry) as script,
        scripted(script, environ=environ_with_login).open_blob("tumour", digest_of(content), "a blob") as source,
    ):
        assert source.read() == content

    assert [request.headers.get("Authorization") for request in elsewhere.requests] == [None]


def test_a_login_does_not_follow_an_upload_to_another_host(environ_with_login: dict[str, str]) -> None:
    def registry(request: Request) -> Reply:
        if "Authorization" not in request.headers:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="tests"'})
        if request.method == "POST":
            return Reply(202, {"Location": f"http://{elsewhere.host}/upload?session=1"})
        return Reply(404)

    with answering(lambda _: Reply(201)) as elsewhere, answering(registry) as script:
        scripted(script, environ=environ_with_login).add_blob("tumour", BytesIO(b"content"), 7)

    assert [(request.method, request.headers.get("Authorization")) for request in elsewhere.requests] == [("PUT", None)]


def test_a_password_is_not_sent_in_the_clear_for_a_token(server: Server, tmp_path: Path) -> None:
    """A registry with TLS that has its tokens from a server without."""
    with answering(lambda _: Reply(200, body=b'{"token": "t"}')) as script:
        store = server.store("models")
        with pytest.raises(StoreDamaged, match="without TLS"):
            store._transport._authorize(f'Bearer realm="http://{script.host}/token",service="s"', "models/tumour")

    assert script.requests == []


@pytest.mark.parametrize(
    "location", ["oci://ada:geheim@registry.example.org/models", "oci://ada:ge/heim@example.org/m"]
)
def test_a_location_with_credentials_is_refused_and_not_shown(location: str) -> None:
    with pytest.raises(PackagingError, match="holds no credentials") as caught:
        open_store(location)

    assert "heim" not in str(caught.value)


@pytest.mark.parametrize(
    "location", ["oci://", "oci:///models", "oci://host/Models", "oci://host/a//b", "oci://h?x=1/a"]
)
def test_a_location_that_is_none_is_refused(location: str) -> None:
    with pytest.raises(PackagingError, match=r"is no registry; one is oci://HOST\[:PORT\]/PREFIX"):
        open_store(location)


# TLS


def test_a_registry_of_an_unknown_authority_is_refused(server: Server, prefix: str) -> None:
    environ = {key: value for key, value in server.environ.items() if key != "LEPTON_REGISTRY_CA"}

    with pytest.raises(StoreUnreachable, match=r"can't be trusted.*LEPTON_REGISTRY_CA"):
        server.store(prefix, environ=environ).resolve("tumour", "1.0.0")


def test_an_authority_whose_file_is_missing_is_told(server: Server, prefix: str) -> None:
    with pytest.raises(StoreUnreachable, match=r"LEPTON_REGISTRY_CA names /nowhere\.pem"):
        server.store(prefix, environ=server.environ | {"LEPTON_REGISTRY_CA": "/nowhere.pem"})


def test_a_registry_without_tls_is_not_spoken_to_by_default(open_server: Server) -> None:
    with pytest.raises(StoreUnreachable, match="write oci\\+http:// instead"):
        Registry(f"oci://{open_server.host}/models", patience=HASTY).resolve("tumour", "1.0.0")


_LOGIN = ("LEPTON_REGISTRY_USERNAME", "LEPTON_REGISTRY_PASSWORD")
