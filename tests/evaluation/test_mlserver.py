"""The server of production gives the metrics that scikit-learn computes on the model in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn import datasets, metrics
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split

from model_packaging.evaluation.options import EvaluationRequest, Options
from model_packaging.evaluation.results import Evaluation
from model_packaging.evaluation.run import evaluate
from model_packaging.package import Package
from tests.evaluation.conftest import SameProcess


class Held:
    """A model, rows that it was not trained on, and how MLServer's answers to them were judged."""

    def __init__(self, model: Any, load: Any, folder: Path, suffix: str, **options: Any) -> None:
        data, target = load(return_X_y=True)
        known, self.rows, known_target, self.truth = map(
            np.asarray, train_test_split(data, target, test_size=0.3, random_state=0)
        )
        self.model = model.fit(known, known_target)
        request = packaged(self.model, self.rows.shape[1], folder)
        found = evaluate(
            [request], self.written(folder / f"held-out.{suffix}"), Options(target="target", **options), SameProcess()
        )
        assert found.failures == ()
        self.evaluation: Evaluation = found.evaluations[0]

    def written(self, path: Path) -> Path:
        frame = pd.DataFrame(self.rows).add_prefix("feature_").assign(target=self.truth)
        match path.suffix:
            case ".csv":
                frame.to_csv(path, index=False)
            case ".parquet":
                frame.to_parquet(path)
            case _:
                np.savez(path, features=self.rows, target=self.truth)
        return path


def packaged(model: Any, features: int, folder: Path) -> EvaluationRequest:
    """The folder of the model's artifact, as examples/tumour makes one."""
    outputs: list[dict[str, Any]] = [{"name": "predict", "shape": [-1, 1], "datatype": "FP64"}]
    if hasattr(model, "classes_"):
        outputs[0]["datatype"] = "INT64"
        outputs.append({"name": "predict_proba", "shape": [-1, len(model.classes_)], "datatype": "FP64"})
    artifact = folder / "artifact"
    artifact.mkdir()
    joblib.dump(model, artifact / "model.joblib")
    settings = {
        "name": "held",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": "1.0.0"},
    }
    (artifact / "model-settings.json").write_text(json.dumps(settings))
    package = {
        "framework": {"name": "scikit-learn", "version": sklearn.__version__},
        "training_data": "sklearn.datasets",
        "licence": "BSD-3-Clause",
        "signature": {
            "inputs": [{"name": "features", "shape": [-1, features], "datatype": "FP64"}],
            "outputs": outputs,
        },
        "samples": [{}],
    }
    return EvaluationRequest(model="held", version="1.0.0", folder=artifact, package=Package.model_validate(package))


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("binary")
    return Held(
        LogisticRegression(max_iter=5000), datasets.load_breast_cancer, folder, "parquet",
        objective="cost:fp=10,fn=1", batch_rows=50, concurrency=2, latency_requests=20, positive=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("three-classes")
    return Held(LogisticRegression(max_iter=1000), datasets.load_iris, folder, "npz", latency_requests=0)


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("regressor")
    return Held(LinearRegression(), datasets.load_diabetes, folder, "csv", latency_requests=0)


def reported(held: Held) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, labels and positive scores of the rows that chose no threshold, from the model in memory."""
    _, rows = train_test_split(np.arange(len(held.truth)), train_size=0.5, stratify=held.truth, random_state=0)
    data = held.rows[rows]
    return held.truth[rows], held.model.predict(data), held.model.predict_proba(data)[:, 0]


def test_two_classes(binary: Held) -> None:
    truth, labels, scores = reported(binary)
    found = binary.evaluation
    assert (found.rows, found.positive) == (len(truth), 0)
    assert np.array_equal(found.confusion, metrics.confusion_matrix(truth, labels))
    assert found.metrics == {
        **{
            f"{name}_{mean}": pytest.approx(getattr(metrics, f"{name}_score")(truth, labels, average=mean))
            for name in ("precision", "recall", "f1")
            for mean in ("macro", "weighted")
        },
        "accuracy": pytest.approx(metrics.accuracy_score(truth, labels)),
        "precision": pytest.approx(metrics.precision_score(truth, labels, pos_label=0)),
        "recall": pytest.approx(metrics.recall_score(truth, labels, pos_label=0)),
        "f1": pytest.approx(metrics.f1_score(truth, labels, pos_label=0)),
        "roc_auc": pytest.approx(metrics.roc_auc_score(truth == 0, scores)),
        "log_loss": pytest.approx(metrics.log_loss(truth == 0, scores)),
    }


def test_the_threshold_of_two_classes(binary: Held) -> None:
    truth, _, scores = reported(binary)
    threshold = binary.evaluation.threshold
    assert threshold is not None
    # A false alarm is ten times as dear as a miss.
    assert threshold.value > 0.5
    decided = np.where(scores >= threshold.value, 0, 1)
    assert np.array_equal(threshold.confusion, metrics.confusion_matrix(truth, decided))
    assert threshold.metrics["accuracy"] == metrics.accuracy_score(truth, decided)


def test_the_latency_of_a_real_server(binary: Held) -> None:
    latency = binary.evaluation.latency
    assert latency is not None
    assert latency.requests == 20
    assert 0 < latency.p50_ms <= latency.p99_ms


def test_three_classes(three_classes: Held) -> None:
    truth, model, found = three_classes.truth, three_classes.model, three_classes.evaluation
    labels, scores = model.predict(three_classes.rows), model.predict_proba(three_classes.rows)
    assert found.classes == (0, 1, 2)
    assert np.array_equal(found.confusion, metrics.confusion_matrix(truth, labels))
    assert found.metrics["f1_macro"] == pytest.approx(metrics.f1_score(truth, labels, average="macro"))
    assert found.metrics["roc_auc_macro"] == pytest.approx(metrics.roc_auc_score(truth, scores, multi_class="ovr"))
    assert found.metrics["log_loss"] == pytest.approx(metrics.log_loss(truth, scores))
    assert [curve.label for curve in found.roc] == [0, 1, 2]


def test_a_regressor(regressor: Held) -> None:
    answered = regressor.model.predict(regressor.rows)
    assert regressor.evaluation.task == "regression"
    assert regressor.evaluation.metrics == {
        "mae": pytest.approx(metrics.mean_absolute_error(regressor.truth, answered)),
        "rmse": pytest.approx(metrics.root_mean_squared_error(regressor.truth, answered)),
        "r2": pytest.approx(metrics.r2_score(regressor.truth, answered)),
    }
