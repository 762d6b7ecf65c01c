"""The catalogue can be had again from the store, and loses nothing that only it knows of what is still there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from model_packaging.build import build_artifact
from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.catalogue.rebuilding import Rebuilt
from model_packaging.errors import StoreDamaged
from model_packaging.lifecycle import Stage
from model_packaging.stores.layout import Layout
from tests.catalogue.conftest import NewDatabase
from tests.catalogue.versions import describe, digest

PACKAGE = {
    "framework": {"name": "scikit-learn", "version": "1.9.1"},
    "training_data": "made up",
    "licence": "Apache-2.0",
    "samples": [{"prompt": "hello"}],
    "labels": {"team": "vision"},
    "evaluation": {"accuracy": 0.9},
}
NOTHING = Rebuilt(added=(), kept=(), replaced=(), removed=(), pending=(), faults=())


@pytest.fixture
def catalogue(new_database: NewDatabase) -> Iterator[Catalogue]:
    """A catalogue of the test's own: a rebuild is about all of it."""
    with Catalogue(new_database()) as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


def build(store: Layout, tmp_path: Path, version: str, content: bytes = b"weights", model: str = "tumour") -> str:
    """Puts a version into a store, and returns its digest."""
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "package.yaml").write_text(json.dumps(PACKAGE))
    (folder / "model.bin").write_bytes(content)
    return build_artifact(folder, model, version, store).digest


def rebuild(catalogue: Catalogue, store: Layout, claim_period: timedelta = timedelta(0)) -> Rebuilt:
    return catalogue.rebuild(store, who="rebuilder", claim_period=claim_period)


def test_an_empty_catalogue_is_filled_from_the_store(catalogue: Catalogue, store: Layout, tmp_path: Path) -> None:
    digests = [build(store, tmp_path, version) for version in ("1.0.0", "1.1.0")]
    said: list[tuple[int, int]] = []
    done = catalogue.rebuild(store, who="rebuilder", progress=lambda *counts: said.append(counts))
    assert done.added == ("tumour:1.0.0", "tumour:1.1.0")
    assert said == [(2, 2)]
    found = catalogue.find()
    assert [version.digest for version in found] == digests
    assert {(version.size_bytes, version.stage, version.stores) for version in found} == {
        (len(b"weights"), Stage.DEVELOPMENT, (store.location,))
    }
    assert found[0].labels == {"team": "vision"}
    assert found[0].metrics == {"package": {"accuracy": 0.9}}
    # Who rebuilt it has not made it, and may approve it.
    assert catalogue.approve("tumour", "1.0.0", who="rebuilder")


def test_what_only_the_catalogue_knows_is_kept(catalogue: Catalogue, store: Layout, tmp_path: Path) -> None:
    build(store, tmp_path, "1.0.0")
    rebuild(catalogue, store)
    catalogue.promote("tumour", "1.0.0", who="ada", why="good")
    catalogue.approve("tumour", "1.0.0", who="bob")
    catalogue.record_evaluation("tumour", "1.0.0", {"f1": 0.8}, dataset="holdout", who="ada")
    catalogue.record_deployment("tumour", "1.0.0", environment="dev", stack="dev.tumour-1.0.0", who="ops")
    before = catalogue.show("tumour", "1.0.0")
    assert rebuild(catalogue, store) == Rebuilt((), ("tumour:1.0.0",), (), (), (), ())
    assert catalogue.show("tumour", "1.0.0") == before


