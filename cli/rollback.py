"""`lepton rollback`: takes an endpoint back to an earlier revision, or rehearses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli import context, output
from cli.context import EndpointArgument, JsonOption

if TYPE_CHECKING:
    from rollout.rollback import Report


def rollback(
    endpoint: EndpointArgument,
    to_revision: Annotated[
        int | None, typer.Option(metavar="N", help="A revision's number. [default: before the last change]")
    ] = None,
    to_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The latest revision in which it had the greatest weight.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Emergency: the data plane first; the stack follows.")] = False,
    drill: Annotated[
        bool, typer.Option("--drill", help="Rehearse it: check and time everything, move nothing.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the abandoned version its replicas.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore an endpoint's earlier traffic: capacity first, then weights, verified on the data plane.

    By default the endpoint goes back to before its last rollout, or else to its last other traffic.
    """
    if to_revision is not None and to_version is not None:
        raise typer.BadParameter("give --to-revision or --to-version, not both")
    if drill and (now or keep):
        raise typer.BadParameter("--drill moves nothing, so it goes with neither --now nor --keep")
    from cli.journal import note  # noqa: PLC0415
    from cli.retirement import retirement  # noqa: PLC0415
    from rollout.author import acting_user  # noqa: PLC0415
    from rollout.clock import SystemClock  # noqa: PLC0415
    from rollout.driving.ending import recorded_end  # noqa: PLC0415
    from rollout.rollback import Rollbacks, Target  # noqa: PLC0415

    stack = context.stack(endpoint, "endpoint")
    target = Target(revision=to_revision, version=to_version)
    with output.progress(f"rolling {endpoint} back", quiet=as_json) as notify:
        rollbacks = Rollbacks(context.releases(notify), context.project(), notify, refuse=retirement)
        if drill:
            report = rollbacks.drill(stack, target)
        else:
            why = f"rollback by {acting_user(context.project().root)}"
            with recorded_end(context.project(), stack, why, notify, SystemClock()):
                report = rollbacks.restore(stack, target, now=now, keep=keep)
            stack = context.stack(endpoint, "endpoint")
            changed = [context.project().version_of(stack, version) for version in report.brought_back]
            note(context.project(), [*changed, stack])
    if as_json:
        output.document(report.summary())
    else:
        _print(report, drill=drill)
    if drill and report.problems:
        raise typer.Exit(1)


def _print(report: Report, *, drill: bool) -> None:
    for phase, seconds in report.phases.items():
        output.line(f"{seconds:6.1f} s  {phase}")
    for problem in report.problems:
        output.error(problem)
    where = f"revision {report.revision.number}: {output.weights(report.revision.weights)}"
    if not drill:
        ended = f"; rollout {report.ended_rollout} has ended" if report.ended_rollout else ""
        output.line(f"{report.endpoint}: back to {where}, as the data plane says ({report.seconds:.1f} s){ended}")
        return
    for standing in report.standings:
        if standing.missing and not standing.obstacle:
            output.line(f"{standing.version}: {standing.missing}; would be brought back first")
    clear = "is not clear" if report.problems else "is clear"
    output.line(f"{report.endpoint}: the way back to {where} {clear}; nothing was changed ({report.seconds:.1f} s)")
