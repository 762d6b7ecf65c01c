"""How commands speak: tables and progress for people, plain lines off a terminal, JSON for scripts."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Notify = Callable[[str], None]


def line(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def say(text: str) -> None:
    """Something to know on the way, beside the result."""
    sys.stderr.write(f"{text}\n")


def error(text: str) -> None:
    sys.stderr.write("".join(f"error: {part}\n" for part in text.splitlines()[:1]))
    sys.stderr.write("".join(f"{part}\n" for part in text.splitlines()[1:]))


def document(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def result(value: Any, text: str, *, as_json: bool) -> None:
    if as_json:
        document(value)
    else:
        line(text)


def size(count: int) -> str:
    """Bytes as people read them, in powers of ten."""
    from rich.filesize import decimal  # noqa: PLC0415

    return decimal(count)


def facts(values: Mapping[str, object]) -> None:
    """Names and values, a line each, the values below each other."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        line(f"{name:<{width}}  {value}")


def weights(values: Mapping[str, int]) -> str:
    return " ".join(f"{version}={weight}" for version, weight in values.items())


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    console = Console()
    # Off a terminal nothing knows how wide to be; a cut line would lose what a script looks for.
    console.print(drawn) if console.is_terminal else Console(width=200).print(drawn)


@contextmanager
def progress(text: str, *, quiet: bool) -> Iterator[Notify]:
    """Shows that work goes on, and gives a function that says a line meanwhile.

    The first interrupt is for Pulumi, which the terminal has sent it too: it stops where that is safe, and the work
    ends with its error. A second one ends it at once.
    """

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("interrupted: waiting for Pulumi to stop where that is safe; interrupt again to stop at once")

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        if quiet or not sys.stderr.isatty():
            yield say
            return
        from rich.console import Console  # noqa: PLC0415

        console = Console(stderr=True)
        with console.status(text):
            yield console.print
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def bar(text: str, *, quiet: bool, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, and a function that tells it how much of how much is done."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counted = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(text, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)
