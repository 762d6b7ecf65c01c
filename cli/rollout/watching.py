"""Shows a rollout: `status` once, `watch` until it is over."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import context, output
from cli.context import EndpointArgument, JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group

    from rollout.clock import Clock
    from rollout.driving.progress import Progress

_UNDRIVEN = "no process on this machine drives it"
_UNDRIVEN_SECONDS = 10.0
"""After which nobody waits for a driver that isn't there: one that is followed by another is away for less."""


def status(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Show where an endpoint's rollout is: its step, its weights, and what its gates said last."""
    from rollout.clock import SystemClock  # noqa: PLC0415
    from rollout.driving.progress import progress_of  # noqa: PLC0415

    project, stack = context.project(), context.stack(endpoint, "endpoint")
    found = progress_of(project, context.releases(), stack, SystemClock())
    if as_json:
        output.document({"endpoint": endpoint, "rollout": None} if found is None else found.summary())
        return
    if found is None:
        output.line(f"{endpoint}: no rollout is under way")
        return
    for line in _lines(found):
        output.line(line)
    _tables(found)


def watch(
    endpoint: EndpointArgument,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Follow a rollout until it is over or stops: weights, metrics by version, verdicts, the time that is left.

    Off a terminal, and with --json, a line for each change, and status 3 once no process has driven it for 10 s.
    Exit status otherwise as of `lepton rollout start`.
    """
    from rollout.clock import SystemClock  # noqa: PLC0415
    from rollout.driving.progress import outcome_of, progress_of  # noqa: PLC0415

    project, releases = context.project(), context.releases()
    stack, clock = context.stack(endpoint, "endpoint"), SystemClock()
    found = progress_of(project, releases, stack, clock)
    if found is None:
        output.line('{"rollout": null}' if as_json else f"{endpoint}: no rollout is under way")
        return
    rollout, shown = found.state.id, _Screen(as_json=as_json)

    def look() -> Progress | None:
        return progress_of(project, releases, context.stack(endpoint, "endpoint"), clock, in_file=True)

    try:
        found = follow(found, look, shown.show, clock, interval, alone=not shown.is_live)
    finally:
        shown.close()
    if found is not None and found.state.id == rollout and not found.state.stopped:
        output.error(
            f"{endpoint}: no process on this machine drives rollout {rollout}; `lepton rollout resume {endpoint}` goes "
            f"on with it, and `lepton rollout abort {endpoint}` takes it back"
        )
        raise typer.Exit(3)
    stopped = found.state if found is not None and found.state.id == rollout else None
    outcome = stopped.phase if stopped else outcome_of(project, stack, rollout)
    reason = f": {stopped.reason}" if stopped and stopped.reason else ""
    document = f'{{"rollout": "{rollout}", "phase": "{outcome}"}}'
    output.line(document if as_json else f"{endpoint}: rollout {rollout} {outcome}{reason}")
    if outcome != "succeeded":
        raise typer.Exit(3 if stopped else 1)


def follow(
    found: Progress,
    look: Callable[[], Progress | None],
    show: Callable[[Progress], None],
    clock: Clock,
    interval: float,
    *,
    alone: bool,
) -> Progress | None:
    """Shows a rollout until it is over or stops, and returns what was found last.

    `alone`: nobody looks on, so that one that no process has driven for a while isn't waited for.
    """
    rollout, driven_at = found.state.id, clock.monotonic()
    last: Progress | None = found
    while last is not None and last.state.id == rollout and not last.state.stopped:
        show(last)
        if last.driven:
            driven_at = clock.monotonic()
        elif alone and clock.monotonic() - driven_at >= _UNDRIVEN_SECONDS:
            break
        clock.sleep(interval)
        last = look()
    return last


class _Screen:
    """Redrawn on a terminal; elsewhere, a line for what has changed."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._last = ""
        self._live: Any = None
        if not as_json and sys.stdout.isatty():
            from rich.live import Live  # noqa: PLC0415

            self._live = Live(auto_refresh=False)
            self._live.start()

    @property
    def is_live(self) -> bool:
        return self._live is not None

    def show(self, found: Progress) -> None:
        if self._live is not None:
            self._live.update(_drawn(found), refresh=True)
            return
        if self._as_json:
            import json  # noqa: PLC0415

            text = json.dumps(found.summary())
        else:
            verdicts = "; ".join(f"{each.version} {each.gate} {each.word}" for each in found.verdicts)
            undriven = "" if found.driven else _UNDRIVEN
            problem = f"nothing to see: {found.problem}" if found.problem else ""
            text = " · ".join(filter(None, [_lines(found)[0], undriven, problem, verdicts]))
        if text != self._last:
            self._last = text
            output.line(text)
            sys.stdout.flush()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def _lines(found: Progress) -> list[str]:
    state = found.state
    first = (
        f"{found.endpoint}: rollout {state.id}, {state.strategy} to {output.weights(state.target)}, step "
        f"{state.step + 1} of {len(state.steps)}: {state.phase}{f': {state.reason}' if state.reason else ''}"
    )
    driven = "driven by a process on this machine" if found.driven else _UNDRIVEN
    lines = [first, f"started {state.started[:19]} UTC by {state.by}; {driven}"]
    if found.seconds_left is not None:
        lines.append(f"the step bakes {found.seconds_left:.0f} s more at least")
    if found.problem:
        lines.append(f"nothing to see: {found.problem}")
    return lines


def _traffic_rows(found: Progress) -> list[list[Any]]:
    return [
        [
            version,
            weight,
            found.observed.get(version, "-"),
            f"{seen.rate:.1f}" if (seen := found.seen.get(version)) else "-",
            f"{seen.error_ratio:.2%}" if seen and seen.error_ratio is not None else "-",
            f"{seen.p95_ms:.0f}" if seen and seen.p95_ms is not None else "-",
        ]
        for version, weight in found.weights.items()
    ]


_TRAFFIC = ["version", "weight", "observed", "requests/s", "errors", "p95 ms"]
_VERDICTS = ["gate", "version", "verdict", "samples", "evidence", "why"]


def _verdict_rows(found: Progress) -> list[list[Any]]:
    return [
        [each.gate, each.version, each.word, f"{each.samples}/{each.needed}", f"{each.evidence:.3g}", each.reason]
        for each in found.verdicts
    ]


def _tables(found: Progress) -> None:
    output.table(_TRAFFIC, _traffic_rows(found))
    if found.verdicts:
        output.line("")
        output.table(_VERDICTS, _verdict_rows(found))


def _drawn(found: Progress) -> Group:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    colours = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
    traffic, verdicts = Table(box=None, pad_edge=False), Table(box=None, pad_edge=False)
    for column in _TRAFFIC:
        traffic.add_column(column)
    for row in _traffic_rows(found):
        traffic.add_row(*map(str, row))
    for column in _VERDICTS:
        verdicts.add_column(column)
    for row in _verdict_rows(found):
        verdicts.add_row(*map(str, row), style=colours[row[2]])
    return Group(*(Text(line) for line in _lines(found)), Text(), traffic, Text(), verdicts)