def test_what_the_store_has_no_more_is_removed(catalogue: Catalogue, store: Layout, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        build(store, tmp_path, version)
    rebuild(catalogue, store)
    store.delete("tumour", "1.0.0")
    done = rebuild(catalogue, store)
    assert (done.kept, done.removed) == (("tumour:1.1.0",), ("tumour:1.0.0",))
    assert [version.version for version in catalogue.find()] == ["1.1.0"]


def test_a_version_that_is_on_its_way_to_the_store_keeps_its_claim(
    catalogue: Catalogue, store: Layout, tmp_path: Path
) -> None:
    build(store, tmp_path, "0.9.0")
    store.delete("tumour", "0.9.0")
    catalogue.register(describe("tumour"), digest("pushed"), 10, store.location, who="pusher")
    assert rebuild(catalogue, store, claim_period=timedelta(hours=1)).pending == ("tumour:1.0.0",)
    assert catalogue.show("tumour", "1.0.0").summary.digest == digest("pushed")
    assert rebuild(catalogue, store).removed == ("tumour:1.0.0",)
    assert catalogue.count() == 0


@pytest.mark.parametrize("lost", ["", "oci-layout", "index.json"])
def test_a_store_that_is_not_there_is_no_empty_store(
    catalogue: Catalogue, store: Layout, tmp_path: Path, lost: str
) -> None:
    build(store, tmp_path, "1.0.0")
    rebuild(catalogue, store)
    (store.path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(StoreDamaged, match=f"{store.path} is no store now.*mount or restore"):
        rebuild(catalogue, store)
    assert catalogue.count() == 1


def test_a_store_that_is_not_there_keeps_the_claims_of_what_was_on_its_way(catalogue: Catalogue, store: Layout) -> None:
    catalogue.register(describe("tumour"), digest("pushed"), 10, store.location, who="pusher")
    with pytest.raises(StoreDamaged, match="no store now"):
        rebuild(catalogue, store)
    assert catalogue.count() == 1


def test_a_store_from_which_all_was_deleted_is_an_empty_store(
    catalogue: Catalogue, store: Layout, tmp_path: Path
) -> None:
    build(store, tmp_path, "1.0.0")
    rebuild(catalogue, store)
    store.delete("tumour", "1.0.0")
    assert rebuild(catalogue, store).removed == ("tumour:1.0.0",)


def test_of_some_models_only_their_versions_are_added_and_let_go(
    catalogue: Catalogue, store: Layout, tmp_path: Path
) -> None:
    for model in ("tumour", "other"):
        build(store, tmp_path, "1.0.0", model=model)
        catalogue.register(describe(model, "0.9.0"), digest(model), 10, store.location, who="builder")
    done = catalogue.rebuild(store, who="rebuilder", models=["tumour"], claim_period=timedelta(0))
    assert (done.added, done.removed) == (("tumour:1.0.0",), ("tumour:0.9.0",))
    assert [(each.model, each.version) for each in catalogue.find()] == [("other", "0.9.0"), ("tumour", "1.0.0")]


def test_a_version_with_other_bytes_than_the_store_has_is_replaced(
    catalogue: Catalogue, store: Layout, tmp_path: Path
) -> None:
    catalogue.register(describe("tumour"), digest("lost"), 10, store.location, who="builder")
    catalogue.promote("tumour", "1.0.0", who="ada")
    stored = build(store, tmp_path, "1.0.0")
    assert rebuild(catalogue, store).replaced == ("tumour:1.0.0",)
    record = catalogue.show("tumour", "1.0.0")
    assert (record.summary.digest, record.summary.stage) == (stored, Stage.DEVELOPMENT)
    assert [step.who for step in record.history] == ["rebuilder"]


def test_versions_of_other_stores_are_left_alone(catalogue: Catalogue, store: Layout, tmp_path: Path) -> None:
    catalogue.register(describe("elsewhere"), digest("e"), 10, "oci://registry.example/models", who="builder")
    both = build(store, tmp_path, "1.0.0")
    catalogue.register(describe("tumour"), both, 7, "oci://registry.example/models", who="builder")
    assert rebuild(catalogue, store).kept == ("tumour:1.0.0",)
    assert len(catalogue.show("tumour", "1.0.0").summary.stores) == 2
    store.delete("tumour", "1.0.0")
    assert rebuild(catalogue, store) == NOTHING
    assert catalogue.show("tumour", "1.0.0").summary.stores == ("oci://registry.example/models",)
    assert catalogue.count() == 2


def test_two_stores_with_other_bytes_for_one_version_are_a_fault(
    catalogue: Catalogue, store: Layout, tmp_path: Path
) -> None:
    stored = build(store, tmp_path, "1.0.0")
    catalogue.register(describe("tumour"), digest("other"), 10, "oci://registry.example/models", who="builder")
    [fault] = rebuild(catalogue, store).faults
    assert fault.startswith(f"tumour:1.0.0: {store.location} has {stored}, ")
    assert digest("other") in fault
    assert catalogue.show("tumour", "1.0.0").summary.digest == digest("other")


def test_an_artifact_that_cannot_be_read_is_a_fault_and_the_others_are_taken(
    catalogue: Catalogue, store: Layout, tmp_path: Path
) -> None:
    harmed = build(store, tmp_path, "1.0.0", b"one")
    build(store, tmp_path, "1.1.0", b"other")
    manifest = tmp_path / "store" / "blobs" / "sha256" / harmed.removeprefix("sha256:")
    manifest.write_bytes(manifest.read_bytes() + b" ")
    done = rebuild(catalogue, store)
    assert done.added == ("tumour:1.1.0",)
    [fault] = done.faults
    assert fault.startswith("tumour:1.0.0: ")
    assert harmed in fault


def test_a_store_that_cannot_be_listed_changes_nothing(catalogue: Catalogue, store: Layout, tmp_path: Path) -> None:
    build(store, tmp_path, "1.0.0")
    rebuild(catalogue, store)
    (tmp_path / "store" / "index.json").write_text("[]")
    with pytest.raises(StoreDamaged):
        rebuild(catalogue, store)
    assert catalogue.count() == 1
