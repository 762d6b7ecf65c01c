"""The results of an evaluation as one HTML file, plots included, that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from infra.files import write_atomically
from model_packaging.evaluation.results import Comparison, Evaluation, EvaluationRun, Interval, Latency, Threshold

_MOST_NAMED_CLASSES = 30
"""In a heatmap; with more, cells and names are too small to read."""
_MOST_CURVES = 10
_SHARES = (
    "accuracy",
    "precision",
    "recall",
    "f1",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "roc_auc",
)
_ERRORS = ("mae", "rmse", "r2")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #d0d7de; text-align: right }
th:first-child, td:first-child { text-align: left }
.interval, .detail { color: #57606a; font-size: 85% }
.note { background: #fff8c5; padding: .5rem .75rem; border-radius: .3rem }
.failure { background: #ffebe9; padding: .5rem .75rem; border-radius: .3rem; white-space: pre-wrap }
code { overflow-wrap: anywhere }
img { max-width: 100% }
"""


def write_report(run: EvaluationRun, path: Path) -> None:
    """Writes `render_report` to a file, which is never seen half-written."""
    write_atomically(path, render_report(run))


def render_report(run: EvaluationRun) -> str:
    """The whole run as an HTML document without any reference to another resource."""
    # The same results give the same file; and a class called `$x$` is no formula.
    with rc_context({"svg.hashsalt": "lepton", "svg.fonttype": "none", "text.parse_math": False}):
        return _render(run)


def _render(run: EvaluationRun) -> str:
    models = sorted({one.model for one in (*run.evaluations, *run.failures)})
    title = f"Evaluation of {', '.join(models)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{run.dataset.rows:,} rows of <code>{escape(run.dataset.path)}</code><br>"
        f'<span class="detail"><code>{escape(run.dataset.digest)}</code></span></p>',
        *(f'<p class="failure"><b>{escape(one.name)} failed:</b> {escape(one.reason)}</p>' for one in run.failures),
        *_overview(run.evaluations),
        *_comparisons(run.comparisons),
        *(part for evaluation in run.evaluations for part in _version(evaluation)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


# Tables


def _overview(evaluations: Sequence[Evaluation]) -> Iterable[str]:
    if not evaluations:
        return
    names = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics))
    confidence = evaluations[0].confidence
    yield "<h2>Versions</h2>"
    yield (
        f"<p>Of the answers as served, on the rows that chose no threshold. Small: {confidence:.0%} confidence "
        "intervals.</p>"
    )
    rows = [
        [_label(name), *(_cell(one.metrics.get(name), one.intervals.get(name)) for one in evaluations)]
        for name in names
    ]
    rows += [
        ["Rows", *(f"{one.rows:,}" for one in evaluations)],
        ["Latency of one row, p50 / p95 / p99", *(_latency(one.latency) for one in evaluations)],
        ["Until ready", *(f"{one.start_seconds:.1f} s" for one in evaluations)],
    ]
    yield _table(["Metric", *(escape(one.name) for one in evaluations)], rows)
    for metrics, what in ((_SHARES, "Scores"), (_ERRORS, "Errors")):
        shown = [name for name in metrics if any(name in one.metrics for one in evaluations)]
        if shown:
            yield _image(_bars(evaluations, shown), f"{what} of each version")
    if any(one.roc for one in evaluations):
        yield _image(_curves(evaluations), "ROC curves of each version")


def _comparisons(comparisons: Sequence[Comparison]) -> Iterable[str]:
    if not comparisons:
        return
    yield f"<h2>Compared with {escape(comparisons[0].baseline)}</h2>"
    yield (
        f"<p>Row by row, on the same {comparisons[0].rows:,} rows; {escape(comparisons[0].test)}. The p-value says how "
        "often chance alone would make two equally good versions differ at least as much.</p>"
    )
    rows = [
        [
            escape(one.version),
            _cell(one.difference, one.interval, sign="+"),
            "" if one.only_version_right is None else f"{one.only_version_right:,}",
            "" if one.only_baseline_right is None else f"{one.only_baseline_right:,}",
            f"{one.p_value:.3g}",
            f"{one.p_value_adjusted:.3g}",
        ]
        for one in comparisons
    ]
    metric = _label(comparisons[0].metric)
    yield _table(
        ["Version", f"{metric}, difference", "Only it is right", "Only the baseline is right", "p", "p, Holm"], rows
    )


def _version(evaluation: Evaluation) -> Iterable[str]:
    yield f"<h2>{escape(evaluation.name)}</h2>"
    if evaluation.digest is not None:
        yield f'<p class="detail"><code>{escape(evaluation.digest)}</code></p>'
    yield from (f'<p class="note">{escape(note)}</p>' for note in evaluation.notes)
    if evaluation.confusion:
        caption = "As served"
        yield _image(_heatmap(evaluation.confusion, evaluation.classes, caption), f"Confusion matrix: {caption}")
        yield _table(
            ["Class", "Rows", "Precision", "Recall", "F1"],
            [
                [escape(str(one.label)), f"{one.rows:,}", *map(_number, (one.precision, one.recall, one.f1))]
                for one in evaluation.per_class
            ],
        )
    if evaluation.threshold is not None:
        yield from _threshold(evaluation, evaluation.threshold)


