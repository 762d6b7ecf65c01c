"""`lepton guard`: looks after an environment's endpoints, between rollouts too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import context
from cli.context import EnvironmentArgument, JsonOption


def guard(
    environment: EnvironmentArgument = "dev",
    team: Annotated[
        list[str] | None, typer.Option(help="Only this team's endpoints; may be given again. [default: all teams']")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print what there is to see, and do nothing.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stand by while another guard looks after them, and take over when it ends.")
    ] = False,
    project: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The project. [default: the one around this folder]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look after endpoints by their own rules (`guard:` in their config), until SIGTERM or Ctrl-C.

    Says a line for each thing that it sees or does.
    """
    from cli.guard_run import glance, run  # noqa: PLC0415
    from rollout.project import Project  # noqa: PLC0415

    found = Project.around(project) if project else context.project()
    if once:
        glance(found, environment, team or [], as_json=as_json)
    else:
        run(found, environment, team or [], wait=wait, as_json=as_json)
