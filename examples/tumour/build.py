"""Trains and packages both versions of the example model, unless the store holds them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_packaging.errors import NotInStore, PackagingError
from model_packaging.stores import Store, open_store

if TYPE_CHECKING:
    from train import Data

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tumour"
VERSIONS = ("1.0.0", "1.1.0")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default=ROOT / ".state/store", help="the artifact store")
    parser.add_argument("--work", type=Path, default=ROOT / ".state/examples/tumour", help="where model folders go")
    arguments = parser.parse_args()
    store = open_store(arguments.store)
    try:
        missing = [version for version in VERSIONS if not holds(store, version)]
        if not missing:
            print(f"{MODEL} {' and '.join(VERSIONS)} are in {store.location}: nothing to do")
            return 0
        build(missing, store, arguments.work)
    except PackagingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def holds(store: Store, version: str) -> bool:
    try:
        store.resolve(MODEL, version)
    except NotInStore:
        return False
    return True


def build(versions: list[str], store: Store, work: Path) -> None:
    # Imported here: scikit-learn takes a second that a run with nothing to do should not.
    from train import evaluate, load_data, train  # noqa: PLC0415

    from model_packaging.build import build_artifact  # noqa: PLC0415
    from model_packaging.git import git_source  # noqa: PLC0415

    data = load_data()
    write_held_out(work / "held-out.csv", data)
    for version in versions:
        model = train(version, data)
        evaluation = evaluate(model, data)
        folder = write_folder(work / version, version, model, evaluation, data)
        built = build_artifact(folder, MODEL, version, store, git=git_source(ROOT))
        metrics = ", ".join(f"{metric} {value}" for metric, value in evaluation.items())
        print(f"packaged {MODEL} {version}: {metrics}\n  {built.digest}")


def write_held_out(file: Path, data: Data) -> None:
    """The rows that no version was trained on, for `lepton package evaluate`."""
    import numpy as np  # noqa: PLC0415

    file.parent.mkdir(parents=True, exist_ok=True)
    names = [f"feature_{number}" for number in range(data.test.shape[1])]
    rows = np.column_stack([data.test, data.test_labels])
    np.savetxt(file, rows, fmt="%.17g", delimiter=",", header=",".join([*names, "benign"]), comments="")


def write_folder(folder: Path, version: str, model: Any, evaluation: dict[str, float], data: Data) -> Path:
    """A model folder: the model, how MLServer serves it, and what `package.yaml` says about it."""
    import joblib  # noqa: PLC0415
    import sklearn  # noqa: PLC0415
    import yaml  # noqa: PLC0415

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    joblib.dump(model, folder / "model.joblib")
    description = package(evaluation, data.test[0].tolist(), sklearn.__version__)
    settings = {
        "name": MODEL,
        "implementation": "mlserver_sklearn.SKLearnModel",
        "platform": "sklearn",
        "versions": [version],
        **description["signature"],
        "parameters": {"uri": "./model.joblib", "version": version},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "package.yaml").write_text(
        yaml.safe_dump(description, sort_keys=False, default_flow_style=None, width=110)
    )
    return folder


def package(evaluation: dict[str, float], row: list[float], sklearn_version: str) -> dict[str, Any]:
    features = len(row)
    return {
        "framework": {"name": "scikit-learn", "version": sklearn_version},
        "training_data": "sklearn.datasets.load_breast_cancer: Breast Cancer Wisconsin (Diagnostic), 569 x 30",
        "licence": "CC-BY-4.0",
        "signature": {
            "inputs": [{"name": "features", "shape": [-1, features], "datatype": "FP64"}],
            "outputs": [
                {"name": "predict", "shape": [-1, 1], "datatype": "INT64"},
                {"name": "predict_proba", "shape": [-1, 2], "datatype": "FP64"},
            ],
        },
        "evaluation": evaluation,
        "samples": [
            {
                "inputs": [{"name": "features", "shape": [1, features], "datatype": "FP64", "data": row}],
                "outputs": [{"name": "predict"}, {"name": "predict_proba"}],
            }
        ],
        # MLServer's runtime for scikit-learn loads nothing else. This file is our own.
        "allow_pickle": ["model.joblib"],
    }


if __name__ == "__main__":
    sys.exit(main())
