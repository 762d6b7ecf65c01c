"""Notes what became of versions: what evaluations measured, and where they are deployed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from infra.settings.loading import parse_value
from infra.settings.values import Weight
from model_packaging.catalogue.registration import PACKAGE_DATASET, fitting, locked
from model_packaging.catalogue.tables import NAME_LENGTH, Deployment, Result, Version
from model_packaging.errors import RecordRefused


def record_evaluation(
    connection: Connection,
    model: str,
    version: str,
    metrics: Mapping[str, float],
    *,
    dataset: str,
    who: str,
    at: datetime,
) -> None:
    """Notes the metrics that an evaluation on a data set found; all those from before stay as history.

    Raises:
        NotInCatalogue
        RecordRefused: there is no metric, or a value that is not finite, or too long a name, or the data set has the
            name that stands for what packages state.
    """
    if dataset == PACKAGE_DATASET:
        raise RecordRefused(
            f"{model} {version}: the data set {dataset!r} stands for what package.yaml states; give this one another "
            "name"
        )
    if not metrics:
        raise RecordRefused(f"{model} {version}: an evaluation on {dataset!r} has no metric; give at least one")
    for metric, value in metrics.items():
        fitting("metric", metric, NAME_LENGTH)
        if not math.isfinite(value):
            raise RecordRefused(f"{model} {version}: metric {metric!r} is {value}; the catalogue holds finite numbers")
    identity = {"dataset": fitting("dataset", dataset, NAME_LENGTH), "who": fitting("who", who, NAME_LENGTH)}
    version_id = locked(connection, model, version).id
    # Metrics that this evaluation lacks too: what is the latest is of one run.
    connection.execute(
        update(Result).where(Result.version_id == version_id, Result.dataset == dataset).values(latest=False)
    )
    same = {"version_id": version_id, "at": at, "latest": True, **identity}
    connection.execute(
        insert(Result), [{"metric": metric, "value": float(value), **same} for metric, value in metrics.items()]
    )


def record_deployment(
    connection: Connection,
    model: str,
    version: str,
    *,
    environment: str,
    stack: str,
    revision: int | None,
    weight: int | None,
    removed: bool,
    who: str,
    at: datetime,
) -> bool:
    """Notes what a version is in a stack from a revision on; False where that is known already.

    Raises:
        NotInCatalogue
        SettingsError: the weight is none.
        RecordRefused: too long a name.
    """
    if weight is not None:
        parse_value(Weight, weight, f"the weight of {model} {version}")
    who = fitting("who", who, NAME_LENGTH)
    environment, stack = fitting("environment", environment, NAME_LENGTH), fitting("stack", stack, NAME_LENGTH)
    version_id = locked(connection, model, version).id
    here = (Deployment.version_id == version_id, Deployment.environment == environment, Deployment.stack == stack)
    last = connection.execute(
        select(Deployment.revision, Deployment.weight, Deployment.removed).where(*here, Deployment.latest)
    ).one_or_none()
    if last is not None and tuple(last) == (revision, weight, removed):
        return False
    connection.execute(update(Deployment).where(*here).values(latest=False))
    connection.execute(
        insert(Deployment).values(
            version_id=version_id,
            environment=environment,
            stack=stack,
            revision=revision,
            weight=weight,
            removed=removed,
            who=who,
            at=at,
            latest=True,
        )
    )
    return True


def record_weights(
    connection: Connection,
    model: str,
    weights: Mapping[str, int],
    *,
    environment: str,
    stack: str,
    revision: int | None,
    who: str,
    at: datetime,
) -> None:
    """Notes a revision of an endpoint stack: version -> weight. What it had before and has no more is removed.

    Raises:
        NotInCatalogue, SettingsError, RecordRefused: as `record_deployment`; nothing is noted then.
    """
    before = connection.scalars(
        select(Version.version)
        .join(Deployment, Deployment.version_id == Version.id)
        .where(
            Version.model == model,
            Deployment.environment == environment,
            Deployment.stack == stack,
            Deployment.latest,
            ~Deployment.removed,
        )
    ).all()
    # In one order everywhere: two that record the same endpoint wait for each other, and don't lock each other out.
    for version in sorted(weights.keys() | set(before)):
        record_deployment(
            connection,
            model,
            version,
            environment=environment,
            stack=stack,
            revision=revision,
            weight=weights.get(version),
            removed=version not in weights,
            who=who,
            at=at,
        )
