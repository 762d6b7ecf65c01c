"""What a benchmark returns, how it is printed, and how it is kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """A figure over all rounds."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.minimum)} to {number(self.maximum)})"


Cell = str | float | Spread
Figures = dict[str, dict[str, float]]
"""One round's figures, by candidate and name."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under the columns; the first cell of a row names it. A Spread prints as median (min to max)."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Goal:
    """A figure with its bound: at least, or at most."""

    text: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class Result:
    """Everything one benchmark found out."""

    name: str
    settings: dict[str, str | float]
    """What it was run with, down to versions of what was compared."""
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What could not be measured here, and why."""
    failed: list[str] = field(default_factory=list)
    """Parts that should have been measured and could not be, and why; the other parts stand."""
    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    """The raw figures of each part of the benchmark, round by round."""


def number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = 0 if abs(value) >= 1000 or float(value).is_integer() else 3 if abs(value) < 10 else 1
        return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def show(result: Result, console: Console) -> None:
    for table in result.tables:
        shown = RichTable(title=table.title, title_justify="left", title_style="bold")
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if index == 0 else "right")
        for row in table.rows:
            shown.add_row(*(number(cell) if isinstance(cell, int | float) else str(cell) for cell in row))
        console.print(shown)
    for reason in result.left_out:
        console.print(f"[yellow]left out[/]: {escape(reason)}")
    for reason in result.failed:
        console.print(f"[red]failed[/]: {escape(reason)}", highlight=False)
    for goal in sorted(result.goals, key=lambda goal: goal.met):
        verdict = "[green]met[/]" if goal.met else "[red]missed[/]"
        bound = f"{'at least' if goal.at_least else 'at most'} {number(goal.bound)}"
        console.print(f"goal {verdict}: {goal.text}: {number(goal.value)}, {bound}")
    console.print(f"settings: {', '.join(f'{key} {value}' for key, value in result.settings.items())}\n", style="dim")


def write(result: Result, path: Path | None = None) -> Path:
    """Writes it to `path`, or where the results of benchmarks are kept; returns where that is."""
    path = path or RESULTS / f"{result.name}.json"
    path.parent.mkdir(exist_ok=True)
    document = asdict(result) | {
        "goals": [asdict(goal) | {"met": goal.met} for goal in result.goals],
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processors": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
