"""What commands share: their arguments, and the project that they run in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output

if TYPE_CHECKING:
    from rollout.project import Project, StackConfig
    from rollout.release import Releases

EndpointArgument = Annotated[str, typer.Argument(metavar="ENDPOINT", help="TEAM/ENV.MODEL")]
EnvironmentArgument = Annotated[str, typer.Argument(metavar="ENV", help="The environment.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def project() -> Project:
    """The project around the current folder. Raises NotInProjectError."""
    from rollout.project import Project  # noqa: PLC0415

    return Project.around(Path.cwd())


def releases(notify: output.Notify = output.say) -> Releases:
    from rollout.release import Releases  # noqa: PLC0415

    return Releases(project(), notify)


def stack(address: str, *kinds: str) -> StackConfig:
    """The stack at that address, which must be of one of these kinds."""
    found = project().stack(address)
    if found.kind not in kinds:
        needed = " or ".join(f"lepton:{kind}" for kind in kinds)
        raise typer.BadParameter(f"{address} is a {found.kind} stack; this needs one with a {needed}")
    return found
