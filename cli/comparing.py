"""`lepton drift` and `lepton preview`: what the next update would change, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli import context, output
from cli.context import EnvironmentArgument, JsonOption

if TYPE_CHECKING:
    from rollout.comparing import Comparison
    from rollout.project import StackConfig

_DRIFTED = 3
_FAILED = 1


def drift(
    target: Annotated[
        str, typer.Argument(metavar="ENV|STACK", help="An environment, or TEAM/ENV.MODEL[-VERSION].")
    ] = "dev",
    as_json: JsonOption = False,
) -> None:
    """Show what is not as configured: what the next `up` would put right. Changes nothing.

    Found are edits by hand, things that are gone, and configs that nobody has deployed. Exit status 3 where there are.
    """
    stacks = [context.stack(target, "version", "endpoint")] if "/" in target else context.project().stacks(target)
    found = _compared(f"comparing {target}", stacks, live=True, as_json=as_json)
    if any(each.differs for each in found):
        raise typer.Exit(_DRIFTED)


def preview(
    environment: EnvironmentArgument = "dev",
    since: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Only what a change since this Git revision can touch.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `up` would change, without changing anything: for CI. Exit status 1 where `up` would fail."""
    from rollout.changed import changed_since  # noqa: PLC0415

    project = context.project()
    stacks = changed_since(project, environment, since) if since else project.stacks(environment)
    found = _compared(f"previewing {environment}", stacks, live=False, as_json=as_json)
    if any(each.problem for each in found):
        raise typer.Exit(_FAILED)


def _compared(doing: str, stacks: Sequence[StackConfig], *, live: bool, as_json: bool) -> list[Comparison]:
    from rollout.comparing import compare  # noqa: PLC0415

    with output.progress(doing, quiet=as_json):
        found = list(compare(context.project(), stacks, live=live))
    differing = [each for each in found if each.differs]
    if as_json:
        output.document({"stacks": len(found), "differing": [each.summary() for each in differing]})
        return found
    for each in differing:
        output.line(each.stack.address + (": new" if each.is_new else f": {each.problem}" if each.problem else ""))
        for difference in each.differences:
            output.line(f"  would {difference}" + "".join(f"\n    {path}" for path in difference.paths))
    output.line(
        f"{len(differing)} of {len(found)} stacks would change" if differing else f"{len(found)} stacks: no change"
    )
    return found
