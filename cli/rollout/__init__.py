"""`lepton rollout`: moves an endpoint's traffic between versions in gated steps."""

from __future__ import annotations

import typer

from cli.errors import ErrorsAsText
from cli.rollout import driving, plan, report, watching

app = typer.Typer(
    cls=ErrorsAsText, no_args_is_help=True, help="Move an endpoint's traffic between versions in gated steps."
)
for command in (
    plan.plan,
    driving.start,
    driving.resume,
    driving.pause,
    driving.promote,
    driving.abort,
    watching.status,
    watching.watch,
    report.report,
):
    app.command()(command)
