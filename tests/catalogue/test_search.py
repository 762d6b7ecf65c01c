"""Versions are found by what they are and what became of them, in the order that is asked for."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.catalogue.query import LabelCondition, MetricCondition, Query, Sort
from model_packaging.errors import QueryRefused
from model_packaging.lifecycle import Stage
from tests.catalogue.conftest import NewDatabase
from tests.catalogue.versions import STORE, describe, digest

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
COMMITS = {"1.0.0": "a" * 40, "1.9.0": "ab" + "c" * 38, "1.10.0": "ab" + "d" * 38}
SIZES = {"1.0.0": 30, "1.9.0": 10, "1.10.0": 20, "2.0.0-rc.1": 40}


@pytest.fixture(scope="module")
def catalogue(new_database: NewDatabase) -> Catalogue:
    """Holds versions of two models that differ in what one can ask for; nothing changes it."""
    moments = (FIRST + timedelta(minutes=minute) for minute in range(100))
    opened = Catalogue(new_database(), clock=lambda: next(moments))
    said = {
        "1.0.0": {"labels": {"team": "vision"}, "licence": "MIT", "author": "Zoë Ärlig"},
        "1.9.0": {"labels": {"team": "speech", "tier": "gold"}, "training_data": "s3://bucket/100%_real"},
        "1.10.0": {"labels": {"team": "Vision"}},
        "2.0.0-rc.1": {"parents": ["base-model"]},
    }
    for version in ("1.10.0", "2.0.0-rc.1", "1.0.0", "1.9.0"):
        commit = COMMITS.get(version)
        git = commit and {"commit": commit, "branch": "main", "dirty": False}
        description = describe("alpha", version, git=git or None, **said[version])
        opened.register(description, digest(version), SIZES[version], STORE, who="builder")
    opened.register(describe("beta", labels={"team": "vision"}), digest("beta"), 5, STORE, who="builder")
    for version, accuracy in (("1.0.0", 0.8), ("1.9.0", 0.95), ("1.10.0", 0.9)):
        opened.record_evaluation("alpha", version, {"accuracy": accuracy}, dataset="holdout", who="tester")
    opened.record_evaluation("alpha", "1.0.0", {"accuracy": 0.99, "loss": 0.5}, dataset="train", who="tester")
    opened.record_evaluation("alpha", "1.10.0", {"accuracy": 0.97}, dataset="holdout", who="tester")
    opened.record_evaluation("alpha", "1.10.0", {"accuracy": 0.91}, dataset="holdout", who="tester")
    for version in ("1.9.0", "1.0.0"):
        opened.promote("alpha", version, who="tester")
    opened.promote("alpha", "1.9.0", who="tester")
    opened.record_deployment("alpha", "1.9.0", environment="prod", stack="prod.alpha-1.9.0", who="ops")
    opened.record_deployment("alpha", "1.0.0", environment="prod", stack="prod.alpha-1.0.0", who="ops")
    opened.record_deployment("alpha", "1.0.0", environment="prod", stack="prod.alpha-1.0.0", removed=True, who="ops")
    return opened


@pytest.fixture(scope="module", autouse=True)
def closed(catalogue: Catalogue):
    yield
    catalogue.close()


def found(catalogue: Catalogue, query: Query) -> list[str]:
    return [f"{version.model}:{version.version}" for version in catalogue.find(query)]


def test_versions_are_listed_by_model_and_precedence(catalogue: Catalogue) -> None:
    listed = ["alpha:1.0.0", "alpha:1.9.0", "alpha:1.10.0", "alpha:2.0.0-rc.1", "beta:1.0.0"]
    assert found(catalogue, Query()) == listed


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(model="beta"), ["beta:1.0.0"]),
        (Query(model="alph"), []),
        (Query(stages=(Stage.RELEASED,)), ["alpha:1.9.0"]),
        (Query(stages=(Stage.RELEASED, Stage.TESTING)), ["alpha:1.0.0", "alpha:1.9.0"]),
        (Query(commit="ab"), ["alpha:1.9.0", "alpha:1.10.0"]),
        (Query(commit="abc"), ["alpha:1.9.0"]),
        (Query(commit=COMMITS["1.10.0"]), ["alpha:1.10.0"]),
        (Query(commit="b"), []),
        (Query(labels=(LabelCondition.parse("team=vision"),)), ["alpha:1.0.0", "beta:1.0.0"]),
        (Query(labels=(LabelCondition.parse("team"), LabelCondition.parse("tier = gold"))), ["alpha:1.9.0"]),
        (Query(labels=(LabelCondition.parse("team="),)), []),
        (Query(environment="prod"), ["alpha:1.9.0"]),
        (Query(environment="dev"), []),
        (Query(model="alpha", labels=(LabelCondition("team", "vision"),), commit="a"), ["alpha:1.0.0"]),
    ],
    ids=repr,
)
def test_a_query_finds_the_versions_that_have_all_it_asks_for(
    catalogue: Catalogue, query: Query, expected: list[str]
) -> None:
    assert found(catalogue, query) == expected
    assert catalogue.count(query) == len(expected)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("accuracy>=0.95", ["1.0.0", "1.9.0"]),
        ("accuracy@holdout >= 0.95", ["1.9.0"]),
        ("accuracy@holdout>0.95", []),
        ("accuracy@holdout<0.9", ["1.0.0"]),
        ("accuracy@holdout<=0.91", ["1.0.0", "1.10.0"]),
        ("accuracy@holdout=0.91", ["1.10.0"]),
        ("accuracy@holdout==9.1e-1", ["1.10.0"]),
        ("accuracy@holdout!=0.91", ["1.0.0", "1.9.0"]),
        # What was measured before counts no more.
        ("accuracy@holdout>0.96", []),
        ("loss<1", ["1.0.0"]),
        ("f1>0", []),
    ],
)
def test_a_condition_on_a_metric_looks_at_its_latest_value(
    catalogue: Catalogue, condition: str, expected: list[str]
) -> None:
    query = Query(model="alpha", metrics=(MetricCondition.parse(condition),))
    assert found(catalogue, query) == [f"alpha:{version}" for version in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mit", ["1.0.0"]),
        ("ZOË ärlig", ["1.0.0"]),
        ("apache vision", ["1.10.0"]),
        ("100%_real", ["1.9.0"]),
        ("100__real", []),
        ("base-model", ["2.0.0-rc.1"]),
        ("rc.1", ["2.0.0-rc.1"]),
        ("main", ["1.0.0", "1.9.0", "1.10.0"]),
        ("nowhere", []),
        (" ", ["1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]),
    ],
)
def test_words_are_found_in_any_case_and_taken_literally(catalogue: Catalogue, text: str, expected: list[str]) -> None:
    assert found(catalogue, Query(model="alpha", text=text)) == [f"alpha:{version}" for version in expected]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("name", ["1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]),
        ("-name", ["2.0.0-rc.1", "1.10.0", "1.9.0", "1.0.0"]),
        ("registered", ["1.10.0", "2.0.0-rc.1", "1.0.0", "1.9.0"]),
        ("-registered", ["1.9.0", "1.0.0", "2.0.0-rc.1", "1.10.0"]),
        ("size", ["1.9.0", "1.10.0", "1.0.0", "2.0.0-rc.1"]),
        ("-size", ["2.0.0-rc.1", "1.0.0", "1.10.0", "1.9.0"]),
        ("accuracy", ["1.0.0", "1.10.0", "1.9.0", "2.0.0-rc.1"]),
        ("-accuracy", ["1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]),
        ("-accuracy@holdout", ["1.9.0", "1.10.0", "1.0.0", "2.0.0-rc.1"]),
    ],
)
def test_versions_come_in_the_order_asked_for(catalogue: Catalogue, sort: str, expected: list[str]) -> None:
    query = Query(model="alpha", sort=Sort.parse(sort))
    assert found(catalogue, query) == [f"alpha:{version}" for version in expected]


def test_pages_add_up_to_the_whole(catalogue: Catalogue) -> None:
    pages = [found(catalogue, Query(limit=2, offset=offset)) for offset in (0, 2, 4, 6)]
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    assert list(itertools.chain.from_iterable(pages)) == found(catalogue, Query())
    assert found(catalogue, Query(offset=3)) == found(catalogue, Query())[3:]
    assert catalogue.count(Query(limit=2, offset=2)) == 5


def test_a_listing_shows_labels_and_the_latest_results_of_each_data_set(catalogue: Catalogue) -> None:
    shown = {version.version: version for version in catalogue.find(Query(model="alpha"))}
    assert shown["1.0.0"].metrics == {"holdout": {"accuracy": 0.8}, "train": {"accuracy": 0.99, "loss": 0.5}}
    assert shown["1.10.0"].metrics == {"holdout": {"accuracy": 0.91}}
    assert shown["1.9.0"].labels == {"team": "speech", "tier": "gold"}
    assert shown["2.0.0-rc.1"].labels == {}


@pytest.mark.parametrize(
    "given", ["", "accuracy", ">=0.9", "accuracy>=", "accuracy>=high", "accuracy>=nan", "accuracy@>1", "a>1>2", "a=>1"]
)
def test_a_condition_that_means_nothing_is_refused(given: str) -> None:
    with pytest.raises(QueryRefused, match="given"):
        MetricCondition.parse(given)


@pytest.mark.parametrize(
    "bad", [{"commit": "AB"}, {"commit": ""}, {"commit": "ab%"}, {"limit": 0}, {"limit": -1}, {"offset": -1}]
)
def test_a_query_that_can_find_nothing_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(QueryRefused, match=f"{next(iter(bad))}: given"):
        Query(**bad)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("given", ["", "-", "@holdout", "accuracy@"])
def test_an_order_by_nothing_is_refused(given: str) -> None:
    with pytest.raises(QueryRefused, match="given"):
        Sort.parse(given)


def test_a_label_condition_without_a_name_is_refused() -> None:
    with pytest.raises(QueryRefused, match="NAME=VALUE"):
        LabelCondition.parse("=vision")
