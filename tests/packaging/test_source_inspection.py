"""What a folder says by itself: it fills `package.yaml`, and what both say must agree."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import sklearn
import yaml
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from sklearn.linear_model import LinearRegression

from infra.settings.loading import SettingsError
from model_packaging.errors import Contradiction, SourceRefused
from model_packaging.package import Package
from model_packaging.sources.findings import Findings
from model_packaging.sources.inspection import Inspection, complete, inspect

WRITTEN: dict[str, Any] = {
    "training_data": "data.csv",
    "licence": "MIT",
    "samples": [{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}],
}
X = {"name": "x", "shape": [-1, 4], "datatype": "FP32"}
Y = {"name": "y", "shape": [-1, 3], "datatype": "FP32"}


def look(folder: Path) -> Inspection:
    return inspect(folder, [PurePosixPath(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()])


def save_onnx(file: Path, y: str = "y") -> None:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    outputs = [
        helper.make_tensor_value_info(y, TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info("z", TensorProto.INT64, [None]),
    ]
    graph = helper.make_graph([helper.make_node("Foo", ["x"], [y, "z"])], "graph", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="skl2onnx"), file)


def save_mlmodel(folder: Path, **flavours: Any) -> None:
    sides = {
        "inputs": json.dumps([{"type": "double", "name": "a"}]),
        "outputs": json.dumps([{"type": "double", "name": "b"}]),
    }
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavours, "signature": sides}))


def done(folder: Path, **written: Any) -> Package:
    document = {key: value for key, value in (WRITTEN | written).items() if value is not ...}
    return complete(document, look(folder).findings, file="package.yaml")


# What is found


def test_an_sklearn_model_says_its_version(tmp_path: Path) -> None:
    joblib.dump(LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0]), tmp_path / "model.joblib")
    inspection = look(tmp_path)
    assert inspection.findings.framework is not None
    assert inspection.findings.framework.name == "scikit-learn"
    assert inspection.findings.framework.version == sklearn.__version__
    assert [str(pickle.file) for pickle in inspection.pickles] == ["model.joblib"]


def test_two_releases_of_sklearn_in_one_folder_are_remarked_upon(tmp_path: Path) -> None:
    model = pickle.dumps(LinearRegression())
    (tmp_path / "a.pkl").write_bytes(model)
    (tmp_path / "b.pkl").write_bytes(model.replace(sklearn.__version__.encode(), b"0.0.1"))
    assert "0.0.1" in look(tmp_path).findings.remarks[0]


def test_pytorch_weights_say_what_they_are_and_how_many(tmp_path: Path) -> None:
    save_file({"w": np.ones((2, 3), np.float16)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = look(tmp_path).findings
    assert found.framework is not None
    assert (found.framework.name, found.framework.version) == ("pytorch", None)
    assert found.weights is not None
    assert (found.weights.parameters, found.weights.dtypes) == (6, {"F16": 6})


def test_a_pytorch_archive_says_what_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"w": 1}, 2))
    found = look(tmp_path).findings
    assert found.framework is not None
    assert found.framework.name == "pytorch"


def test_several_graphs_give_no_signature(tmp_path: Path) -> None:
    save_onnx(tmp_path / "encoder.onnx")
    save_onnx(tmp_path / "decoder.onnx")
    found = look(tmp_path).findings
    assert found.signature is None
    assert "2 ONNX graphs" in found.remarks[0]


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "MLmodel"])
def test_a_damaged_file_of_a_known_form_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(SourceRefused, match=name):
        look(tmp_path)


# What is filled in


def test_a_graph_fills_framework_and_signature(tmp_path: Path) -> None:
    save_onnx(tmp_path / "model.onnx")
    package = done(tmp_path)
    assert package.signature is not None
    assert [tensor.model_dump(mode="json") for tensor in package.signature.inputs] == [X]
    assert package.framework.model_dump() == {"name": "onnx", "version": "opset 17"}
    assert package.labels == {"onnx.producer": "skl2onnx"}


def test_what_is_written_wins(tmp_path: Path) -> None:
    save_onnx(tmp_path / "model.onnx")
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/base\n---\n")
    package = done(tmp_path, framework={"name": "jax", "version": "0.5"}, labels={"onnx.producer": "me"})
    assert (package.framework.name, package.licence, package.parents) == ("jax", "MIT", ("org/base",))
    assert package.labels == {"onnx.producer": "me"}


def test_a_signature_of_null_stays_none(tmp_path: Path) -> None:
    save_onnx(tmp_path / "model.onnx")
    assert done(tmp_path, signature=None).signature is None


def test_a_framework_without_version_gets_the_one_that_was_found(tmp_path: Path) -> None:
    joblib.dump(LinearRegression(), tmp_path / "model.joblib")
    package = done(tmp_path, framework={"name": "sklearn"})
    assert package.framework.model_dump() == {"name": "sklearn", "version": sklearn.__version__}


def test_a_version_that_no_file_says_is_asked_for(tmp_path: Path) -> None:
    save_file({"w": np.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=r"package\.framework\.version is required"):
        done(tmp_path)


def test_what_is_neither_written_nor_found_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    with pytest.raises(SettingsError) as missing:
        complete(None, look(tmp_path).findings, file="package.yaml")
    for key in ("framework", "licence", "training_data", "samples"):
        assert f"package.{key} is required" in str(missing.value)


def test_what_the_source_knows_counts_before_what_the_files_say(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ndatasets: squad\n---\n")
    fetched = Findings(training_data="run 7", evaluation={"f1": 0.5}, labels={"run": "7"})
    written = {"framework": {"name": "x", "version": "1"}, "samples": WRITTEN["samples"]}
    package = complete(written, fetched | look(tmp_path).findings, file="package.yaml")
    assert (package.training_data, package.licence) == ("run 7", "Apache-2.0")
    assert (package.evaluation, package.labels) == ({"f1": 0.5}, {"run": "7"})


def test_an_mlflow_signature_gives_way_where_samples_show_another(tmp_path: Path) -> None:
    save_mlmodel(tmp_path, sklearn={"sklearn_version": "1.9.1"})
    assert done(tmp_path).signature is None
    sample = {"inputs": [{"name": "a", "shape": [1, 1], "datatype": "FP64", "data": [1]}]}
    signature = done(tmp_path, samples=[sample]).signature
    assert signature is not None
    assert signature.inputs[0].name == "a"


# Contradictions


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ([X | {"datatype": "FP64"}], [Y], "input 'x' is FP64 in one and FP32 in the other"),
        ([X | {"shape": [-1, 5]}], [Y], r"input 'x' is \[-1, 5\] in one and \[-1, 4\] in the other"),
        ([X | {"shape": [-1, -1]}], [Y], r"input 'x' is \[-1, -1\] in one"),
        ([X | {"shape": [4]}], [Y], r"input 'x' is \[4\] in one"),
        ([X | {"name": "w"}], [Y], "no input 'w'; input 'x' is not written"),
        ([X, X | {"name": "w"}], [Y], "no input 'w'"),
        ([X], [Y | {"name": "w"}], "no output 'w'"),
        ([X], [Y | {"shape": [-1, 2]}], r"output 'y' is \[-1, 2\] in one"),
    ],
)
def test_a_signature_that_the_graph_contradicts_is_refused_with_both(
    inputs: list[Any], outputs: list[Any], reason: str, tmp_path: Path
) -> None:
    save_onnx(tmp_path / "model.onnx")
    samples = [{"note": "names no tensors"}]
    with pytest.raises(Contradiction, match=reason) as refused:
        done(tmp_path, signature={"inputs": inputs, "outputs": outputs}, samples=samples)
    assert "model.onnx says inputs [x FP32 [-1, 4]], outputs [y FP32 [-1, 3], z INT64 [-1]]" in str(refused.value)


@pytest.mark.parametrize(
    ("inputs", "outputs"), [([X], [Y]), ([X | {"shape": [1, 4]}], [Y]), ([X], [Y | {"shape": [-1, -1]}])]
)
def test_a_signature_that_says_less_than_the_graph_takes_is_accepted(
    inputs: list[Any], outputs: list[Any], tmp_path: Path
) -> None:
    save_onnx(tmp_path / "model.onnx")
    signature = done(tmp_path, signature={"inputs": inputs, "outputs": outputs}).signature
    assert signature is not None
    assert signature.inputs[0].shape == tuple(inputs[0]["shape"])


def test_code_of_the_models_own_may_take_something_else(tmp_path: Path) -> None:
    save_onnx(tmp_path / "model.onnx")
    (tmp_path / "serve.py").write_text("")
    text = {"name": "text", "shape": [-1], "datatype": "BYTES"}
    package = done(tmp_path, signature={"inputs": [text], "outputs": [Y]}, samples=[{"text": "hello"}])
    assert package.signature is not None


def test_a_sample_that_the_graph_would_refuse_is_refused_with_where_that_is_from(tmp_path: Path) -> None:
    save_onnx(tmp_path / "model.onnx")
    sample = {"inputs": [{"name": "x", "shape": [1, 5], "datatype": "FP32", "data": [1, 2, 3, 4, 5]}]}
    with pytest.raises(Contradiction, match=r"input 'x' has shape \[1, 5\].*the signature is that of model\.onnx"):
        done(tmp_path, samples=[sample])


def test_another_release_than_the_one_that_wrote_the_model_is_refused(tmp_path: Path) -> None:
    joblib.dump(LinearRegression(), tmp_path / "model.joblib")
    with pytest.raises(Contradiction, match=r"sklearn 0\.1, and model\.joblib was written by scikit-learn"):
        done(tmp_path, framework={"name": "sklearn", "version": "0.1"})
