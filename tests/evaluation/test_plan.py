"""How columns become tensors and outputs become labels follows from the signature; what doesn't fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.settings.version import ServerSettings
from model_packaging.errors import AnswerRefused, DatasetRefused, EvaluationRefused
from model_packaging.evaluation.dataset import open_dataset
from model_packaging.evaluation.options import EvaluationRequest, Options
from model_packaging.evaluation.outputs import Roles, find_roles, read_answer
from model_packaging.evaluation.plan import Plan, plan_all
from model_packaging.evaluation.targets import resolve_classes, split
from model_packaging.package import Signature, Tensor
from tests.evaluation.conftest import FEATURES, LABELS_AND_SCORES, VALUE, Tensors, Version, write


def plan(request: EvaluationRequest, data: Path, **options: Any) -> Plan:
    return plan_all([request], open_dataset(data), Options(**{"target": "label", **options}))[0]


def tensors(found: Plan) -> list[np.ndarray]:
    return next(found.inputs.batches(found.dataset, 100))


def csv(folder: Path, *lines: str) -> Path:
    return write(folder / "small.csv", "\n".join(lines))


def outputs(*tensors: tuple[str, list[int], str]) -> Signature:
    given = [{"name": name, "shape": shape, "datatype": datatype} for name, shape, datatype in tensors]
    return Signature.model_validate({"inputs": FEATURES, "outputs": given})


# Inputs


def test_one_tensor_takes_all_columns_but_the_target_in_their_order(
    version: Version, table: Path, rows: np.ndarray
) -> None:
    [features] = tensors(plan(version(), table))
    assert np.array_equal(features, rows[:, :2])


def test_features_name_the_columns_and_their_order(version: Version, table: Path, rows: np.ndarray) -> None:
    [features] = tensors(plan(version(), table, features=["other", "score"]))
    assert np.array_equal(features, rows[:, [1, 0]])


def test_several_tensors_take_the_columns_of_their_names(version: Version, tmp_path: Path) -> None:
    inputs: Tensors = [
        {"name": "kind", "shape": [-1, 1], "datatype": "BYTES"},
        {"name": "age", "shape": [-1], "datatype": "INT32"},
    ]
    data = csv(tmp_path, "age,unused,kind,label", "40,1,a,0", "50,2,b,1")
    kinds, ages = tensors(plan(version(inputs=inputs), data))
    assert kinds.tolist() == [["a"], ["b"]]
    assert ages.tolist() == [40, 50]


def test_arrays_are_taken_by_the_tensor_s_name_in_their_own_shape(version: Version, tmp_path: Path) -> None:
    image = np.arange(24.0).reshape(2, 3, 4)
    np.savez(tmp_path / "held-out.npz", image=image, mask=np.zeros(2), label=np.array([0, 1]))
    inputs: Tensors = [{"name": "image", "shape": [-1, 3, -1], "datatype": "FP32"}]
    [found] = tensors(plan(version(inputs=inputs), tmp_path / "held-out.npz"))
    assert np.array_equal(found, image)


def test_the_only_array_beside_the_target_needs_no_name(version: Version, tmp_path: Path) -> None:
    np.savez(tmp_path / "held-out.npz", X=np.eye(2), label=np.array([0, 1]))
    [found] = tensors(plan(version(), tmp_path / "held-out.npz"))
    assert found.tolist() == [[1, 0], [0, 1]]


def test_a_version_that_takes_one_row_gets_one_row_a_request(version: Version, table: Path) -> None:
    inputs: Tensors = [{"name": "features", "shape": [1, 2], "datatype": "FP64"}]
    assert tensors(plan(version(inputs=inputs), table))[0].shape == (1, 2)


def test_another_number_of_columns_is_refused(version: Version, tmp_path: Path) -> None:
    data = csv(tmp_path, "id,score,other,label", "1,0.2,0,0", "2,0.8,0,1")
    with pytest.raises(
        DatasetRefused, match=r"tumour:1\.0\.0: .*'features' has shape \[-1, 2\].* \(id, score, other\)"
    ):
        plan(version(), data)


def test_an_array_of_another_shape_is_refused(version: Version, tmp_path: Path) -> None:
    np.savez(tmp_path / "held-out.npz", features=np.zeros((2, 5)), label=np.array([0, 1]))
    with pytest.raises(DatasetRefused, match=r"of shape \[-1, 5\]"):
        plan(version(), tmp_path / "held-out.npz")


def test_a_missing_column_is_refused(version: Version, table: Path) -> None:
    with pytest.raises(DatasetRefused, match="no feature column 'size'; it has score, other, label"):
        plan(version(), table, features=["score", "size"])


def test_the_target_is_no_feature(version: Version, table: Path) -> None:
    with pytest.raises(EvaluationRefused, match="must not see it"):
        plan(version(), table, features=["score", "label"])


def test_a_value_that_can_t_be_sent_is_found_before_a_server_starts(version: Version, tmp_path: Path) -> None:
    data = csv(tmp_path, "score,other,label", *["0.2,0,0", "0.8,0,1"] * 200, "0.3,,1")
    with pytest.raises(DatasetRefused, match="column 'other' is empty in row 401"):
        plan(version(), data)


def test_a_package_without_signature_is_refused(version: Version, table: Path) -> None:
    with pytest.raises(EvaluationRefused, match="no signature"):
        plan(version(inputs=None), table)


def test_a_server_of_another_protocol_is_refused(version: Version, table: Path) -> None:
    server = ServerSettings(command=["vllm"], protocol="openai")
    with pytest.raises(EvaluationRefused, match="speaks 'openai'"):
        plan(version().model_copy(update={"server": server}), table)


# Targets


def test_a_target_that_is_not_there_is_refused(version: Version, table: Path) -> None:
    with pytest.raises(DatasetRefused, match="no target column 'y'; it has score, other, label"):
        plan(version(), table, target="y")


@pytest.mark.parametrize("label", ["", "NaN"])
def test_a_row_without_target_is_refused(version: Version, tmp_path: Path, label: str) -> None:
    with pytest.raises(DatasetRefused, match="'label' is empty in row 2"):
        plan(version(), csv(tmp_path, "score,other,label", "0.2,0,0", f"0.8,0,{label}", "0.9,0,1"))


def test_one_class_alone_is_refused(version: Version, tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused, match="is 'benign' in every row"):
        plan(
            version(),
            csv(tmp_path, "score,other,label", "0.2,0,benign", "0.8,0,benign"),
            classes=["malignant", "benign"],
        )


def test_an_unknown_label_is_refused_with_its_row(version: Version, tmp_path: Path) -> None:
    data = csv(tmp_path, "score,other,label", "0.2,0,benign", "0.8,0,malignant", "0.8,0,benine")
    with pytest.raises(
        DatasetRefused, match="holds 'benine' in row 3, which is none of the classes 'malignant', 'benign'"
    ):
        plan(version(), data, classes=["malignant", "benign"])


def test_fractions_are_no_labels(version: Version, tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused, match=r"fractions such as 0\.5"):
        plan(version(), csv(tmp_path, "score,other,label", "0.2,0,0.5", "0.8,0,1"))


def test_text_is_no_value_of_a_regression(version: Version, tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused, match="text such as 'high'"):
        plan(version(outputs=VALUE), csv(tmp_path, "score,other,label", "0.2,0,high", "0.8,0,low"), task="regression")


@pytest.mark.parametrize(
    ("labels", "width", "stated", "expected"),
    [
        ([0, 1, 0], 2, (), (0, 1)),
        ([0, 2, 0], 3, (), (0, 1, 2)),
        ([1, 3, 2], 3, (), (1, 2, 3)),
        (["b", "a"], 2, (), ("a", "b")),
        (["b", "a"], None, (), ("a", "b")),
        ([1, 0], 2, ("1", "0"), (1, 0)),
        ([1, 2], 3, (1, 2, 3), (1, 2, 3)),
    ],
)
def test_classes_follow_from_labels_and_scores(
    labels: list[Any], width: int | None, stated: tuple[Any, ...], expected: tuple[Any, ...]
) -> None:
    assert resolve_classes(np.array(labels), width, Options(target="label", classes=stated), "it") == expected


def test_classes_that_do_not_follow_are_to_be_stated() -> None:
    with pytest.raises(EvaluationRefused, match="holds the labels 'a', 'b', and the scores tell 3 classes apart"):
        resolve_classes(np.array(["a", "b"]), 3, Options(target="label"), "it")


def test_classes_are_as_many_as_scores() -> None:
    with pytest.raises(EvaluationRefused, match="the scores tell 2 classes apart"):
        resolve_classes(np.array([1, 2]), 2, Options(target="label", classes=(1, 2, 3)), "it")


def test_a_positive_class_that_is_none_of_two_is_refused(version: Version, table: Path) -> None:
    with pytest.raises(EvaluationRefused, match="positive is 5"):
        plan(version(), table, positive=5)


def test_the_split_is_the_same_for_a_seed_and_keeps_the_classes_shares() -> None:
    codes = np.array([0] * 60 + [1] * 40)
    options = Options.model_validate({"target": "y", "objective": "f1", "selection_share": 0.3, "seed": 7})
    selection, report = split(codes, options)
    assert np.array_equal(np.sort(np.concatenate([selection, report])), np.arange(100))
    assert (len(selection), codes[selection].sum()) == (30, 12)
    assert np.array_equal(split(codes, options)[0], selection)
    other, _ = split(codes, options.model_copy(update={"seed": 8}))
    assert not np.array_equal(other, selection)


def test_too_few_rows_to_choose_a_threshold_on_are_refused(version: Version, tmp_path: Path) -> None:
    data = csv(tmp_path, "score,other,label", "0.2,0,0", "0.8,0,1", "0.1,0,0")
    with pytest.raises(DatasetRefused, match="can't be split"):
        plan(version(), data, objective="f1")


# Outputs

PREDICT, PROBA = ("predict", [-1, 1], "INT64"), ("proba", [-1, 3], "FP64")
ONE, CLASS = ("score", [-1], "FP32"), ("class", [-1], "BYTES")


@pytest.mark.parametrize(
    ("signature", "options", "kind", "expected"),
    [
        (outputs(PREDICT, PROBA), {}, "i", {"labels": "predict", "scores": "proba"}),
        (outputs(CLASS), {}, "U", {"labels": "class"}),
        (outputs(PROBA), {}, "i", {"scores": "proba"}),
        (outputs(ONE), {}, "f", {"values": "score"}),
        (outputs(ONE), {}, "U", {"scores": "score"}),
        (outputs(ONE), {"task": "regression"}, "i", {"values": "score"}),
        (outputs(ONE), {"task": "classification"}, "i", {"scores": "score"}),
        # Beside a label, one number may be the confidence in it.
        (outputs(PREDICT, ONE), {}, "i", {"labels": "predict"}),
        (outputs(PREDICT, ONE), {"scores": "score"}, "i", {"labels": "predict", "scores": "score"}),
        (outputs(PREDICT, CLASS), {"labels": "class"}, "U", {"labels": "class"}),
        (outputs(PREDICT, ONE), {"values": "score"}, "f", {"values": "score"}),
    ],
)
def test_what_an_output_holds_follows_from_its_form(
    signature: Signature, options: dict[str, Any], kind: str, expected: dict[str, str]
) -> None:
    roles = find_roles(signature, Options(target="label", **options), kind)
    named = {"labels": roles.labels, "scores": roles.scores, "values": roles.values}
    assert {role: tensor.name for role, tensor in named.items() if tensor is not None} == expected


@pytest.mark.parametrize(
    ("signature", "options", "problem"),
    [
        (outputs(ONE), {}, "state the task"),
        (outputs(PREDICT, CLASS), {}, "several outputs can hold the labels: predict INT64"),
        (outputs(PREDICT), {"labels": "class"}, "labels are to be in output 'class'; the signature has predict INT64"),
        (outputs(("box", [-1, 4, 4], "FP32")), {}, "no output holds labels or scores"),
        (outputs(PROBA), {"task": "regression"}, "no output holds one number a row"),
    ],
)
def test_outputs_that_leave_a_doubt_are_refused(signature: Signature, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(EvaluationRefused, match=problem):
        find_roles(signature, Options(target="label", **options), "i")


def test_an_objective_needs_scores(version: Version, table: Path) -> None:
    with pytest.raises(EvaluationRefused, match="needs scores"):
        plan(version(outputs=LABELS_AND_SCORES[:1]), table, objective="f1")


def test_an_objective_needs_two_classes(version: Version, table: Path) -> None:
    with pytest.raises(EvaluationRefused, match="a regressor has none"):
        plan(version(outputs=VALUE), table, task="regression", objective="f1")


# Answers

ROLES = Roles(
    "classification",
    labels=Tensor(name="predict", shape=(-1,), datatype="INT64"),
    scores=Tensor(name="proba", shape=(-1, 2), datatype="FP64"),
)


def answer(**changes: Any) -> dict[str, Any]:
    predict = {"name": "predict", "shape": [2, 1], "data": [0, 1]}
    proba = {"name": "proba", "shape": [2, 2], "data": [0.9, 0.1, 0.2, 0.8]}
    return {"outputs": [predict | changes.get("predict", {}), proba | changes.get("proba", {})]}


def test_an_answer_is_read_flat_or_nested() -> None:
    flat = read_answer(answer(), ROLES, 2)
    nested = read_answer(answer(proba={"data": [[0.9, 0.1], [0.2, 0.8]]}), ROLES, 2)
    assert flat.labels is not None
    assert flat.labels.tolist() == [0, 1]
    assert flat.scores is not None
    assert nested.scores is not None
    assert flat.scores.tolist() == nested.scores.tolist() == [[0.9, 0.1], [0.2, 0.8]]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], "no inference response"),
        ({"error": "no"}, "no inference response"),
        ({"outputs": [{"name": "other", "shape": [2], "data": [0, 1]}]}, "no output 'predict'; it has other"),
        (answer(predict={"shape": [3]}), "doesn't fit its shape"),
        (answer(predict={"shape": [1], "data": [0]}), r"has shape \[1\] for 2 rows"),
        (answer(predict={"data": [0.5, 1]}), "a label is a whole number or text"),
        (answer(proba={"data": [0.5, None, 1, 2]}), "not numbers"),
        (answer(proba={"data": [0.5, float("nan"), 1, 2]}), "NaN"),
        (answer(proba={"data": None}), "doesn't fit its shape"),
        (answer(proba={"shape": [2, 2], "data": [[0.5], [1, 2]]}), "doesn't fit its shape"),
    ],
)
def test_an_answer_that_is_none_is_refused(document: object, problem: str) -> None:
    with pytest.raises(AnswerRefused, match=problem):
        read_answer(document, ROLES, 2)
