"""Reads all that the catalogue knows of one version."""

from __future__ import annotations

from sqlalchemy import Connection, select

from model_packaging.catalogue.records import (
    ApprovalRecord,
    DeploymentRecord,
    ResultRecord,
    StageChangeRecord,
    VersionRecord,
)
from model_packaging.catalogue.registration import unknown
from model_packaging.catalogue.search import summaries, summary_columns
from model_packaging.catalogue.tables import (
    Approval,
    Deployment,
    DescriptionDocument,
    Parent,
    Result,
    StageChange,
    Version,
)
from model_packaging.errors import CatalogueFailed
from model_packaging.manifest import Description


def show(connection: Connection, model: str, version: str) -> VersionRecord:
    """All that is known of a version.

    Raises:
        NotInCatalogue
        CatalogueFailed: its description can't be read, as one that a newer version of this code wrote.
    """
    row = connection.execute(
        select(*summary_columns()).where(Version.model == model, Version.version == version)
    ).one_or_none()
    if row is None:
        raise unknown(connection, model, version)
    key: int = row.id
    document = connection.scalar(select(DescriptionDocument.document).where(DescriptionDocument.version_id == key))
    steps = select(
        StageChange.from_stage, StageChange.to_stage, StageChange.who, StageChange.at, StageChange.why
    ).where(StageChange.version_id == key)
    approvals = select(Approval.who, Approval.at, Approval.why, Approval.counts).where(Approval.version_id == key)
    results = select(Result.dataset, Result.metric, Result.value, Result.who, Result.at, Result.latest).where(
        Result.version_id == key
    )
    deployments = select(
        Deployment.environment, Deployment.stack, Deployment.revision, Deployment.weight, Deployment.removed,
        Deployment.who, Deployment.at, Deployment.latest,
    ).where(Deployment.version_id == key)  # fmt: skip
    parents = select(Parent.reference).where(Parent.version_id == key).order_by(Parent.position)
    children = (
        select(Version.model, Version.version)
        .join(Parent, Parent.version_id == Version.id)
        .where(Parent.reference == f"{model}:{version}")
        .order_by(Version.model, Version.precedence)
    )
    return VersionRecord(
        summary=summaries(connection, [row])[0],
        description=_description(model, version, document),
        history=tuple(StageChangeRecord(*each) for each in connection.execute(steps.order_by(StageChange.id))),
        approvals=tuple(ApprovalRecord(*each) for each in connection.execute(approvals.order_by(Approval.id))),
        results=tuple(ResultRecord(*each) for each in connection.execute(results.order_by(Result.id))),
        deployments=tuple(DeploymentRecord(*each) for each in connection.execute(deployments.order_by(Deployment.id))),
        parents=tuple(connection.scalars(parents)),
        children=tuple(f"{child.model}:{child.version}" for child in connection.execute(children)),
    )


def _description(model: str, version: str, document: str | None) -> Description:
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        return Description.model_validate_json(document or "")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CatalogueFailed(
            f"the catalogue's description of {model} {version} can't be read: {place}: {first['msg']}; "
            "update lepton if a newer one registered it, or else rebuild the catalogue from the store"
        ) from None
