"""SQLite finds versions by indexes, and so at 50,000 versions in much the same time as at 100."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection
from sqlalchemy.dialects import sqlite

from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.catalogue.database import Database
from model_packaging.catalogue.query import LabelCondition, MetricCondition, Query, Sort
from model_packaging.catalogue.search import page
from model_packaging.lifecycle import Stage
from tests.catalogue.versions import register


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path_factory.mktemp('plans')}/catalogue.sqlite"
    with Catalogue(url) as catalogue:
        for number in range(20):
            register(catalogue, f"model-{number}", labels={"team": "vision"}, evaluation={"accuracy": number / 20})
    with Database(url) as opened:
        yield opened


def plan(database: Database, query: Query) -> list[str]:
    """SQLite's own account of how it finds a query's versions."""
    compiled = page(query).compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})

    def explain(connection: Connection) -> list[str]:
        return [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]

    return database.read(explain)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(limit=50), "ix_versions_model_precedence"),
        (Query(model="model-1", limit=50), "ix_versions_model_precedence"),
        (Query(stages=(Stage.RELEASED,), limit=50), "ix_versions_stage_model_precedence"),
        (Query(model="model-1", stages=(Stage.RELEASED,), limit=50), "ix_versions_stage_model_precedence"),
        (Query(commit="abc", limit=50), "ix_versions_git_commit"),
        (Query(labels=(LabelCondition("team", "vision"),), limit=50), "ix_labels_name_value_version_id"),
        (Query(labels=(LabelCondition("team", None),), limit=50), "ix_labels_name_value_version_id"),
        (Query(metrics=(MetricCondition.parse("accuracy>=0.9"),)), "ix_results_metric_latest_value_version_id"),
        (Query(environment="prod", limit=50), "ix_deployments_environment_latest_version_id"),
        (Query(sort=Sort("registered", descending=True), limit=50), "ix_versions_registered"),
        (Query(sort=Sort("size"), limit=50), "ix_versions_size_bytes"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_query_uses_an_index(database: Database, query: Query, index: str) -> None:
    steps = plan(database, query)
    assert any(f"INDEX {index}" in step for step in steps), steps
    assert not [step for step in steps if step.startswith("SCAN") and "INDEX" not in step], steps


@pytest.mark.parametrize(
    "query",
    [
        Query(limit=50),
        Query(model="model-1", limit=50),
        Query(stages=(Stage.RELEASED,), limit=50),
        Query(sort=Sort("name", descending=True), limit=50),
        Query(sort=Sort("registered", descending=True), limit=50),
    ],
    ids=repr,
)
def test_the_first_page_is_found_without_sorting_all_versions(database: Database, query: Query) -> None:
    assert not [step for step in plan(database, query) if "TEMP B-TREE" in step]
