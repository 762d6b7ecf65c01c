"""Models from MLflow: a real tracking database and registry, real artifacts on disk, and what of them is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec

from model_packaging.errors import FolderRefused, SourceRefused
from model_packaging.manifest import GitSource
from model_packaging.sources.mlflow import fetch, is_uri, read_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FLAVOURS = {
    "sklearn": {"sklearn_version": "1.9.1", "pickled_model": "model.pkl", "serialization_format": "cloudpickle"},
    "python_function": {"loader_module": "mlflow.sklearn", "python_version": "3.11.7"},
}
SIGNATURE = ModelSignature(
    Schema([ColSpec("double", "age"), ColSpec("string", "name"), ColSpec(Array(DataType.double), "values")]),
    Schema([TensorSpec(np.dtype("float32"), (-1, 3))]),
)


def write_model(folder: Path, **changes: Any) -> Path:
    """A folder as MLflow saves it."""
    folder.mkdir(parents=True)
    document = {"flavors": FLAVOURS, "run_id": "abc", "signature": SIGNATURE.to_dict(), **changes}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    (folder / "model.pkl").write_bytes(b"weights")
    (folder / "sub").mkdir()
    (folder / "sub" / "data.txt").write_text("data")
    return folder


class Tracking:
    """An MLflow database with one run, its model registered."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        experiment = self.client.create_experiment("tumour", artifact_location=str(folder / "artifacts"))
        tags = {"mlflow.source.git.commit": COMMIT, "mlflow.source.git.branch": "main"}
        run = self.client.create_run(experiment, tags=tags)
        self.run = run.info.run_id
        metrics = {"accuracy": 0.9, "training_accuracy": 1.0, "loss": float("nan")}
        self.client.log_batch(self.run, metrics=[Metric(name, value, 0, 0) for name, value in metrics.items()])
        self.client.log_param(self.run, "depth", 5)
        self.client.log_param(self.run, "long", "x" * 300)
        for name, context in (("patients", "training"), ("others", "testing")):
            dataset = Dataset(name, "1f2e3d", source_type="local", source=json.dumps({"uri": f"{name}.csv"}))
            logged = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
            self.client.log_inputs(self.run, [logged])
        self.client.log_artifacts(self.run, str(write_model(folder / "saved")), "model")
        self.client.log_text(self.run, "text", "notes/text.txt")
        self.client.set_terminated(self.run)
        self.client.create_registered_model("tumour")
        version = self.client.create_model_version("tumour", f"{run.info.artifact_uri}/model", self.run)
        self.client.set_registered_model_alias("tumour", "champion", str(version.version))


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    made = Tracking(tmp_path_factory.mktemp("mlflow"))
    yield made
    made.client._tracking_client.store.engine.dispose()
    made.client._get_registry_client().store.engine.dispose()


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


MODEL_FILES = {"MLmodel", "model.pkl", "sub/data.txt"}


def test_a_runs_model_is_brought_with_what_the_run_recorded(tracking: Tracking, tmp_path: Path) -> None:
    found = fetch(f"runs:/{tracking.run}/model", tmp_path / "model", tracking_uri=tracking.uri)
    assert contents(tmp_path / "model") == MODEL_FILES
    assert found.evaluation == {"accuracy": 0.9}
    assert found.labels == {"mlflow.run_id": tracking.run, "mlflow.param.depth": "5"}
    assert found.training_data == "patients, digest 1f2e3d, at patients.csv"
    assert found.remarks == ("metric training_accuracy is left out: it is of the training data",)


def test_a_commit_counts_as_dirty_where_mlflow_did_not_look(tracking: Tracking, tmp_path: Path) -> None:
    found = fetch(f"runs:/{tracking.run}/model", tmp_path / "model", tracking_uri=tracking.uri)
    assert found.git == GitSource(commit=COMMIT, branch="main", dirty=True)
    tracking.client.set_tag(tracking.run, "mlflow.source.git.dirty", "false")
    found = fetch(f"runs:/{tracking.run}/model", tmp_path / "again", tracking_uri=tracking.uri)
    assert found.git == GitSource(commit=COMMIT, branch="main", dirty=False)


@pytest.mark.parametrize("uri", ["models:/tumour/1", "models:/tumour@champion"])
def test_a_registered_model_is_brought_with_its_run(uri: str, tracking: Tracking, tmp_path: Path) -> None:
    found = fetch(uri, tmp_path / "model", tracking_uri=tracking.uri)
    assert contents(tmp_path / "model") == MODEL_FILES
    assert found.labels["mlflow.model"] == "tumour/1"
    assert found.labels["mlflow.run_id"] == tracking.run


def test_a_logged_model_is_brought(tracking: Tracking, tmp_path: Path) -> None:
    experiment = tracking.client.get_run(tracking.run).info.experiment_id
    model = tracking.client.create_logged_model(experiment, name="logged", source_run_id=tracking.run)
    saved = write_model(tmp_path / "saved")
    tracking.client.log_model_artifacts(model.model_id, str(saved))
    tracking.client.finalize_logged_model(model.model_id, "READY")
    found = fetch(f"models:/{model.model_id}", tmp_path / "model", tracking_uri=tracking.uri)
    assert contents(tmp_path / "model") == MODEL_FILES
    assert found.labels["mlflow.run_id"] == tracking.run


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("runs:/00000000000000000000000000000000/model", "MLflow says: "),
        ("models:/tumour/9", "MLflow says: "),
        ("models:/other@champion", "MLflow says: "),
        ("models:/tumour/Production", "is no MLflow URI of a model"),
        ("runs:/abc", "is no MLflow URI of a model"),
    ],
)
def test_what_mlflow_does_not_have_is_refused(uri: str, reason: str, tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match=reason):
        fetch(uri, tmp_path / "model", tracking_uri=tracking.uri)
    assert list(tmp_path.iterdir()) == []


