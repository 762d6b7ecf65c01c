"""Draws the plots of a rollout's record as SVG, all over the same time. Pure.

Colours and line widths are the page's style's, by class: `c0` to `c7` for versions.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 960
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 8, 26
_LABELS = 18
"""Pixels above the first plot, for what the moments are called."""
COLOURS = 8

_CHARACTER = 7.2
"""Pixels that one is wide, at most, in a plot's labels."""
_NICE_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800)
_COLUMNS = 240
"""Of a curve, at most; in each the first, lowest, highest and last point are drawn."""

Point = tuple[float, float]
Band = tuple[float, float, float]
"""Time, lower and upper bound."""


@dataclass(frozen=True)
class Curve:
    """One line, in pieces, with its band."""

    name: str
    colour: int
    pieces: Sequence[Sequence[Point]]
    bands: Sequence[Sequence[Band]] = ()
    dots: Sequence[Point] = ()
    """Values of short times, beside the line."""


@dataclass(frozen=True)
class Mark:
    """A moment, as a line across every plot."""

    at: float
    label: str
    kind: str
    """`step`, `rollback` or `end`."""
    note: str = ""
    """What the label has no room for."""


@dataclass(frozen=True)
class Span:
    """Time in which the rollout stood still, or nothing could be seen."""

    start: float
    end: float
    kind: str
    """`stopped` or `unseen`."""
    note: str


@dataclass(frozen=True)
class Timeline:
    """What all plots of a record share. Times are seconds since its start."""

    seconds: float
    marks: Sequence[Mark] = ()
    spans: Sequence[Span] = ()

    def x(self, at: float) -> float:
        share = min(max(at / self.seconds, 0.0), 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)


