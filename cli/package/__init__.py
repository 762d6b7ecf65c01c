"""`lepton package`: model versions as artifacts, and the catalogue of them."""

from __future__ import annotations

import typer

from cli.errors import ErrorsAsText
from cli.package import evaluating, finding, making, moving, pulling, stages

app = typer.Typer(
    cls=ErrorsAsText, no_args_is_help=True, help="Model versions as immutable artifacts, and the catalogue of them."
)
for command in (
    making.build,
    making.verify,
    making.key,
    making.sign,
    finding.show,
    finding.compare,
    finding.rebuild,
    evaluating.evaluate,
    stages.promote,
    stages.approve,
    stages.demote,
    stages.deprecate,
    stages.retire,
    pulling.pull,
    moving.copy,
    moving.export,
    moving.delete,
    moving.gc,
):
    app.command()(command)
app.command("list")(finding.list_versions)