def test_artifacts_that_are_no_model_are_refused_and_leave_nothing(tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="holds no MLmodel file"):
        fetch(f"runs:/{tracking.run}/notes", tmp_path / "model", tracking_uri=tracking.uri)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_filled(tracking: Tracking, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SourceRefused, match="not an empty folder"):
        fetch(f"runs:/{tracking.run}/model", tmp_path, tracking_uri=tracking.uri)
    assert contents(tmp_path) == {"mine"}


def test_a_local_model_folder_is_copied(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    fetch(str(source), tmp_path / "model")
    assert contents(tmp_path / "model") == MODEL_FILES
    (tmp_path / "model" / "model.pkl").write_bytes(b"changed")
    assert (source / "model.pkl").read_bytes() == b"weights"


def test_a_link_in_a_local_model_folder_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "link").symlink_to("/etc/hostname")
    with pytest.raises(FolderRefused, match="symbolic link"):
        fetch(str(source), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert not is_uri(str(tmp_path))
    with pytest.raises(SourceRefused, match="models:/NAME@ALIAS"):
        fetch(str(tmp_path), tmp_path / "model")


@pytest.mark.parametrize("uri", ["runs:/abc/model", "models:/tumour/1"])
def test_without_a_tracking_uri_mlflow_is_not_asked_and_makes_no_database(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceRefused, match="set MLFLOW_TRACKING_URI"):
        fetch(uri, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_mlflow_says_of_its_own_work_is_not_shown(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from model_packaging.errors import SourceRefused\n"
        "from model_packaging.sources.mlflow import fetch\n"
        "try:\n"
        "    fetch('runs:/abc/model', pathlib.Path('unused'), tracking_uri=sys.argv[1])\n"
        "except SourceRefused as error:\n"
        "    print(error)\n"
    )
    # A new database, which MLflow says that it makes.
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = subprocess.run([sys.executable, "-c", program, uri], capture_output=True, text=True, check=True)
    assert "MLflow says" in done.stdout
    assert done.stderr == ""


def test_without_mlflow_the_error_names_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "sys.modules['mlflow'] = None\n"
        "from model_packaging.errors import SourceRefused\n"
        "from model_packaging.sources.mlflow import fetch, read_model\n"
        "read_model(pathlib.Path(sys.argv[1]))\n"
        "try:\n"
        "    fetch('runs:/abc/model', pathlib.Path('unused'))\n"
        "except SourceRefused as error:\n"
        "    print(error)\n"
    )
    folder = write_model(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert "pip install 'lepton[mlflow]'" in done.stdout


# The MLmodel file


def test_a_signature_is_said_as_mlserver_says_it(tmp_path: Path) -> None:
    found = read_model(write_model(tmp_path / "model"))
    assert found.signature is not None
    assert found.signature.signature.model_dump(mode="json") == {
        "inputs": [
            {"name": "age", "shape": [-1, 1], "datatype": "FP64"},
            {"name": "name", "shape": [-1, 1], "datatype": "BYTES"},
            {"name": "values", "shape": [-1, 1], "datatype": "BYTES"},
        ],
        "outputs": [{"name": "output-0", "shape": [-1, 3], "datatype": "FP32"}],
    }


def test_the_framework_is_the_flavours(tmp_path: Path) -> None:
    found = read_model(write_model(tmp_path / "model"))
    assert found.framework is not None
    assert (found.framework.name, found.framework.version) == ("scikit-learn", "1.9.1")
    assert found.labels == {"mlflow.run_id": "abc"}


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8", "bool", "str", "object", "<U5"])
def test_every_kind_of_array_has_a_datatype(dtype: str, tmp_path: Path) -> None:
    side = json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1]}}])
    assert read_model(write_model(tmp_path / "model", signature={"inputs": side, "outputs": side})).signature


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "tensor", "tensor-spec": {"dtype": "complex64", "shape": [-1]}},
        {"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": "any"}},
        {"type": "sparkml_vector"},
    ],
)
def test_what_has_no_words_gives_a_remark_and_no_signature(spec: dict[str, Any], tmp_path: Path) -> None:
    side = json.dumps([spec])
    found = read_model(write_model(tmp_path / "model", signature={"inputs": side, "outputs": side}))
    assert found.signature is None
    assert "can't be said as tensors" in found.remarks[0]


def test_a_signature_without_outputs_is_not_taken(tmp_path: Path) -> None:
    inputs = json.dumps([{"type": "double", "name": "a"}])
    found = read_model(write_model(tmp_path / "model", signature={"inputs": inputs, "outputs": None}))
    assert found.signature is None
    assert "has no outputs" in found.remarks[0]


@pytest.mark.parametrize("content", ["", "[]", "a: [", "flavors: 1", "flavors: {}\nsignature: {inputs: 1}"])
def test_an_mlmodel_file_that_mlflow_did_not_write_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(content)
    with pytest.raises(SourceRefused, match="MLmodel"):
        read_model(tmp_path)
