"""`lepton drift`: where an environment is not as its configs say."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import context, output
from cli.context import JsonOption

DRIFTED = 3
"""Exit status where something differs."""


def drift(
    target: Annotated[
        str, typer.Argument(metavar="ENV|STACK", help="An environment, or TEAM/ENV.MODEL[-VERSION].")
    ] = "dev",
    as_json: JsonOption = False,
) -> None:
    """Show what is not as configured: what the next `up` would put right. Changes nothing.

    Found are edits by hand, things that are gone, and configs that nobody has deployed. Exit status 3 where there are.
    """
    from rollout.drift import drift_of  # noqa: PLC0415

    project = context.project()
    stacks = [context.stack(target, "version", "endpoint")] if "/" in target else project.stacks(target)
    with output.progress(f"comparing {target}", quiet=as_json):
        found = list(drift_of(project, stacks))
    drifted = [each for each in found if each.any]
    if as_json:
        output.document(
            {
                "stacks": len(found),
                "drifted": [
                    {
                        "stack": each.stack.address,
                        "problem": each.problem,
                        "differences": [vars(difference) for difference in each.differences],
                    }
                    for each in drifted
                ],
            }
        )
    else:
        for each in drifted:
            output.line(each.stack.address + (f": {each.problem}" if each.problem else ""))
            for difference in each.differences:
                output.line(f"  would {difference}" + "".join(f"\n    {path}" for path in difference.paths))
        output.line(f"{len(drifted)} of {len(found)} stacks are not as configured" if drifted else "no drift")
    if drifted:
        raise typer.Exit(DRIFTED)
