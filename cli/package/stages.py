"""Moves versions through their lifecycle: development, testing, released, deprecated, retired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.context import JsonOption
from cli.package.shared import (
    ByOption,
    CatalogueOption,
    VersionArgument,
    VersionName,
    WhyOption,
    open_catalogue,
    parse_name,
    who,
)

if TYPE_CHECKING:
    from model_packaging.catalogue.records import StageChangeRecord, VersionRecord
    from model_packaging.lifecycle import Share


def promote(
    name: VersionArgument,
    *,
    approvals: Annotated[
        int,
        typer.Option(min=0, envvar="LEPTON_APPROVALS", help="How many other people must have approved a release."),
    ] = 0,
    by: ByOption = None,
    why: WhyOption = "",
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a version one stage on: from development to testing, from testing to released."""
    named = parse_name(name)
    with open_catalogue(catalogue) as opened:
        step = opened.promote(*named, who=who(by), why=why, approvals=approvals)
    _say(named, step, as_json=as_json)


def approve(
    name: VersionArgument,
    by: ByOption = None,
    why: WhyOption = "",
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a version's release, as somebody who did not make it."""
    named, person = parse_name(name), who(by)
    with open_catalogue(catalogue) as opened:
        new = opened.approve(*named, who=person, why=why)
    output.result(
        {"model": named.model, "version": named.version, "by": person, "new": new},
        f"{named}: {'approved' if new else 'was approved before'} by {person}",
        as_json=as_json,
    )


def demote(
    name: VersionArgument,
    by: ByOption = None,
    why: WhyOption = "",
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a version one stage back: from testing to development, from deprecated to released."""
    from model_packaging.lifecycle import Stage  # noqa: PLC0415

    named = parse_name(name)
    with open_catalogue(catalogue) as opened:
        stage = opened.show(*named).summary.stage
        back = Stage.RELEASED if stage is Stage.DEPRECATED else Stage.DEVELOPMENT
        step = opened.transition(*named, back, who=who(by), why=why)
    _say(named, step, as_json=as_json)


def deprecate(
    name: VersionArgument,
    by: ByOption = None,
    why: WhyOption = "",
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mark a released version as one that nothing new should depend on. It still serves."""
    from model_packaging.lifecycle import Stage  # noqa: PLC0415

    named = parse_name(name)
    with open_catalogue(catalogue) as opened:
        step = opened.transition(*named, Stage.DEPRECATED, who=who(by), why=why)
    _say(named, step, as_json=as_json)


def retire(
    name: VersionArgument,
    by: ByOption = None,
    why: WhyOption = "",
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a deprecated version's life. Refused while an endpoint of any environment gives it weight."""
    from model_packaging.lifecycle import Stage  # noqa: PLC0415

    named = parse_name(name)
    with open_catalogue(catalogue) as opened:
        shares = _shares(named, opened.show(*named))
        step = opened.transition(*named, Stage.RETIRED, who=who(by), why=why, shares=shares)
    _say(named, step, as_json=as_json)


def _shares(name: VersionName, record: VersionRecord) -> list[Share]:
    """What endpoints give the version: those of this project as they are, others as the catalogue has noted."""
    from cli import context  # noqa: PLC0415
    from infra.project import NotInProjectError  # noqa: PLC0415
    from model_packaging.lifecycle import Share  # noqa: PLC0415
    from rollout.shares import shares  # noqa: PLC0415

    recorded = [Share(each.environment, each.stack, each.weight) for each in record.deployed if each.weight is not None]
    try:
        return shares(context.project(), *name, recorded)
    except NotInProjectError:
        return recorded


def _say(name: VersionName, step: StageChangeRecord, *, as_json: bool) -> None:
    output.result(
        {
            "model": name.model,
            "version": name.version,
            "from": step.from_stage,
            "to": step.to_stage,
            "by": step.who,
            "at": step.at.isoformat(),
            "why": step.why,
        },
        f"{name}: {step.from_stage} → {step.to_stage}, by {step.who}",
        as_json=as_json,
    )
