"""Versions come into the catalogue once, whoever brings them, and say there what their artifacts say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.catalogue.query import Query
from model_packaging.errors import NotInCatalogue, RecordRefused, VersionExists
from model_packaging.lifecycle import Stage
from tests.catalogue.conftest import NewDatabase
from tests.catalogue.versions import COMMIT, SIGNATURE, STORE, describe, digest, register
from tests.processes import at_once

CLAIMANTS = 4
CLAIMED_VERSIONS = 10


def test_a_registered_version_is_shown_as_its_artifact_describes_it(catalogue: Catalogue, model: str) -> None:
    description = describe(
        model,
        "2.0.0-rc.1",
        git={"commit": COMMIT, "branch": "main", "dirty": True},
        signature=SIGNATURE,
        samples=[{"prompt": "ünïcode ☂ \0"}],
        author="The Vision Team",
        labels={"team": "vision", "Team": "other"},
        server="mlserver",
        resources={"memory": "2Gi", "gpu": {"count": 2}},
    )
    description = description.model_copy(update={"created": "2026-01-02T03:04:05Z", "pickles": ("a.pkl",)})
    assert catalogue.register(description, digest("a"), 2**40, STORE, who="builder")
    shown = catalogue.show(model, "2.0.0-rc.1")
    assert shown.description == description
    summary = shown.summary
    assert (summary.digest, summary.size_bytes, summary.stage) == (digest("a"), 2**40, Stage.DEVELOPMENT)
    assert (summary.git_commit, summary.git_branch, summary.git_dirty) == (COMMIT, "main", True)
    assert (summary.framework, summary.framework_version) == ("scikit-learn", "1.9.1")
    assert (summary.licence, summary.author, summary.pickled) == ("Apache-2.0", "The Vision Team", True)
    assert summary.labels == {"team": "vision", "Team": "other"}
    assert summary.stores == (STORE,)
    assert summary.created == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert summary.registered_by == "builder"


def test_times_are_kept_to_the_microsecond(new_database: NewDatabase, model: str) -> None:
    moment = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    with Catalogue(new_database(), clock=lambda: moment) as catalogue:
        register(catalogue, model)
        assert catalogue.show(model, "1.0.0").summary.registered == moment


def test_registering_the_same_again_changes_nothing(catalogue: Catalogue, model: str) -> None:
    description = describe(model, evaluation={"accuracy": 0.9})
    assert catalogue.register(description, digest("a"), 10, STORE, who="builder")
    catalogue.promote(model, "1.0.0", who="builder")
    before = catalogue.show(model, "1.0.0")
    assert not catalogue.register(description, digest("a"), 10, STORE, who="another")
    assert catalogue.show(model, "1.0.0") == before


def test_the_same_version_with_another_digest_is_refused(catalogue: Catalogue, model: str) -> None:
    stored = register(catalogue, model)
    with pytest.raises(VersionExists, match=rf"catalogue .* already has {model} 1\.0\.0") as refused:
        catalogue.register(describe(model), digest("other"), 10, STORE, who="builder")
    assert (refused.value.stored, refused.value.offered) == (stored, digest("other"))
    assert catalogue.show(model, "1.0.0").summary.digest == stored


def test_versions_that_differ_in_case_are_different(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model, "1.0.0-rc")
    register(catalogue, model, "1.0.0-RC")
    assert [each.version for each in catalogue.find(Query(model=model))] == ["1.0.0-RC", "1.0.0-rc"]


def test_of_processes_that_claim_a_version_at_once_one_has_it(new_database: NewDatabase) -> None:
    url = new_database()
    Catalogue(url).close()

    def claim(claimant: int, together: Callable[[], object]) -> list[str]:
        """The digest that each version has, as far as this claimant knows."""
        known: list[str] = []
        with Catalogue(url) as catalogue:
            for number in range(CLAIMED_VERSIONS):
                description = describe("claimed", f"1.0.{number}", labels={"by": str(claimant)})
                together()
                try:
                    assert catalogue.register(description, digest(claimant), 10, STORE, who="builder")
                    known.append(digest(claimant))
                except VersionExists as refused:
                    known.append(refused.stored)
        return known

    said = at_once(CLAIMANTS, claim)
    with Catalogue(url) as catalogue:
        found = catalogue.find()
    assert [[version.digest for version in found]] * CLAIMANTS == said
    # Whole, with what the same claimant said of it.
    assert [digest(version.labels["by"]) for version in found] == [version.digest for version in found]


def test_a_version_is_noted_in_every_store_that_has_it(catalogue: Catalogue, model: str) -> None:
    content = register(catalogue, model)
    assert not catalogue.register(describe(model), content, 1000, "oci://registry.example/models", who="copier")
    assert catalogue.show(model, "1.0.0").summary.stores == (STORE, "oci://registry.example/models")


def test_a_version_is_forgotten_when_the_last_store_that_has_it_deletes_it(catalogue: Catalogue, model: str) -> None:
    content = register(catalogue, model, labels={"team": "vision"}, evaluation={"accuracy": 0.9})
    catalogue.register(describe(model), content, 1000, "/other", who="copier")
    assert not catalogue.forget(model, "1.0.0", STORE)
    assert catalogue.show(model, "1.0.0").summary.stores == ("/other",)
    assert catalogue.forget(model, "1.0.0", "/other")
    assert catalogue.find(Query(model=model)) == []
    # All of it is gone: the same version starts anew.
    register(catalogue, model)
    assert catalogue.show(model, "1.0.0").results == ()


def test_a_version_that_is_not_there_is_named_with_the_latest_that_are(catalogue: Catalogue, model: str) -> None:
    for version in ("1.9.0", "1.10.0"):
        register(catalogue, model, version)
    with pytest.raises(NotInCatalogue, match=rf"no {model} 3\.0\.0; the latest of {model} are 1\.10\.0, 1\.9\.0"):
        catalogue.show(model, "3.0.0")
    with pytest.raises(NotInCatalogue, match="no version of nothing"):
        catalogue.forget("nothing", "1.0.0")


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ({"labels": {"team": "v" * 256}}, "labels.team.*256 characters.*at most 255"),
        ({"labels": {"t" * 256: "v"}}, "labels.*256 characters"),
        ({"parents": ["p" * 513]}, "parents.*513 characters.*at most 512"),
        ({"evaluation": {"m" * 256: 1.0}}, "evaluation.*256 characters"),
        ({"author": "a\0b"}, "author.*NUL"),
    ],
)
def test_what_the_catalogue_cannot_hold_is_refused_by_name(
    catalogue: Catalogue, model: str, package: dict[str, Any], text: str
) -> None:
    with pytest.raises(RecordRefused, match=text):
        catalogue.register(describe(model, **package), digest("a"), 10, STORE, who="builder")
    assert catalogue.find(Query(model=model)) == []


@pytest.mark.parametrize("size", [-1, 2**63])
def test_a_size_that_no_artifact_has_is_refused(catalogue: Catalogue, model: str, size: int) -> None:
    with pytest.raises(RecordRefused, match=f"given {size} bytes"):
        catalogue.register(describe(model), digest("a"), size, STORE, who="builder")


@pytest.mark.parametrize(
    "created", ["yesterday", "2026-01-02", "2026-01-02T03:04:05", "0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z"]
)
def test_an_artifact_that_says_no_time_can_be_registered_all_the_same(
    catalogue: Catalogue, model: str, created: str
) -> None:
    description = describe(model).model_copy(update={"created": created})
    assert catalogue.register(description, digest("a"), 10, STORE, who="builder")
    record = catalogue.show(model, "1.0.0")
    assert record.summary.created is None
    assert record.description.created == created


def test_parents_and_children_are_found_from_each_other(catalogue: Catalogue, model: str) -> None:
    register(catalogue, model, "1.0.0", parents=["meta-llama/Llama-3.1-8B"])
    register(catalogue, model, "1.10.0", parents=[f"{model}:1.0.0", "other"])
    register(catalogue, model, "1.9.0", parents=[f"{model}:1.0.0"])
    assert catalogue.show(model, "1.0.0").parents == ("meta-llama/Llama-3.1-8B",)
    assert catalogue.show(model, "1.0.0").children == (f"{model}:1.9.0", f"{model}:1.10.0")
    assert catalogue.show(model, "1.10.0").parents == (f"{model}:1.0.0", "other")
