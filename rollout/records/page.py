"""The page of a rollout's record: one HTML file that needs nothing beside it, and runs nothing. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime
from html import escape
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from rollout.analysis.judge import Verdict
from rollout.records.plots import (
    COLOURS,
    Curve,
    Mark,
    Plot,
    Row,
    Span,
    Timeline,
    draw,
    draw_shares,
    draw_words,
    duration,
)
from rollout.records.series import (
    Measure,
    Reach,
    Tally,
    error_band,
    error_ratio,
    quantile,
    quantile_band,
    rates,
    series,
    tally,
    times,
)
from rollout.records.style import STYLE
from rollout.records.summary import phases
from rollout.strategies import words

if TYPE_CHECKING:
    from rollout.records.record import Event, Seen

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing of the page runs or loads anything, whatever somebody wrote into a reason."""
_MOST_EVENTS = 500
_SHORTEST_STOP = 2.0
"""Seconds that a rollout stood still, to be shown: it passes through `waiting` on its way in any case."""
_STANDING = {
    "paused": "paused",
    "held": "held",
    "waiting": "waiting",
    "awaiting approval": "waiting for approval",
}
_OUTCOMES = {"succeeded": "pass", "taken back": "fail", "aborted": "fail"}
_LATENCIES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def render(record: Mapping[str, Any], events: Sequence[Event], seen: Sequence[Seen]) -> str:
    """The page. `record`: what `record.json` has."""
    name = f"{record['endpoint']}: rollout {record['id']}"
    parts = [
        _head(record),
        *_figures(record, events, seen),
        _steps(record),
        _verdicts(record),
        _events(record, events),
        "<details><summary>Settings</summary>"
        f"<pre>{escape(json.dumps(record['settings'], indent=1, ensure_ascii=False))}</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<title>{escape(name)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


# -- words and tables


def _head(record: Mapping[str, Any]) -> str:
    outcome = record["outcome"]
    rollback = record["rollback"]
    moved = f"{words(record['initial']['weights'])} → {words(record['steps'][-1]['weights'])}"
    facts = {
        "Strategy": record["strategy"],
        "From, to": moved,
        "Baseline": record["baseline"],
        "Started": f"{_moment(record['started'])} by {record['by']}",
        "Took": duration(record["seconds"]),
        "Taken back": f"{_moment(rollback['at'])}, done in {duration(rollback['seconds'])}"
        if rollback and rollback["seconds"] is not None
        else "",
        "Revision before": str(record["revision_before"] or ""),
        "Git commit": (record["git_commit"] or "")[:12],
    }
    reason = rollback["reason"] if rollback else record["reason"]
    kind = _OUTCOMES.get(outcome, "inconclusive")
    listed = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
    return (
        f'<h1>{escape(record["endpoint"])} <span class="badge {kind}">{escape(outcome)}</span></h1>'
        f'<p class="under">rollout {escape(record["id"])}</p>'
        + (f'<div class="reason {kind}" id="reason">{escape(reason)}</div>' if reason else "")
        + f"<dl>{listed}</dl>{_requests(record)}"
    )


def _requests(record: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    for version, counts in record["requests"].items():
        role = "baseline" if version == record["baseline"] else "candidate" if version in record["candidates"] else ""
        ratio = f"{100 * counts['errors'] / counts['requests']:.3g} %" if counts["requests"] else "-"
        rows.append([escape(version), role, f"{counts['requests']:,}", f"{counts['errors']:,}", ratio])
    heads = ["Version", "", "Requests", "Errors", "Error ratio"]
    return _table("requests", "Requests", heads, rows, numbers={2, 3, 4}) if rows else ""


def _steps(record: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    for step in record["steps"]:
        said = [(outcome["gate"], outcome["version"], outcome["verdict"]) for outcome in step["outcomes"]]
        said = said or [(verdict["gate"], verdict["version"], verdict["word"]) for verdict in step["verdicts"]]
        pills = [
            f'<span class="badge {escape(word)}" title="{escape(f"{version}: {word}")}">{escape(gate)}</span>'
            for gate, version, word in said
        ]
        shadow = ", ".join(f"{percent:g} % copied to {version}" for version, percent in step["shadow"].items())
        rows.append(
            [
                str(step["step"]),
                escape(words(step["weights"]) + (f" ({shadow})" if shadow else "")),
                f"{step['percent']:.3g} %",
                _moment(step["began"]) if step["began"] else "-",
                duration(step["update_seconds"]) if step["update_seconds"] is not None else "-",
                duration(step["seconds"]) if step["seconds"] is not None else "-",
                " ".join(pills) or "-",
            ]
        )
    heads = ["Step", "Weights", "Moved", "Set at", "Set in", "Lasted", "Gates"]
    return _table("steps", "Steps", heads, rows, numbers={2, 4, 5}, texts={1, 6})


def _verdicts(record: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    for step in record["steps"]:
        for verdict in step["verdicts"]:
            rows.append(
                [
                    str(step["step"]),
                    escape(verdict["gate"]),
                    escape(verdict["version"]),
                    f'<span class="badge {escape(verdict["word"])}">{escape(verdict["word"])}</span>',
                    f"{verdict['samples']:,} / {verdict['needed']:,}",
                    f"{verdict['evidence']:.3g}",
                    escape(verdict["reason"]),
                ]
            )
    heads = ["Step", "Gate", "Version", "Verdict", "Samples / needed", "Evidence", "Why"]
    return _table("verdicts", "What the gates said last", heads, rows, numbers={4, 5}, texts={6}) if rows else ""


def _events(record: Mapping[str, Any], events: Sequence[Event]) -> str:
    rows: list[list[str]] = []
    start = _epoch(record["started"])
    for event in events[:_MOST_EVENTS]:
        facts = event.facts
        said = [f"step {facts['step']}"] if "step" in facts else []
        said += [str(facts[name]) for name in ("version", "request", "driver", "text", "reason") if facts.get(name)]
        rows.append([f"{duration(max(event.at - start, 0))}", escape(event.kind), escape(" · ".join(said))])
    if len(events) > _MOST_EVENTS:
        rows.append(["", "", f"and {len(events) - _MOST_EVENTS} more, in events.jsonl"])
    table = _table("events", "", ["After", "What", ""], rows, numbers={0}, texts={2})
    return f"<details><summary>All that happened</summary>{table}</details>" if rows else ""


def _table(
    name: str,
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Set[int] = frozenset(),
    texts: Set[int] = frozenset(),
) -> str:
    """A table whose cells are HTML. `numbers` and `texts`: columns of figures, and those that may be long."""

    def cells(tag: str, row: Iterable[str]) -> str:
        kinds = ["number" if index in numbers else "text" if index in texts else "" for index, _ in enumerate(heads)]
        return "".join(
            f'<{tag} class="{kind}">{cell}</{tag}>' if kind else f"<{tag}>{cell}</{tag}>"
            for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    heading = f"<h2>{title}</h2>" if title else ""
    table = f'<table id="{name}"><thead><tr>{cells("th", heads)}</tr></thead><tbody>{body}</tbody></table>'
    return f'{heading}<div class="wide">{table}</div>'


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# -- plots


def _figures(record: Mapping[str, Any], events: Sequence[Event], seen: Sequence[Seen]) -> list[str]:
    start = _epoch(record["started"])
    at = times(seen, start)
    timeline = _timeline(record, events, seen, at, start)
    versions = _versions(record, seen)
    alpha = record["settings"]["alpha"]
    sure = f"{100 * (1 - alpha):g} %"
    found = [_weights_figure(record, events, seen, at, start, versions, timeline)]
    tallies = {version: tally(seen, at, version) for version in versions}
    found.append(
        f'<p class="note">Lines are what was counted since the step began, dots what was counted in short times. A '
        f"version is within its band with {sure} probability, at every look; of latencies as finely as the buckets "
        "of the histogram say. Shaded: the rollout stood still, or nothing could be seen.</p>"
    )
    found.append(
        _figure(
            Plot(
                "errors",
                "Error ratio",
                f"Share of answers that are errors by version over time. {_overall(record)}",
                _curves(tallies, versions, error_ratio, error_band(alpha)),
                lambda value: f"{100 * value:.3g} %",
            ),
            timeline,
        )
    )
    for share, label in _LATENCIES:
        plot = Plot(
            f"latency-{label}",
            f"Latency {label}",
            f"{100 * share:g} of 100 requests take no longer, in milliseconds, by version over time.",
            _curves(tallies, versions, quantile(share), quantile_band(share, alpha)),
            _milliseconds,
        )
        found.append(_figure(plot, timeline))
    served = [Curve(name, versions.index(name), rates(of)) for name, of in tallies.items() if of.columns]
    plot = Plot("requests-rate", "Requests a second", "Requests answered a second by version over time.", served,
                lambda value: f"{value:.3g}/s", height=130)  # fmt: skip
    found.append(_figure(plot, timeline))
    found += _query_figures(seen, at, versions, timeline)
    found += _gate_figures(seen, at, timeline, record["fails_at"])
    return [figure for figure in found if figure]


def _timeline(
    record: Mapping[str, Any], events: Sequence[Event], seen: Sequence[Seen], at: Sequence[float], start: float
) -> Timeline:
    entered = phases(events)
    end = max([record["seconds"], *at[-1:], *(event.at - start for event in entered), 1.0])
    marks: list[Mark] = []
    spans: list[Span] = []
    for event, following in pairwise([*entered, None]):
        assert event is not None
        moment = max(event.at - start, 0.0)
        reason = str(event.facts.get("reason", ""))
        if event.kind == "baking":
            weights = event.facts.get("weights", {})
            marks.append(Mark(moment, f"step {event.facts.get('step', '?')}", "step", words(weights)))
        elif event.kind == "taking back":
            marks.append(Mark(moment, "rollback", "rollback", reason))
        elif event.kind in _OUTCOMES:
            marks.append(Mark(moment, event.kind, "end", reason))
        until = following.at - start if following else end
        if event.kind in _STANDING and until - moment >= _SHORTEST_STOP:
            spans.append(Span(moment, until, "stopped", f"{_STANDING[event.kind]}: {reason}".rstrip(": ")))
    for problem, group in groupby(range(len(seen)), key=lambda index: seen[index].look.problem):
        indices = list(group)
        if problem:
            began = max(at[indices[0]] - seen[indices[0]].look.seconds, 0.0)
            spans.append(Span(began, at[indices[-1]], "unseen", f"nothing seen: {problem}"))
    return Timeline(end, marks, spans)


def _versions(record: Mapping[str, Any], seen: Sequence[Seen]) -> list[str]:
    """Every version of the rollout, in the order of their colours: the baseline first, then candidates."""
    weighted = [*record["initial"]["weights"], *(name for step in record["steps"] for name in step["weights"])]
    looked = {name for item in seen for name in (*item.look.counts, *item.look.weights)}
    ordered = [record["baseline"], *record["candidates"], *weighted, *sorted(looked)]
    return list(dict.fromkeys(ordered))


def _weights_figure(
    record: Mapping[str, Any],
    events: Sequence[Event],
    seen: Sequence[Seen],
    at: Sequence[float],
    start: float,
    versions: Sequence[str],
    timeline: Timeline,
) -> str:
    changes: list[tuple[float, Mapping[str, int]]] = [(0.0, record["initial"]["weights"])]
    changes += [
        (event.at - start, event.facts.get("weights", {})) for event in events if event.kind in ("weights", "baking")
    ]
    changes += [(moment, item.look.weights) for moment, item in zip(at, seen, strict=True) if item.look.weights]
    # At the same moment, what was seen comes after what was set.
    changes.sort(key=lambda change: change[0])
    shown = [version for version in versions if any(weights.get(version) for _, weights in changes)]
    shares = [
        (max(moment, 0.0), [weights.get(version, 0) / sum(weights.values()) for version in shown])
        for moment, weights in changes
        if sum(weights.values())
    ]
    text = f"From {words(record['initial']['weights'])}, in {len(record['steps'])} steps. {record['outcome']}."
    keys = [(versions.index(name), name) for name in shown]
    drawn = draw_shares("weights", "Weights", text, shares, keys, timeline)
    return _framed("Weights", drawn, keys, "As the data plane had them.")


def _curves(tallies: Mapping[str, Tally], versions: Sequence[str], measure: Measure, reach: Reach) -> list[Curve]:
    found: list[Curve] = []
    for version, of in tallies.items():
        drawn = series(of, measure, reach)
        if drawn.pieces:
            found.append(Curve(version, versions.index(version), drawn.pieces, drawn.bands, drawn.dots))
    return found


def _query_figures(
    seen: Sequence[Seen], at: Sequence[float], versions: Sequence[str], timeline: Timeline
) -> list[str]:  # fmt: skip
    found: list[str] = []
    for gate in sorted({gate for item in seen for gate in item.look.values}):
        curves: list[Curve] = []
        for version in versions:
            piece = [
                (moment, item.look.values[gate][version])
                for moment, item in zip(at, seen, strict=True)
                if version in item.look.values.get(gate, {})
            ]
            if piece:
                curves.append(Curve(version, versions.index(version), [piece]))
        name = f"query-{gate}"
        plot = Plot(
            name, gate, f"The query of gate {gate}, by version over time.", curves, lambda value: f"{value:.3g}"
        )
        found.append(_figure(plot, timeline, "The gate's query."))
    return found


def _gate_figures(seen: Sequence[Seen], at: Sequence[float], timeline: Timeline, fails_at: float) -> list[str]:
    kept = [(moment, item.step, item.verdicts) for moment, item in zip(at, seen, strict=True) if item.verdicts]
    pairs = list(dict.fromkeys((verdict.gate, verdict.version) for _, _, said in kept for verdict in said))
    if not pairs:
        return []
    curves: list[Curve] = []
    rows: list[Row] = []
    for number, pair in enumerate(pairs, 1):
        said = [
            (moment, step, verdict) for moment, step, verdicts in kept for verdict in verdicts if _of(verdict) == pair
        ]
        pieces = [
            [(moment, verdict.evidence) for moment, _, verdict in group]
            for _, group in groupby(said, key=lambda item: item[1])
        ]
        name = " ".join(pair)
        curves.append(Curve(name, number, pieces))
        words: list[tuple[float, float, str, str]] = []
        for (_, word), group in groupby(said, key=lambda item: (item[1], item[2].word)):
            same = list(group)
            following = next((moment for moment, step, _ in said if moment > same[-1][0] and step == same[-1][1]), None)
            words.append((same[0][0], following or same[-1][0], word, same[0][2].reason))
        rows.append(Row(name, words))
    plot = Plot(
        "evidence",
        "Evidence against the candidates",
        f"E-values by gate over time. A gate fails at {fails_at:.4g}.",
        curves,
        lambda value: f"{value:.3g}",
        logarithmic=True,
        limits=[(fails_at, f"fails at {fails_at:.4g}")],
    )
    drawn = draw_words("words", "Verdicts", "What each gate said over time.", rows, timeline)
    return [
        _figure(plot, timeline, "1 at the start, on a logarithmic axis."),
        _framed("Verdicts", drawn, [], "Green: pass. Yellow: inconclusive. Red: fail."),
    ]


def _of(verdict: Verdict) -> tuple[str, str]:
    return verdict.gate, verdict.version


def _figure(plot: Plot, timeline: Timeline, note: str = "") -> str:
    """Nothing where there is nothing to draw."""
    if not any(curve.pieces for curve in plot.curves):
        return ""
    return _framed(plot.title, draw(plot, timeline), [(curve.colour, curve.name) for curve in plot.curves], note)


def _framed(title: str, drawn: str, keys: Sequence[tuple[int, str]], note: str) -> str:
    listed = "".join(f'<span class="key c{colour % COLOURS}">{escape(name)}</span>' for colour, name in keys)
    return (
        f'<figure><figcaption><h2>{escape(title)}</h2>{listed}<span class="note">{escape(note)}</span></figcaption>'
        f'<div class="wide">{drawn}</div></figure>'
    )


def _overall(record: Mapping[str, Any]) -> str:
    return " ".join(
        f"{version}: {counts['errors']} of {counts['requests']}." for version, counts in record["requests"].items()
    )


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
