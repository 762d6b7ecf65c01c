"""`lepton history`: an endpoint's revisions, and what differs between two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import context, output
from cli.context import EndpointArgument, JsonOption

if TYPE_CHECKING:
    from rollout.revisions import Revision

_PASS = "pass"  # noqa: S105 - a verdict


def history(
    endpoint: EndpointArgument,
    diff: Annotated[
        tuple[int, int] | None, typer.Option(metavar="A B", help="Show what differs between these two revisions.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List an endpoint's revisions: weights, when, who, and the rollout and verdicts behind each."""
    found = context.releases().revisions(context.stack(endpoint, "endpoint"))
    if diff is not None:
        _show_difference(found, *diff, as_json=as_json)
        return
    if as_json:
        output.document([revision.summary() for revision in found])
        return
    output.table(
        ["revision", "when", "took", "weights", "who", "why", "rollout", "verdicts", "commit"],
        [
            [
                revision.number,
                revision.started.strftime("%Y-%m-%d %H:%M:%S"),
                f"{revision.seconds:.0f} s",
                output.weights(revision.weights),
                revision.by or "-",
                revision.message,
                _rollout(revision),
                _verdicts(revision),
                (revision.git_commit or "-")[:10],
            ]
            for revision in found
        ],
    )


def _rollout(revision: Revision) -> str:
    """The rollout's id and strategy, and which of its steps it is."""
    state = revision.rollout
    if state is None:
        return "-"
    return f"{state['id']} {state.get('strategy', '')} {state.get('step', 0) + 1}/{len(state.get('steps', ()))}"


def _verdicts(revision: Revision) -> str:
    """Of the gates of the step before: those that didn't pass, by name."""
    outcomes = revision.rollout.get("outcomes", []) if revision.rollout else []
    told = [f"{each['version']} {each['gate']} {each['verdict']}" for each in outcomes if each["verdict"] != _PASS]
    return ", ".join(told) or ("pass" if outcomes else "-")


def _show_difference(found: list[Revision], old: int, new: int, *, as_json: bool) -> None:
    from rollout.revisions import differences, revision_numbered  # noqa: PLC0415

    one, other = revision_numbered(found, old), revision_numbered(found, new)
    changed = differences(one, other)
    if as_json:
        entries = [{"key": key, "old": before, "new": after} for key, (before, after) in changed.items()]
        weights = {"old": one.weights, "new": other.weights}
        output.document({"old": old, "new": new, "weights": weights, "changed": entries})
        return
    versions = list(dict.fromkeys([*one.weights, *other.weights]))
    output.table(
        ["version", f"revision {old}", f"revision {new}"],
        [[version, one.weights.get(version, "-"), other.weights.get(version, "-")] for version in versions],
    )
    for key, (before, after) in changed.items():
        output.line(f"{key}: {_said(before)} → {_said(after)}")
    if not changed and one.weights == other.weights:
        output.line("nothing differs")


def _said(value: Any) -> str:
    return "-" if value is None else str(value)
