"""`lepton team`: a team's folder under `stacks/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import output

app = typer.Typer(no_args_is_help=True, help="Teams: one Pulumi project each.")


@app.callback()
def _group() -> None:
    """Keeps `new` a sub-command while it is the only one."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The team's name, a DNS-1123 label.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make `stacks/NAME/` with a team's Pulumi project, as `pulumi new examples/team-template` does."""
    from infra.project import find_root  # noqa: PLC0415
    from infra.settings import SettingsError, parse_value  # noqa: PLC0415
    from infra.settings.values import TeamName  # noqa: PLC0415

    try:
        parse_value(TeamName, name, "NAME")
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    root = find_root(Path.cwd())
    folder = root / "stacks" / name
    if folder.exists():
        raise typer.BadParameter(f"{folder.relative_to(root)} is there already; choose another name")
    folder.mkdir()
    for template in sorted((root / "examples" / "team-template").iterdir()):
        text = template.read_text().replace("${PROJECT}", name).replace("${DESCRIPTION}", f"The models of {name}.")
        (folder / template.name).write_text(text)
    output.result(
        {"team": name, "folder": f"stacks/{name}"},
        f"made stacks/{name}: put a Pulumi.ENV.MODEL-VERSION.yaml there for each version (docs/configuration.md)",
        as_json=as_json,
    )
