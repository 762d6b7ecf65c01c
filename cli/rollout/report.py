"""`lepton rollout report`: the records that rollouts left, and the page of one."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import context, output
from cli.context import EndpointArgument, JsonOption

if TYPE_CHECKING:
    from rollout.project import StackConfig
    from rollout.records.record import Record


def report(
    endpoint: EndpointArgument,
    rollout_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The rollout, or `last`. Without, they are listed.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List an endpoint's rollouts, or say where the page of one is; with --json, print its record."""
    from rollout.records.record import read_summary, records_of  # noqa: PLC0415

    stack = context.stack(endpoint, "endpoint")
    found = records_of(context.project(), stack)
    if rollout_id is None:
        _list(endpoint, found, as_json=as_json)
        return
    record = _chosen(endpoint, found, rollout_id)
    if as_json:
        output.document(read_summary(record) or record.outline())
        return
    if read_summary(record) is None:
        _draw_so_far(stack, record)
    output.line(str(record.page))


def _list(endpoint: str, records: list[Record], *, as_json: bool) -> None:
    outlines = [record.outline() for record in records]
    if as_json:
        output.document(outlines)
    elif not outlines:
        output.line(f"{endpoint}: no rollout has left a record here")
    else:
        columns = ("rollout", "outcome", "strategy", "by", "started", "took", "reason")
        output.table(columns, [_row(outline) for outline in outlines])


def _row(outline: dict[str, Any]) -> list[str]:
    started, seconds = outline["started"], outline["seconds"]
    return [
        outline["id"],
        *(outline[name] or "" for name in ("outcome", "strategy", "by")),
        f"{datetime.fromisoformat(started):%Y-%m-%d %H:%M:%S}" if started else "",
        "" if seconds is None else f"{seconds:.0f} s",
        outline["reason"] or "",
    ]


def _chosen(endpoint: str, records: list[Record], rollout_id: str) -> Record:
    """Raises BadParameter where there is none of that id."""
    named = [record for record in records if record.id == rollout_id] or (records[-1:] if rollout_id == "last" else [])
    if not named:
        known = ", ".join(record.id for record in records) or "none"
        raise typer.BadParameter(f"{endpoint} has no record of rollout {rollout_id!r}; it has {known}")
    return named[0]


def _draw_so_far(stack: StackConfig, record: Record) -> None:
    """Draws the page of a rollout under way. Raises BadParameter where nothing here knows its state any more."""
    from rollout.clock import SystemClock  # noqa: PLC0415
    from rollout.driving.state import read_state  # noqa: PLC0415
    from rollout.records.record import Record  # noqa: PLC0415

    state = read_state(stack)
    if state is None or state.id != record.id:
        raise typer.BadParameter(
            f"rollout {record.id} left no page: it ended on another machine, or its record could not be written; "
            f"{record.folder} has what it saw here"
        )
    Record(record.folder, output.say).draw(state, SystemClock().now())
