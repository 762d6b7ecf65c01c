"""The command `lepton`: its sub-commands.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 held, paused or drifted, 130 interrupted twice. What a command needs is
imported when it runs: most of a short command's time would else go into imports.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cli import context, output, package, rollout, team, traffic
from cli.capacity import capacity
from cli.comparing import drift, preview
from cli.context import EndpointArgument, EnvironmentArgument, JsonOption
from cli.errors import ErrorsAsText
from cli.guard import guard
from cli.history import history
from cli.rollback import rollback

app = typer.Typer(
    cls=ErrorsAsText, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.add_typer(traffic.app, name="traffic")
app.add_typer(rollout.app, name="rollout")
app.add_typer(package.app, name="package")
app.add_typer(team.app, name="team")


@app.command()
def up(
    environment: EnvironmentArgument = "dev",
    requests: Annotated[
        int, typer.Option(min=0, help="How many requests to measure each endpoint's split with.")
    ] = 500,
    as_json: JsonOption = False,
) -> None:
    """Bring an environment up: its platform, its versions, its endpoints."""
    from cli.environment import bring_up  # noqa: PLC0415

    bring_up(context.project(), environment, requests, as_json=as_json)


@app.command()
def down(environment: EnvironmentArgument = "dev", as_json: JsonOption = False) -> None:
    """Destroy an environment's stacks; their history stays."""
    from cli.environment import bring_down  # noqa: PLC0415

    bring_down(context.project(), environment, as_json=as_json)


@app.command()
def deploy(
    address: Annotated[str, typer.Argument(metavar="STACK", help="TEAM/ENV.MODEL-VERSION or TEAM/ENV.MODEL")],
    as_json: JsonOption = False,
) -> None:
    """Make one version or endpoint as its config says, and wait until it is so.

    A version is ready then, and gets no traffic by it; an endpoint's weights are what the data plane has.
    """
    from cli.journal import note  # noqa: PLC0415

    stack = context.stack(address, "version", "endpoint")
    with output.progress(f"deploying {address}", quiet=as_json) as notify:
        changes = context.releases(notify).deploy(stack)
        note(context.project(), [stack])
    output.result(
        {"stack": address, "changes": changes.counts, "seconds": changes.seconds},
        f"{address}: {changes} ({changes.seconds:.1f} s)",
        as_json=as_json,
    )


@app.command()
def status(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Show an endpoint's weights as configured and as the data plane has them."""
    found = context.releases().status(context.stack(endpoint, "endpoint"))
    if as_json:
        output.document(found.summary())
        return
    output.line(f"{found.address}  {found.url}  revision {found.revision}")
    output.table(
        ["version", "weight", "observed", "ready replicas"],
        [
            [version, weight, found.observed_weights.get(version, "-"), found.ready.get(version, 0)]
            for version, weight in found.weights.items()
        ],
    )


app.command()(capacity)
app.command()(history)
app.command()(rollback)
app.command()(guard)
app.command()(drift)
app.command()(preview)


@app.command()
def env(as_json: JsonOption = False) -> None:
    """Print what the environment needs for `pulumi` itself: eval "$(lepton env)"."""
    import shlex  # noqa: PLC0415

    variables = context.project().environment
    lines = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    output.result(variables, lines, as_json=as_json)


def main() -> None:
    app()
