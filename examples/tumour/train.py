"""Trains the two versions of the example model: is a breast tumour malignant or benign, from how its cells look?

The data is scikit-learn's own copy of the Wisconsin diagnostic data set: 569 tumours, 30 features, 357 of them benign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEED = 0
TEST_SHARE = 0.25

Classifier = Any
"""Fits, predicts and gives probabilities; scikit-learn's classifiers share these methods and no type that has them."""


def logistic_regression() -> Classifier:
    return make_pipeline(StandardScaler(), LogisticRegression(random_state=SEED))


def gradient_boosting() -> Classifier:
    return GradientBoostingClassifier(n_estimators=300, subsample=0.5, random_state=SEED)


MODELS: dict[str, Callable[[], Classifier]] = {
    "1.0.0": logistic_regression,
    "1.1.0": gradient_boosting,
}


@dataclass(frozen=True)
class Data:
    """Features are float64 of shape (rows, 30); labels are 0 for malignant, 1 for benign."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def load_data() -> Data:
    """The data set in two parts, each with the same share of benign tumours."""
    features, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(features, labels, test_size=TEST_SHARE, stratify=labels, random_state=SEED)
    train, test, train_labels, test_labels = map(np.asarray, parts)
    return Data(train, train_labels, test, test_labels)


def train(version: str, data: Data) -> Classifier:
    return MODELS[version]().fit(data.train, data.train_labels)


def evaluate(model: Classifier, data: Data) -> dict[str, float]:
    """Metrics on the held-out part."""
    predicted = model.predict(data.test)
    probability = model.predict_proba(data.test)[:, 1]
    return {
        "accuracy": round(float(accuracy_score(data.test_labels, predicted)), 4),
        "f1": round(float(f1_score(data.test_labels, predicted)), 4),
        "roc_auc": round(float(roc_auc_score(data.test_labels, probability)), 4),
    }