@dataclass(frozen=True)
class Plot:
    """A plot of values over time."""

    name: str
    """Of the element, unique in the page."""
    title: str
    description: str
    """For those who don't see it."""
    curves: Sequence[Curve]
    write: Callable[[float], str]
    """A value with its unit."""
    height: int = 160
    logarithmic: bool = False
    limits: Sequence[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    """Lines across, with what they are called."""


@dataclass(frozen=True)
class Row:
    """Words over time."""

    name: str
    words: Sequence[tuple[float, float, str, str]]
    """From when to when, the word (its class) and its reason."""


def thin(points: Sequence[Point], columns: int = _COLUMNS) -> list[Point]:
    """At most four points a column of time, with its extremes, in their order: a curve that looks the same.

    M4: Jugel et al., "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014.
    """
    if len(points) <= 4 * columns:
        return list(points)
    start = points[0][0]
    width = (points[-1][0] - start) / columns or 1.0
    kept: list[Point] = []
    column: list[Point] = []
    for point in points:
        if column and int((point[0] - start) / width) != int((column[0][0] - start) / width):
            kept += _corners(column)
            column = []
        column.append(point)
    return kept + _corners(column)


def _corners(column: Sequence[Point]) -> list[Point]:
    values = [value for _, value in column]
    indices = {0, values.index(min(values)), values.index(max(values)), len(column) - 1}
    return [column[index] for index in sorted(indices)]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`: at most so many, 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) < most)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def time_ticks(seconds: float, most: int = 9) -> list[float]:
    """Round times from 0 on, at most so many."""
    step = next((nice for nice in _NICE_SECONDS if seconds / nice < most), None)
    if step is None:
        step = 86400 * math.ceil(seconds / 86400 / most)
    elif seconds < 1:
        return ticks(0, seconds, most)
    return [float(index * step) for index in range(int(seconds / step) + 1)]


def duration(seconds: float) -> str:
    """A length of time for people: `0 s`, `1 min 30 s`, `2 h`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next(index for index, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


def draw_shares(
    name: str,
    title: str,
    description: str,
    shares: Sequence[tuple[float, Sequence[float]]],
    keys: Sequence[tuple[int, str]],
    timeline: Timeline,
    height: int = 180,
) -> str:
    """Shares on top of each other.

    `shares`: from each time on, one for each of `keys` (colour and name); their sum is 1.
    """
    bottom, top = height - BOTTOM, TOP + _LABELS

    def y(share: float) -> float:
        return bottom - share * (bottom - top)

    body: list[str] = []
    kept = _changes(shares)
    for index, (colour, label) in enumerate(keys):
        upper: list[Point] = []
        lower: list[Point] = []
        for (at, values), (until, _) in zip(kept, [*kept[1:], (timeline.seconds, ())], strict=True):
            below = sum(values[:index])
            for moment in (at, until):
                upper.append((timeline.x(moment), y(below + values[index])))
                lower.append((timeline.x(moment), y(below)))
        path = _line([*upper, *reversed(lower)]) + "Z" if upper else ""
        body.append(f'<path class="share c{colour % COLOURS}" d="{path}"><title>{escape(label)}</title></path>')
    tips: list[str] = []
    for (at, values), (until, _) in zip(kept, [*kept[1:], (timeline.seconds, ())], strict=True):
        start, end = timeline.x(at), timeline.x(until)
        middle = (start + end) / 2
        below = 0.0
        for value in values:
            text = f"{100 * value:.3g} %"
            width = _CHARACTER * len(text) + 8
            crossed = any(abs(timeline.x(mark.at) - middle) < width / 2 for mark in timeline.marks)
            if value * (bottom - top) >= 16 and end - start >= width and not crossed:
                body.append(f'<text class="inside" x="{middle:.1f}" y="{y(below + value / 2) + 4:.1f}">{text}</text>')
            below += value
        said = [f"{label}: {100 * value:.3g} %" for (_, label), value in zip(keys, values, strict=True)]
        tips.append(_tip(start, end, top, bottom, [f"{duration(at)} to {duration(until)}", *said]))
    grid = _grid([(y(value), f"{100 * value:g} %") for value in (0, 0.5, 1)])
    return _svg(
        name,
        title,
        description,
        height,
        [*grid, *body, *_over(timeline, height, top), *_mark_labels(timeline, top - 9), *tips],
        timeline,
    )


def _changes(shares: Sequence[tuple[float, Sequence[float]]]) -> list[tuple[float, Sequence[float]]]:
    found: list[tuple[float, Sequence[float]]] = []
    for at, values in shares:
        if not found or list(values) != list(found[-1][1]):
            found.append((at, values))
    return found


def draw(plot: Plot, timeline: Timeline) -> str:
    """Curves with their bands."""
    low, high = _range(plot)
    bottom, top = plot.height - BOTTOM, TOP
    over = _over(timeline, plot.height)

    def y(value: float) -> float:
        share = (_level(plot, value) - low) / (high - low)
        return bottom - min(max(share, 0.0), 1.0) * (bottom - top)

    body: list[str] = []
    for curve in plot.curves:
        area = "".join(_area(band, timeline, y) for band in curve.bands if band)
        if area:
            body.append(f'<path class="band c{curve.colour % COLOURS}" d="{area}"/>')
    for value, label in plot.limits:
        body.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        over.append(f'<text class="limit-label" x="{LEFT + 6}" y="{y(value) - 4:.1f}">{escape(label)}</text>')
    for curve in plot.curves:
        dots = "".join(f"M{timeline.x(at):.1f},{y(value):.1f}h0" for at, value in curve.dots)
        if dots:
            body.append(f'<path class="dots c{curve.colour % COLOURS}" d="{dots}"/>')
    for curve in plot.curves:
        path = "".join(_line([(timeline.x(at), y(value)) for at, value in thin(piece)]) for piece in curve.pieces)
        kind = f"curve c{curve.colour % COLOURS}"
        body.append(f'<path class="{kind}" d="{path}"><title>{escape(curve.name)}</title></path>')
    grid = _grid([(y(10**value if plot.logarithmic else value), text) for value, text in _labels(plot, low, high)])
    over += _tooltips(plot, timeline)
    return _svg(plot.name, plot.title, plot.description, plot.height, [*grid, *body, *over], timeline)


def _area(band: Sequence[Band], timeline: Timeline, y: Callable[[float], float]) -> str:
    uppers = [(timeline.x(at), y(high)) for at, _, high in band]
    lowers = [(timeline.x(at), y(low)) for at, low, _ in band]
    if len(band) == 1:
        uppers, lowers = ([(x + side, level) for (x, level) in edge for side in (-2, 2)] for edge in (uppers, lowers))
    return _line([*uppers, *reversed(lowers)]) + "Z"


def draw_words(name: str, title: str, description: str, rows: Sequence[Row], timeline: Timeline) -> str:
    """A bar of words a row."""
    height = TOP + BOTTOM + 34 * len(rows)
    body = _over(timeline, height)
    for index, row in enumerate(rows):
        top = TOP + 34 * index
        body.append(f'<text class="row" x="{LEFT + 6}" y="{top + 10}">{escape(row.name)}</text>')
        for start, end, word, reason in row.words:
            x, width = timeline.x(start), max(timeline.x(end) - timeline.x(start), 4.0)
            body.append(
                f'<rect class="word {word}" x="{x:.1f}" y="{top + 15}" width="{width:.1f}" height="12" rx="2">'
                f"<title>{escape(row.name)}: {escape(word)}, {duration(start)} to {duration(end)}\n"
                f"{escape(reason)}</title></rect>"
            )
    return _svg(name, title, description, height, body, timeline)


def _range(plot: Plot) -> tuple[float, float]:
    """Lowest and highest level drawn: of the curves, and of their bands as far as that leaves the curves readable."""
    values = [value for curve in plot.curves for piece in curve.pieces for _, value in piece]
    values += [value for curve in plot.curves for _, value in curve.dots] + [value for value, _ in plot.limits]
    uppers = sorted(high for curve in plot.curves for band in curve.bands for _, _, high in band if math.isfinite(high))
    if plot.logarithmic:
        levels = [_level(plot, value) for value in values]
        return min([*levels, 0.0]) - 0.1, max([*levels, 0.5]) + 0.2
    highest = max(values, default=0.0)
    typical = uppers[len(uppers) * 3 // 4] if uppers else 0.0
    return 0.0, max(highest * 1.1, min(typical * 1.1, highest * 4 or typical), 1e-9)


def _level(plot: Plot, value: float) -> float:
    return math.log10(min(max(value, 1e-6), 1e12)) if plot.logarithmic else value


def _labels(plot: Plot, low: float, high: float) -> list[tuple[float, str]]:
    if not plot.logarithmic:
        return [(value, plot.write(value)) for value in ticks(low, high, 5)]
    step = max(1, math.ceil((high - low) / 5))
    whole = range(math.ceil(low), math.floor(high) + 1)
    return [(float(level), plot.write(10.0**level)) for level in whole if level % step == 0]


def _line(points: Sequence[Point]) -> str:
    """A path through points; a single one becomes a dot."""
    if not points:
        return ""
    rest = "".join(f"L{x:.1f},{y:.1f}" for x, y in points[1:]) or "h0"
    return f"M{points[0][0]:.1f},{points[0][1]:.1f}{rest}"


def _grid(rows: Iterable[tuple[float, str]]) -> list[str]:
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="value" x="{LEFT - 6}" y="{y + 4:.1f}">{escape(text)}</text>'
        for y, text in rows
    ]


def _over(timeline: Timeline, height: int, top: int = TOP) -> list[str]:
    """What lies over every plot: moments and spans."""
    bottom = height - BOTTOM
    found: list[str] = []
    for span in timeline.spans:
        x, width = timeline.x(span.start), max(timeline.x(span.end) - timeline.x(span.start), 1.0)
        found.append(
            f'<rect class="span {span.kind}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{bottom - top}">'
            f"<title>{escape(span.note)}\n{duration(span.start)} to {duration(span.end)}</title></rect>"
        )
    for mark in timeline.marks:
        x = timeline.x(mark.at)
        found.append(
            f'<g class="mark {mark.kind}"><line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom}"/>'
            f"<title>{escape(mark.label)}, after {duration(mark.at)}\n{escape(mark.note)}</title></g>"
        )
    return found


def _mark_labels(timeline: Timeline, y: float) -> list[str]:
    """As many as there is room for, those that matter more first."""
    order = ("rollback", "end", "step")
    taken: list[tuple[float, float]] = []
    found: list[str] = []
    for mark in sorted(timeline.marks, key=lambda mark: (order.index(mark.kind), mark.at)):
        x, width = timeline.x(mark.at), _CHARACTER * len(mark.label)
        fits = x + 3 + width <= WIDTH - 4
        start = x + 3 if fits else WIDTH - 4 - width
        if all(start >= end or start + width <= begin for begin, end in taken):
            taken.append((start - 6, start + width + 6))
            placed = f'x="{x + 3:.1f}"' if fits else f'x="{WIDTH - 4}" text-anchor="end"'
            found.append(f'<text class="mark-label {mark.kind}" {placed} y="{y}">{escape(mark.label)}</text>')
    return found


def _tooltips(plot: Plot, timeline: Timeline, columns: int = 96) -> list[str]:
    """Unseen columns that say each curve's value when pointed at."""
    points = [(curve.name, [point for piece in curve.pieces for point in piece]) for curve in plot.curves]
    times = {name: [at for at, _ in found] for name, found in points}
    begins = [found[0][0] for _, found in points if found]
    ends = [found[-1][0] for _, found in points if found]
    if not begins:
        return []
    first, last = min(begins), max(ends)
    width = max(last - first, timeline.seconds / columns) / columns
    found: list[str] = []
    for column in range(columns):
        at = first + (column + 1) * width
        lines: list[str] = []
        for name, curve in points:
            index = bisect_right(times[name], at + 1e-9) - 1
            if index >= 0:
                lines.append(f"{name}: {plot.write(curve[index][1])}")
        if lines:
            shown = [f"after {duration(max(at, 0))}", *lines]
            found.append(_tip(timeline.x(at - width), timeline.x(at), TOP, plot.height - BOTTOM, shown))
    return found


def _tip(start: float, end: float, top: int, bottom: int, lines: Sequence[str]) -> str:
    """An unseen area that says something when pointed at."""
    return (
        f'<rect class="tip" x="{start:.1f}" y="{top}" width="{max(end - start, 0.1):.1f}" height="{bottom - top}">'
        f"<title>{escape(chr(10).join(lines))}</title></rect>"
    )


def _svg(name: str, title: str, description: str, height: int, body: Iterable[str], timeline: Timeline) -> str:
    bottom = height - BOTTOM
    axis = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for at in time_ticks(timeline.seconds):
        x = timeline.x(at)
        anchor = "start" if at == 0 else "end" if x > WIDTH - RIGHT - 30 else "middle"
        axis.append(f'<text class="time" x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{duration(at)}</text>')
    return (
        f'<svg id="{name}" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
        f"{''.join(axis)}{''.join(body)}</svg>"
    )
