"""A version's name is claimed in the catalogue before any store has it: whoever is second is refused, everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.catalogue.claims import claim_for
from model_packaging.errors import NotInCatalogue, NotInStore, VersionExists
from model_packaging.stores.copying import copy_version
from model_packaging.stores.layout import Layout
from tests.packaging.model_folders import build, make_folder
from tests.packaging.registry_server import Server, serving
from tests.processes import at_once


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'catalogue.sqlite'}"
    Catalogue(url).close()
    return url


def test_of_pushes_to_a_registry_at_once_from_several_machines_one_has_the_version(
    server: Server, url: str, tmp_path: Path
) -> None:
    folders = [make_folder(tmp_path / str(number), {"model.bin": bytes([number])}) for number in range(3)]
    versions = [f"1.0.{number}" for number in range(5)]

    def push(number: int, wait: Callable[[], object]) -> list[str]:
        won = []
        # Machines share no lock.
        environ = {**server.environ, "XDG_CACHE_HOME": str(tmp_path / f"cache-{number}")}
        with Catalogue(url) as catalogue:
            store = server.store("claims", claim=claim_for(catalogue, str(number)), environ=environ)
            for version in versions:
                wait()
                try:
                    won.append(f"{version} {build(folders[number], store, version)}")
                except VersionExists:
                    continue
        return won

    won = [one for each in at_once(3, push) for one in each]

    assert sorted(won) == [f"{entry.version} {entry.digest}" for entry in server.store("claims").entries("tumour")]
    assert len(won) == len(versions)


def test_a_name_that_another_store_has_with_other_bytes_is_refused(url: str, tmp_path: Path) -> None:
    with Catalogue(url) as catalogue:
        claim = claim_for(catalogue, "ada")
        build(make_folder(tmp_path / "one", {"model.bin": b"1"}), Layout(tmp_path / "here", claim=claim))
        there = Layout(tmp_path / "there", claim=claim)
        with pytest.raises(VersionExists, match="the catalogue"):
            build(make_folder(tmp_path / "other", {"model.bin": b"2"}), there)
    with pytest.raises(NotInStore):
        there.resolve("tumour", "1.0.0")


def test_a_name_that_the_store_itself_has_with_other_bytes_is_not_claimed(url: str, tmp_path: Path) -> None:
    build(make_folder(tmp_path / "one", {"model.bin": b"1"}), Layout(tmp_path / "store"))
    with Catalogue(url) as catalogue:
        store = Layout(tmp_path / "store", claim=claim_for(catalogue, "ada"))
        with pytest.raises(VersionExists):
            build(make_folder(tmp_path / "other", {"model.bin": b"2"}), store)
        with pytest.raises(NotInCatalogue):
            catalogue.show("tumour", "1.0.0")


def test_a_copy_is_noted_to_be_in_both_stores(url: str, tmp_path: Path) -> None:
    with Catalogue(url) as catalogue:
        claim = claim_for(catalogue, "ada")
        here, there = Layout(tmp_path / "here", claim=claim), Layout(tmp_path / "there", claim=claim)
        build(make_folder(tmp_path / "one", {"model.bin": b"1"}), here)
        copy_version(here, there, "tumour", "1.0.0")
        assert set(catalogue.show("tumour", "1.0.0").summary.stores) == {here.location, there.location}