def _threshold(evaluation: Evaluation, threshold: Threshold) -> Iterable[str]:
    yield f"<h3>Threshold for {escape(threshold.objective)}</h3>"
    positive = escape(str(threshold.positive))
    yield (
        f"<p>A row is called <b>{positive}</b> from a score of <b>{threshold.value:.6g}</b> on. It was chosen on "
        f"{threshold.selection_rows:,} rows, on which the objective is {threshold.objective_value:.4g}.</p>"
    )
    if threshold.same_rows:
        yield (
            '<p class="note">The numbers below are of the same rows that the threshold was chosen on, '
            "so they are better than on new data.</p>"
        )
    yield _table(
        ["Metric", "As served", "With the threshold"],
        [
            [
                _label(name),
                _cell(evaluation.metrics[name], evaluation.intervals.get(name)),
                _cell(value, threshold.intervals.get(name)),
            ]
            for name, value in threshold.metrics.items()
        ],
    )
    caption = f"With the threshold {threshold.value:.4g}"
    yield _image(_heatmap(threshold.confusion, evaluation.classes, caption), f"Confusion matrix: {caption}")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return (
        f"<table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>\n<tbody>{body}</tbody></table>"
    )


def _cell(value: float | None, interval: Interval | None, sign: str = "") -> str:
    if value is None:
        return ""
    text = _number(value, sign)
    if interval is None:
        return text
    low, high = _number(interval.low, sign), _number(interval.high, sign)
    return f'{text}<br><span class="interval" title="{escape(interval.method)}">{low} to {high}</span>'


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4f}" if abs(value) < 100 else f"{value:{sign},.4g}"


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return "not measured"
    return f"{latency.p50_ms:.1f} / {latency.p95_ms:.1f} / {latency.p99_ms:.1f} ms"


def _label(metric: str) -> str:
    names = {"roc_auc": "ROC-AUC", "log_loss": "log-loss", "f1": "F1", "mae": "MAE", "rmse": "RMSE", "r2": "R²"}
    for stem in sorted(names, key=len, reverse=True):
        if metric == stem or metric.startswith(f"{stem}_"):
            return names[stem] + metric.removeprefix(stem).replace("_", ", ")
    return metric.replace("_", ", ")


# Plots


def _bars(evaluations: Sequence[Evaluation], metrics: Sequence[str]) -> Figure:
    figure = Figure(figsize=(min(16, 2 + len(metrics) * (0.6 + 0.25 * len(evaluations))), 3.5), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0] if metrics[0] in _ERRORS else [figure.subplots()]
    groups = [[name] for name in metrics] if metrics[0] in _ERRORS else [list(metrics)]
    width = 0.8 / len(evaluations)
    for axis, group in zip(axes, groups, strict=True):
        for position, evaluation in enumerate(evaluations):
            heights = np.array([evaluation.metrics.get(name, np.nan) for name in group])
            places = np.arange(len(group)) + (position - (len(evaluations) - 1) / 2) * width
            axis.bar(places, heights, width, label=evaluation.name, yerr=_reach(evaluation, group), capsize=3)
        axis.set_xticks(range(len(group)), [_label(name) for name in group])
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[:_MOST_CURVES], labels[:_MOST_CURVES], loc="outside right upper", frameon=False)
    return figure


def _reach(evaluation: Evaluation, metrics: Sequence[str]) -> np.ndarray:
    """How far each interval reaches below and above its metric: shape (2, metrics), 0 where there is none."""
    reach = np.zeros((2, len(metrics)))
    for position, name in enumerate(metrics):
        interval = evaluation.intervals.get(name)
        if interval is not None:
            value = evaluation.metrics[name]
            # A percentile interval need not hold the value itself.
            reach[:, position] = max(0, value - interval.low), max(0, interval.high - value)
    return reach


def _curves(evaluations: Sequence[Evaluation]) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    curves = [(evaluation, curve) for evaluation in evaluations for curve in evaluation.roc]
    for evaluation, curve in curves[:_MOST_CURVES]:
        label = f"{evaluation.name}, {curve.label}: {curve.area:.4f}"
        axis.plot(curve.false_positive_rate, curve.true_positive_rate, label=label)
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axis.set(xlabel="False positive rate", ylabel="True positive rate", aspect="equal")
    if len(curves) > _MOST_CURVES:
        axis.set_title(f"The first {_MOST_CURVES} of {len(curves)} curves")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _heatmap(confusion: Sequence[Sequence[int]], classes: Sequence[object], caption: str) -> Figure:
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.5 * min(len(classes), _MOST_NAMED_CLASSES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="Answered", ylabel="True", title=caption)
    if len(classes) <= _MOST_NAMED_CLASSES:
        names = [str(label) for label in classes]
        axis.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 4 else 0)
        axis.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axis.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    figure.colorbar(image, label="Share of the true class")
    return figure


def _image(figure: Figure, description: str) -> str:
    """The figure as SVG in the page itself. As an image, so that names inside one plot can't meet another's."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of letters that Matplotlib's own font lacks: the browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    encoded = base64.b64encode(content.getvalue()).decode()
    return f'<p><img alt="{escape(description)}" src="data:image/svg+xml;base64,{encoded}"></p>'
