"""`python -m benchmarks [NAME...]`: runs benchmarks, prints their tables and writes `benchmarks/results/NAME.json`."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import results
from benchmarks.processes import BenchmarkError
from infra.single_node.machine.node import NodeError

# Named, not imported: a benchmark whose libraries are missing must not take the others with it.
BENCHMARKS = ("router", "split", "weight_change", "packaging", "catalogue")


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(BENCHMARKS)}. Default: all.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Interleaved rounds over which min, median and max are taken.")
    ] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Length of one measurement under load.")] = 3.0,
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 when a goal is missed.")] = False,
) -> None:
    """Compares candidates side by side in one run. Run it on a machine that does nothing else."""
    unknown = sorted(set(names or ()) - set(BENCHMARKS))
    if unknown:
        raise typer.BadParameter(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    # Tables are cut where nobody says how wide a line may be.
    console, broken, missed = Console(width=None if sys.stdout.isatty() else 150), [], 0
    for name in names or BENCHMARKS:
        try:
            result = _run(name, rounds, seconds)
        except (BenchmarkError, NodeError, ImportError, OSError) as error:
            console.print(f"[red]{name} could not be run[/]: {escape(str(error))}", highlight=False)
            broken.append(name)
            continue
        results.show(result, console)
        console.print(f"written to {results.write(result)}\n", highlight=False)
        if result.failed:
            broken.append(name)
        missed += sum(not goal.met for goal in result.goals)
    if broken or (check and missed):
        sys.exit(1)


def _run(name: str, rounds: int, seconds: float) -> results.Result:
    module = importlib.import_module(f"benchmarks.{name}")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    # A short path: sockets live in it.
    with (
        tempfile.TemporaryDirectory(prefix="lepton-bench-") as directory,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        return module.run(Path(directory), rounds, seconds, progress)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
