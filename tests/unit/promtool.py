"""Prometheus' own `promtool`: whether it accepts rules, and what they make of series."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SCRAPE = "2s"
"""Scrapes and evaluations are this far apart, so that a step of `+20` in a series is 10 a second."""

Samples = Mapping[str, float]
"""Numbers by labels."""

Alert = tuple[Mapping[str, str], Mapping[str, str]]
"""Labels and annotations."""


class Promtool:
    """Runs in a folder of its own, with these rule files (texts by name)."""

    def __init__(self, folder: Path, rules: Mapping[str, str]) -> None:
        self._folder = folder
        self._rules = list(rules)
        self._command = found()
        for name, text in rules.items():
            (folder / name).write_text(text)

    def lint(self) -> None:
        self._run("check", "rules", "--lint=all", "--lint-fatal", *self._rules)

    def check(
        self, series: Mapping[str, str], expected: Mapping[str, Samples | None], at: str = "2m", scrape: str = SCRAPE
    ) -> None:
        """Has Prometheus run the rules over `series`, and compare what they made at `at` with what is expected.

        Expected are numbers by labels by query, or None by query for no sample at all.
        """
        queries = [_expectation(query, samples, at) for query, samples in expected.items()]
        self._test(series, scrape, {"promql_expr_test": queries})

    def check_alerts(
        self, series: Mapping[str, str], alert: str, firing: Sequence[Alert], at: str, scrape: str = "15s"
    ) -> None:
        """Has Prometheus evaluate the alerts over `series`: of this name exactly these must fire at `at`."""
        wanted = [{"exp_labels": dict(labels), "exp_annotations": dict(annotations)} for labels, annotations in firing]
        test = {"eval_time": at, "alertname": alert, "exp_alerts": wanted}
        self._test(series, scrape, {"alert_rule_test": [test]})

    def _test(self, series: Mapping[str, str], scrape: str, tests: dict[str, Any]) -> None:
        document = {
            "rule_files": self._rules,
            "evaluation_interval": scrape,
            "fuzzy_compare": True,
            "tests": [
                {
                    "interval": scrape,
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    **tests,
                }
            ],
        }
        (self._folder / "test.yml").write_text(yaml.safe_dump(document))
        self._run("test", "rules", "test.yml")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._command, *arguments], check=False, capture_output=True, text=True, cwd=self._folder
        )
        assert done.returncode == 0, done.stdout + done.stderr


def found() -> str:
    tools = Path(__file__).parents[2] / ".tools" / "bin"
    command = shutil.which("promtool", path=f"{os.environ['PATH']}{os.pathsep}{tools}")
    assert command is not None, "no promtool on PATH or in .tools/bin: `make tools` builds it"
    return command


def _expectation(query: str, samples: Samples | None, at: str) -> dict[str, Any]:
    if samples is None:
        return {"expr": query, "eval_time": at}
    expected = [{"labels": f"{{{labels}}}", "value": value} for labels, value in samples.items()]
    # Without the last digits, in which sums of floating-point numbers differ.
    return {"expr": f"round({query}, 0.00001)", "eval_time": at, "exp_samples": expected}
