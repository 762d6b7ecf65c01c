"""The example: two versions of a real model, trained, evaluated and packaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model_packaging.artifact import Artifact
from model_packaging.stores.layout import Layout

EXAMPLE = Path(__file__).parents[2] / "examples" / "tumour"
VERSIONS = ["1.0.0", "1.1.0"]


def run_build(base: Path) -> str:
    command = [sys.executable, EXAMPLE / "build.py", "--store", base / "store", "--work", base / "work"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("tumour")
    run_build(base)
    return base


def artifact(base: Path, version: str) -> Artifact:
    return Artifact.find(Layout(base / "store"), "tumour", version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_predicts_better_than_guessing(built: Path, version: str) -> None:
    evaluation = artifact(built, version).description.package.evaluation
    assert set(evaluation) == {"accuracy", "f1", "roc_auc"}
    # Of the tumours, 63 % are benign.
    assert 0.9 < evaluation["accuracy"] <= 1
    assert 0.9 < evaluation["f1"] <= 1
    assert 0.95 < evaluation["roc_auc"] <= 1


@pytest.mark.parametrize("version", VERSIONS)
def test_the_packaged_model_has_the_metrics_that_its_description_gives(
    built: Path, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import joblib  # noqa: PLC0415

    monkeypatch.syspath_prepend(str(EXAMPLE))
    import train  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    model = joblib.load(artifact(built, version).unpack(tmp_path / version) / "model.joblib")
    assert train.evaluate(model, train.load_data()) == artifact(built, version).description.package.evaluation


@pytest.mark.parametrize("version", VERSIONS)
def test_the_served_model_names_its_version(built: Path, version: str, tmp_path: Path) -> None:
    folder = artifact(built, version).unpack(tmp_path / version)
    assert json.loads((folder / "model-settings.json").read_text())["parameters"]["version"] == version


def test_the_versions_are_different_models_with_one_signature(built: Path) -> None:
    one, other = (artifact(built, version).description.package for version in VERSIONS)
    assert one.signature == other.signature
    assert one.evaluation != other.evaluation


def test_building_again_does_nothing_and_says_so(built: Path) -> None:
    before = (built / "store" / "index.json").stat().st_mtime_ns
    output = run_build(built)
    assert output == f"tumour 1.0.0 and 1.1.0 are in {built / 'store'}: nothing to do\n"
    assert (built / "store" / "index.json").stat().st_mtime_ns == before


def test_building_again_does_not_load_scikit_learn(built: Path) -> None:
    command = [sys.executable, "-X", "importtime", EXAMPLE / "build.py", "--store", built / "store"]
    imported = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "model_packaging.store" in imported
    assert "sklearn" not in imported
