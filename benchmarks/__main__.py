"""`python -m benchmarks [NAME...]`: runs benchmarks, prints their tables and writes `benchmarks/results/NAME.json`.

`python -m benchmarks scenario FILE`: plays a bad release of any system that its file tells of.
"""

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

from benchmarks import results, scenario
from benchmarks.processes import BenchmarkError
from infra.errors import UserError
from infra.single_node.machine.node import NodeError

# Named, not imported: a benchmark whose libraries are missing must not take the others with it.
BENCHMARKS = ("router", "split", "weight_change", "rollback", "packaging", "catalogue", "placement")
ON_REQUEST = ("fleet", "one_stack")
"""Such as take hours: run where they are named."""
_ALL = (*BENCHMARKS, *ON_REQUEST)


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Which: {', '.join(_ALL)}. Default: all but {' and '.join(ON_REQUEST)}, which take hours."
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Interleaved rounds over which min, median and max are taken.")
    ] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Length of one measurement under load.")] = 3.0,
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 when a goal is missed.")] = False,
) -> None:
    """Compares candidates side by side in one run. Run it on a machine that does nothing else."""
    unknown = sorted(set(names or ()) - set(_ALL))
    if unknown:
        raise typer.BadParameter(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(_ALL)}")
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


def play(
    file: Annotated[Path, typer.Argument(help="A scenario, as those in benchmarks/scenarios/.")],
    runs: Annotated[int, typer.Option(min=1, help="How many, one after the other.")] = 3,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A variable of the file.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures of each run.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 when a bound is exceeded.")] = False,
) -> None:
    """Plays a bad release: constant load, a canary that fails, and how long until nobody meets it any more."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    try:
        given = dict(_assignment(text) for text in setting or [])
        wanted = scenario.read(file, given)
        done: list[scenario.Run] = []
        for number in range(1, runs + 1):
            done.append(scenario.play(wanted, number, Path.cwd()))
            console.print(f"run {number}: {done[-1].figures()}", highlight=False)
    except (UserError, BenchmarkError) as error:
        console.print(f"[red]{file} could not be played[/]: {escape(str(error))}", highlight=False)
        sys.exit(1)
    result = results.Result(wanted.name, {"runs": runs, "requests_per_second": wanted.rate})
    result.tables.append(scenario.table(wanted, done))
    result.goals.extend(scenario.goals(wanted, done))
    result.rounds["runs"] = [{"run": run.figures()} for run in done]
    results.show(result, console)
    if output is not None:
        results.write(result, output)
    if check and not all(goal.met for goal in result.goals):
        sys.exit(1)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"--set {text!r} is not NAME=VALUE")
    return name, value


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
    # Not a sub-command beside `main`, whose arguments are names.
    if sys.argv[1:2] == ["scenario"]:
        app.command()(play)
        app(sys.argv[2:], prog_name="python -m benchmarks scenario")
    else:
        app.command()(main)
        app()
