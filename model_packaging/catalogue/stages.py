"""Moves versions through their lifecycle, with the history of who did it, when and why."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from model_packaging.catalogue.records import StageChangeRecord
from model_packaging.catalogue.registration import fitting, locked
from model_packaging.catalogue.tables import NAME_LENGTH, Approval, Deployment, Result, StageChange, Version
from model_packaging.errors import ApprovalRefused, TransitionRefused
from model_packaging.lifecycle import PROMOTION, Evidence, Share, Stage, check_transition, same_person


def change_stage(
    connection: Connection,
    model: str,
    version: str,
    target: Stage | None,
    *,
    who: str,
    why: str,
    now: datetime,
    approvals: int,
    shares: Collection[Share] | None,
) -> StageChangeRecord:
    """Moves a version to `target`, or, without one, one step of its promotion.

    Raises:
        NotInCatalogue
        TransitionRefused: with every condition that isn't met.
        RecordRefused: nobody is named, or too long a name.
    """
    who = fitting("who", who, NAME_LENGTH).strip()
    row = locked(connection, model, version)
    if target is None:
        target = PROMOTION.get(row.stage)
        if target is None:
            how = "a promotion ends at released; what follows is to deprecate it, and to retire it"
            raise TransitionRefused(f"{model} {version}", row.stage, "a further stage by promotion", [how])
    evidence = Evidence(
        metrics=set(connection.scalars(select(Result.metric).where(Result.version_id == row.id))),
        makers=[name for name in (row.author, row.registered_by) if name is not None],
        approvers=set(connection.scalars(select(Approval.who).where(Approval.version_id == row.id, Approval.counts))),
        shares=_recorded_shares(connection, row.id) if shares is None else shares,
    )
    check_transition(f"{model} {version}", row.stage, target, evidence, who=who, approvals=approvals)
    connection.execute(update(Version).where(Version.id == row.id).values(stage=target))
    step = StageChangeRecord(row.stage, target, who, now, why)
    connection.execute(
        insert(StageChange).values(version_id=row.id, from_stage=row.stage, to_stage=target, who=who, at=now, why=why)
    )
    if target == Stage.DEVELOPMENT:
        connection.execute(update(Approval).where(Approval.version_id == row.id).values(counts=False))
    return step


def approve(connection: Connection, model: str, version: str, *, who: str, why: str, now: datetime) -> bool:
    """Notes that somebody approves of a version's release; False where they had already.

    Raises:
        NotInCatalogue
        ApprovalRefused: they made or registered the version, or it is retired.
        RecordRefused: nobody is named, or too long a name.
    """
    who = fitting("who", who, NAME_LENGTH).strip()
    row = locked(connection, model, version)
    if row.stage == Stage.RETIRED:
        raise ApprovalRefused(f"{model} {version} is retired, which is final; approve a version that can be released")
    for maker, role in ((row.author, "its author"), (row.registered_by, "who registered it")):
        if maker is not None and same_person(maker, who):
            raise ApprovalRefused(f"{model} {version}: {who} is {role}; an approval is another person's")
    given = connection.scalars(select(Approval.who).where(Approval.version_id == row.id, Approval.counts))
    if any(same_person(name, who) for name in given.all()):
        return False
    connection.execute(insert(Approval).values(version_id=row.id, who=who, at=now, why=why, counts=True))
    return True


def _recorded_shares(connection: Connection, version_id: int) -> list[Share]:
    found = connection.execute(
        select(Deployment.environment, Deployment.stack, Deployment.weight).where(
            Deployment.version_id == version_id, Deployment.latest, ~Deployment.removed, Deployment.weight > 0
        )
    )
    return [Share(*row) for row in found]
