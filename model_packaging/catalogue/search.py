"""Finds versions by a query, and reads what listings show of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from model_packaging.catalogue.query import OPERATORS, LabelCondition, MetricCondition, Query, Sort
from model_packaging.catalogue.records import VersionSummary
from model_packaging.catalogue.tables import Deployment, Label, Location, Result, Version

ROWS_AT_ONCE = 500
"""Of values named in one statement: every database takes that many."""

Statement = Select[*tuple[Any, ...]]

_SUMMARY: tuple[Any, ...] = (
    Version.model, Version.version, Version.digest, Version.stage, Version.size_bytes, Version.created,
    Version.registered, Version.registered_by, Version.git_commit, Version.git_branch, Version.git_dirty,
    Version.framework, Version.framework_version, Version.licence, Version.author, Version.pickled,
)  # fmt: skip


def find(connection: Connection, query: Query) -> list[VersionSummary]:
    """The versions that the query asks for, in its order."""
    return summaries(connection, connection.execute(page(query)).all())


def count(connection: Connection, query: Query) -> int:
    """How many versions the query asks for, whatever its limit and offset."""
    return connection.scalar(select(func.count()).select_from(Version).where(*_conditions(query))) or 0


def page(query: Query) -> Statement:
    """The statement that finds a query's versions."""
    statement = _sorted(select(Version.id, *_SUMMARY).where(*_conditions(query)), query.sort)
    if query.limit is None and query.offset:
        # MySQL and SQLite know no offset without a limit.
        statement = statement.limit(2**63 - 1)
    return statement.limit(query.limit).offset(query.offset) if query.limit else statement.offset(query.offset or None)


def summaries(connection: Connection, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[VersionSummary]:
    """Completes rows that begin with `Version.id` and go on as a summary does."""
    labels: defaultdict[int, dict[str, str]] = defaultdict(dict)
    metrics: defaultdict[int, defaultdict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    stores: defaultdict[int, list[str]] = defaultdict(list)
    for ids in in_parts([row.id for row in rows]):
        for identifier, name, value in connection.execute(
            select(Label.version_id, Label.name, Label.value).where(Label.version_id.in_(ids)).order_by(Label.name)
        ):
            labels[identifier][name] = value
        for identifier, dataset, metric, number in connection.execute(
            select(Result.version_id, Result.dataset, Result.metric, Result.value)
            .where(Result.version_id.in_(ids), Result.latest)
            .order_by(Result.dataset, Result.metric)
        ):
            metrics[identifier][dataset][metric] = number
        for identifier, store in connection.execute(
            select(Location.version_id, Location.store).where(Location.version_id.in_(ids)).order_by(Location.store)
        ):
            stores[identifier].append(store)
    return [
        VersionSummary(*row[1:], labels=labels[row.id], metrics=dict(metrics[row.id]), stores=tuple(stores[row.id]))
        for row in rows
    ]


def summary_columns() -> tuple[Any, ...]:
    """What `summaries` completes."""
    return (Version.id, *_SUMMARY)


def in_parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), ROWS_AT_ONCE):
        yield values[start : start + ROWS_AT_ONCE]


def _conditions(query: Query) -> Iterator[ColumnElement[bool]]:
    if query.model is not None:
        yield Version.model == query.model
    if len(query.stages) == 1:
        yield Version.stage == query.stages[0]
    elif query.stages:
        yield Version.stage.in_(query.stages)
    if query.commit is not None:
        # A prefix as a range, which every database finds in an index; g comes after every digit.
        yield Version.git_commit.between(query.commit, f"{query.commit}g")
    for word in (query.text or "").casefold().split():
        yield Version.searched.contains(word, autoescape=True)
    for label in query.labels:
        yield Version.id.in_(_labelled(label))
    for condition in query.metrics:
        yield Version.id.in_(_measured(condition))
    if query.environment is not None:
        yield Version.id.in_(
            select(Deployment.version_id).where(
                Deployment.environment == query.environment, Deployment.latest, ~Deployment.removed
            )
        )


def _labelled(condition: LabelCondition) -> Select[int]:
    having = select(Label.version_id).where(Label.name == condition.name)
    return having if condition.value is None else having.where(Label.value == condition.value)


def _measured(condition: MetricCondition) -> Select[int]:
    compare = OPERATORS[condition.operator]
    having = select(Result.version_id).where(
        Result.metric == condition.metric, Result.latest, compare(Result.value, condition.value)
    )
    return having if condition.dataset is None else having.where(Result.dataset == condition.dataset)


def _sorted(statement: Statement, sort: Sort) -> Statement:
    match sort.by:
        case "registered":
            keys: list[Any] = [Version.registered, Version.id]
        case "size":
            keys = [Version.size_bytes, Version.id]
        case "metric":
            return _sorted_by_metric(statement, sort)
        case _:
            keys = [Version.model, Version.precedence]
    return statement.order_by(*(key.desc() if sort.descending else key for key in keys))


def _sorted_by_metric(statement: Statement, sort: Sort) -> Statement:
    first = (func.max if sort.descending else func.min)(Result.value).label("value")
    values = select(Result.version_id, first).where(Result.metric == sort.metric, Result.latest)
    if sort.dataset is not None:
        values = values.where(Result.dataset == sort.dataset)
    by_version = values.group_by(Result.version_id).subquery()
    value = by_version.c.value
    return statement.outerjoin(by_version, by_version.c.version_id == Version.id).order_by(
        value.is_(None), value.desc() if sort.descending else value, Version.model, Version.precedence
    )
