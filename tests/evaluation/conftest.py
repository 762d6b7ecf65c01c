"""Versions to evaluate: served by the stand-in of this folder, whose answers are known without a model."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.settings.version import ServerSettings
from model_packaging.evaluation.options import EvaluationRequest
from model_packaging.evaluation.plan import Plan
from model_packaging.evaluation.results import Failure
from model_packaging.evaluation.version import Notify, Outcome, run_version
from model_packaging.package import Package

STAND_IN = Path(__file__).with_name("stand_in.py")

Tensors = list[dict[str, Any]]
Version = Callable[..., EvaluationRequest]

FEATURES: Tensors = [{"name": "features", "shape": [-1, 2], "datatype": "FP64"}]
LABELS_AND_SCORES: Tensors = [
    {"name": "predict", "shape": [-1], "datatype": "INT64"},
    {"name": "predict_proba", "shape": [-1, 2], "datatype": "FP64"},
]
VALUE: Tensors = [{"name": "value", "shape": [-1, 1], "datatype": "FP64"}]


def package(
    inputs: Tensors | None, outputs: Tensors = LABELS_AND_SCORES, sample: dict[str, Any] | None = None
) -> Package:
    document: dict[str, Any] = {
        "framework": {"name": "stand-in", "version": "1"},
        "training_data": "none",
        "licence": "Apache-2.0",
        "samples": [sample or {}],
    }
    return Package.model_validate(
        document | ({} if inputs is None else {"signature": {"inputs": inputs, "outputs": outputs}})
    )


class SameProcess:
    """An engine that starts servers, and no process of its own for each version."""

    def run(self, plans: Sequence[Plan], notify: Notify) -> list[Outcome | Failure]:
        with tempfile.TemporaryDirectory() as scratch:
            return [self._run(plan, Path(scratch, str(number)), notify) for number, plan in enumerate(plans)]

    def _run(self, plan: Plan, scratch: Path, notify: Notify) -> Outcome | Failure:
        scratch.mkdir()
        return run_version(plan, scratch, 0, notify)


@pytest.fixture
def version(tmp_path: Path) -> Version:
    """Makes a version that the stand-in serves."""

    def make(
        name: str = "1.0.0",
        behaviour: str = "right",
        inputs: Tensors | None = FEATURES,
        outputs: Tensors = LABELS_AND_SCORES,
        sample: dict[str, Any] | None = None,
    ) -> EvaluationRequest:
        folder = tmp_path / f"{name}-{behaviour}"
        folder.mkdir()
        command = [sys.executable, str(STAND_IN), "{http_port}", "{model_dir}", "{version}", behaviour]
        return EvaluationRequest(
            model="tumour",
            version=name,
            folder=folder,
            package=package(inputs, outputs, sample),
            server=ServerSettings(command=command),
        )

    return make


@pytest.fixture
def rows() -> np.ndarray:
    """Shape (40, 3): the stand-in's score, a number it ignores, and a label that is wrong in some rows."""
    generator = np.random.default_rng(5)
    scores = np.linspace(0.02, 0.98, 40)
    labels = (scores + generator.normal(0, 0.2, 40) >= 0.5).astype(float)
    return np.column_stack([scores, generator.normal(size=40), labels])


@pytest.fixture
def table(tmp_path: Path, rows: np.ndarray) -> Path:
    """Those rows as CSV: columns `score`, `other`, and the target `label`."""
    lines = [f"{score!r},{other!r},{int(label)}" for score, other, label in rows.tolist()]
    return write(tmp_path / "held-out.csv", "\n".join(["score,other,label", *lines]))


def write(path: Path, text: str) -> Path:
    path.write_text(text + "\n")
    return path
