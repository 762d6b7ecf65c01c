"""The report is one file that shows every version, and that data can't turn into something else."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from model_packaging.evaluation.report import render_report, write_report
from model_packaging.evaluation.results import Evaluation, EvaluationRun

DIGEST = "sha256:" + "0" * 64
INTERVAL = {"low": 0.4, "high": 0.8, "method": "Wilson"}


def evaluation(version: str = "1.0.0", **changes: Any) -> Evaluation:
    document = {
        "model": "tumour",
        "version": version,
        "digest": DIGEST,
        "dataset": {"path": "/data/held-out.csv", "digest": DIGEST, "rows": 20},
        "task": "classification",
        "rows": 10,
        "metrics": {"accuracy": 0.6, "f1": 0.5, "roc_auc": 0.75},
        "intervals": {"accuracy": INTERVAL},
        "confidence": 0.95,
        "classes": ["benign", "malignant"],
        "positive": "malignant",
        "confusion": [[4, 1], [3, 2]],
        "per_class": [{"label": "benign", "rows": 5, "precision": 0.5, "recall": 0.8, "f1": 0.6}],
        "roc": [
            {
                "label": "malignant",
                "false_positive_rate": [0, 0.5, 1],
                "true_positive_rate": [0, 0.75, 1],
                "area": 0.75,
            }
        ],
        "latency": {"requests": 9, "mean_ms": 3, "p50_ms": 2.5, "p95_ms": 4, "p99_ms": 7.125, "neighbours": 0},
        "start_seconds": 4,
        "predict_seconds": 1,
        **changes,
    }
    return Evaluation.model_validate(document)


def run(*evaluations: Evaluation, **changes: Any) -> EvaluationRun:
    found = {
        "dataset": {"path": "/data/held-out.csv", "digest": DIGEST, "rows": 20},
        "evaluations": [one.model_dump() for one in evaluations],
        "failures": [],
        "comparisons": [],
    }
    return EvaluationRun.model_validate(found | changes)


class Page(HTMLParser):
    """What a browser makes of a report."""

    def __init__(self, report: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.references: list[str] = []
        self.images: dict[str, str] = {}
        self.feed(report)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attrs}
        self.references += [given[name] for name in ("src", "href", "data", "action") if name in given]
        if tag == "img":
            self.images[given["alt"]] = base64.b64decode(given["src"].partition("base64,")[2]).decode()

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(found.itertext()).strip() for found in root.iter("{http://www.w3.org/2000/svg}text")]


def test_it_refers_to_nothing_outside_itself() -> None:
    page = Page(render_report(run(evaluation(), evaluation("1.1.0"))))
    assert page.references
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in page.references)
    assert not {"script", "link", "iframe"} & set(page.tags)
    links = [value for svg in page.images.values() for value in re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)]
    assert all(value.startswith(("#", "data:")) for pair in links for value in pair if value)


def test_every_version_is_there_with_its_numbers() -> None:
    page = Page(render_report(run(evaluation(), evaluation("1.1.0", metrics={"accuracy": 0.7}))))
    for expected in ("tumour:1.0.0", "tumour:1.1.0", "0.6000", "0.7000", "0.4000 to 0.8000", "2.5 / 4.0 / 7.1 ms"):
        assert expected in page.text


def test_the_plots_are_a_heatmap_a_version_curves_and_bars() -> None:
    page = Page(render_report(run(evaluation(), evaluation("1.1.0"))))
    assert list(page.images) == ["Scores of each version", "ROC curves of each version", "Confusion matrix: As served"]
    assert page.tags.count("img") == 4
    assert {"4", "1", "3", "2", "benign", "malignant"} <= set(texts(page.images["Confusion matrix: As served"]))
    assert "tumour:1.1.0, malignant: 0.7500" in texts(page.images["ROC curves of each version"])
    assert {"accuracy", "F1", "ROC-AUC"} <= set(texts(page.images["Scores of each version"]))


def test_a_regressor_s_errors_each_have_an_axis_of_their_own() -> None:
    changes = {"confusion": [], "per_class": [], "roc": [], "classes": [], "positive": None, "task": "regression"}
    metrics = {"mae": 1234.5, "rmse": 2345.6, "r2": 0.8}
    page = Page(render_report(run(evaluation(metrics=metrics, intervals={}, **changes))))
    [bars] = page.images.values()
    assert {"MAE", "RMSE", "R²"} <= set(texts(bars))
    assert "1,234" in page.text or "1,235" in page.text


def test_a_threshold_chosen_on_the_same_rows_is_marked() -> None:
    threshold = {
        "objective": "f1", "positive": "malignant", "value": 0.25, "objective_value": 0.9, "selection_rows": 10,
        "same_rows": True, "metrics": {"accuracy": 0.65}, "intervals": {}, "confusion": [[3, 2], [2, 3]],
    }  # fmt: skip
    same = Page(render_report(run(evaluation(threshold=threshold)))).text
    apart = Page(render_report(run(evaluation(threshold=threshold | {"same_rows": False})))).text
    assert "the same rows that the threshold was chosen on" in same
    assert "the same rows that the threshold was chosen on" not in apart
    assert "0.25" in apart


def test_comparisons_and_failures_are_told() -> None:
    comparison = {
        "baseline": "tumour:1.0.0", "version": "tumour:1.1.0", "metric": "accuracy", "rows": 10, "difference": 0.125,
        "interval": INTERVAL, "only_baseline_right": 1, "only_version_right": 7, "test": "McNemar, exact",
        "p_value": 0.0703125, "p_value_adjusted": 0.140625,
    }  # fmt: skip
    failure = {"model": "tumour", "version": "2.0.0", "reason": "the server was not ready"}
    found = run(evaluation(), comparisons=[comparison], failures=[failure])
    page = Page(render_report(found))
    for expected in ("+0.1250", "McNemar, exact", "0.0703", "0.141", "tumour:2.0.0 failed:", "was not ready"):
        assert expected in page.text


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", "$\\frac{1$", "腫瘍", 'a & b "c"'])
def test_a_label_is_shown_as_it_is(label: str) -> None:
    classes = {"classes": [label, "other"], "positive": label}
    rows = [{"label": label, "rows": 5, "precision": 0.5, "recall": 0.8, "f1": 0.6}]
    page = Page(render_report(run(evaluation(**classes, per_class=rows, notes=[f"no row is of class {label}"]))))
    assert "script" not in page.tags
    assert f"no row is of class {label}" in page.text
    assert label in texts(page.images["Confusion matrix: As served"])


def test_a_run_in_which_all_failed_has_a_report() -> None:
    failure = {"model": "tumour", "version": "2.0.0", "reason": "no"}
    assert "tumour:2.0.0 failed:" in Page(render_report(run(failures=[failure]))).text


def test_the_same_results_give_the_same_file() -> None:
    assert render_report(run(evaluation())) == render_report(run(evaluation()))


def test_hundreds_of_classes_are_drawn_without_names() -> None:
    count = 300
    classes = [f"class {number}" for number in range(count)]
    confusion = [[int(row == column) for column in range(count)] for row in range(count)]
    page = Page(render_report(run(evaluation(classes=classes, confusion=confusion))))
    assert "class 0" not in texts(page.images["Confusion matrix: As served"])


def test_it_is_written_to_a_file(tmp_path: Path) -> None:
    write_report(run(evaluation()), tmp_path / "reports" / "report.html")
    assert (tmp_path / "reports" / "report.html").read_text() == render_report(run(evaluation()))
