"""Versions side by side, and what makes one unfit to take another's place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_packaging.comparison import Subject, compare, compatible
from model_packaging.lifecycle import Stage
from model_packaging.package import Signature, Tensor
from tests.catalogue.versions import SIGNATURE, describe

Parts = list[tuple[str, list[int], str]]


def signature(inputs: Parts, outputs: Parts) -> Signature:
    def tensors(parts: Parts) -> list[dict[str, Any]]:
        return [{"name": name, "shape": shape, "datatype": datatype} for name, shape, datatype in parts]

    return Signature.model_validate({"inputs": tensors(inputs), "outputs": tensors(outputs)})


def reasons(a: Signature | None, b: Signature | None) -> list[str]:
    return [str(obstacle) for obstacle in compatible(a, b)]


X, Y = ("x", [-1, 4], "FP32"), ("y", [-1], "INT64")


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (([X], [Y]), []),
        # Wider inputs and narrower outputs keep every promise of A's.
        (([("x", [-1, -1], "FP32")], [Y]), []),
        (([X], [("y", [1], "INT64")]), []),
        (([X], [Y, ("scores", [-1, 3], "FP32")]), []),
        (([("x", [1, 4], "FP32")], [Y]), ["input 'x': clients of A send shape [-1, 4], B takes [1, 4]"]),
        (([("x", [-1, 5], "FP32")], [Y]), ["input 'x': clients of A send shape [-1, 4], B takes [-1, 5]"]),
        (([("x", [-1], "FP32")], [Y]), ["input 'x': clients of A send shape [-1, 4], B takes [-1]"]),
        (([("x", [-1, 4], "FP64")], [Y]), ["input 'x': clients of A send FP32, B takes FP64"]),
        (([X], [("y", [-1], "INT32")]), ["output 'y': B answers INT32, clients of A take INT64"]),
        (([X], [("y", [-1, 1], "INT64")]), ["output 'y': B answers shape [-1, 1], clients of A take [-1]"]),
        (([X], [("z", [-1], "INT64")]), ["output 'y': clients of A read it, B doesn't answer it"]),
        (
            ([("z", [-1, 4], "FP32")], [Y]),
            [
                "input 'x': clients of A send it, B doesn't take it",
                "input 'z': B asks for it, clients of A don't send it",
            ],
        ),
        (
            ([("x", [4], "INT8")], [("y", [1, 1], "BOOL")]),
            [
                "input 'x': clients of A send FP32, B takes INT8",
                "input 'x': clients of A send shape [-1, 4], B takes [4]",
                "output 'y': B answers BOOL, clients of A take INT64",
                "output 'y': B answers shape [1, 1], clients of A take [-1]",
            ],
        ),
    ],
)  # fmt: skip
def test_each_reason_why_clients_of_a_cannot_use_b_is_given(b: tuple[Parts, Parts], expected: list[str]) -> None:
    assert reasons(signature([X], [Y]), signature(*b)) == expected


def test_an_answer_of_any_length_is_not_one_of_the_length_that_a_client_reads() -> None:
    fixed = signature([("x", [1, 4], "FP32")], [("y", [1], "INT64")])
    assert reasons(fixed, signature([X], [Y])) == ["output 'y': B answers shape [-1], clients of A take [1]"]


def test_the_order_of_tensors_does_not_matter() -> None:
    assert reasons(signature([X, ("z", [1], "BOOL")], [Y]), signature([("z", [1], "BOOL"), X], [Y])) == []


def test_a_version_without_signature_fits_only_another_without() -> None:
    assert reasons(None, None) == []
    assert len(reasons(None, signature([X], [Y]))) == len(reasons(signature([X], [Y]), None)) == 1


# Few names, lengths and types, so that signatures that fit each other are found often.
tensors = st.tuples(
    st.sampled_from("xyz"), st.lists(st.sampled_from([-1, 1, 4]), max_size=2), st.sampled_from(["FP32", "INT8"])
)
parts = st.lists(tensors, min_size=1, max_size=2, unique_by=lambda tensor: tensor[0])
signatures = st.builds(signature, parts, parts)


@st.composite
def relatives(draw: st.DrawFn, kin: Signature) -> Signature:
    """A signature that differs from another's in lengths only, and so often fits it."""

    def changed(tensors: tuple[Tensor, ...], to: int) -> Parts:
        return [
            (each.name, [draw(st.sampled_from([length, to])) for length in each.shape], each.datatype)
            for each in tensors
        ]

    return signature(changed(kin.inputs, -1), changed(kin.outputs, 1))


@given(signatures)
def test_a_signature_is_compatible_with_itself(a: Signature) -> None:
    assert compatible(a, a) == ()


@given(signatures, signatures | st.none(), signatures | st.none(), st.data())
def test_what_is_compatible_over_a_third_is_compatible(
    a: Signature, b: Signature | None, c: Signature | None, data: st.DataObject
) -> None:
    b = data.draw(relatives(a) | st.just(b))
    c = c if b is None else data.draw(relatives(b) | st.just(c))
    if not compatible(a, b) and not compatible(b, c):
        assert not compatible(a, c)


@given(signatures, signatures, st.data())
def test_every_request_that_a_takes_is_one_that_a_compatible_b_takes(
    a: Signature, b: Signature, data: st.DataObject
) -> None:
    b = data.draw(relatives(a) | st.just(b))
    if compatible(a, b):
        return
    lengths = st.integers(1, 6)
    taken = {tensor.name: tensor for tensor in b.inputs}
    request = {
        tensor.name: (tensor.datatype, [data.draw(lengths) if length == -1 else length for length in tensor.shape])
        for tensor in a.inputs
    }
    assert request.keys() == taken.keys()
    for name, (datatype, shape) in request.items():
        assert taken[name].datatype == datatype
        assert taken[name].accepts(shape)


def test_metrics_are_compared_on_the_same_data_set_only() -> None:
    a = Subject(describe("tumour"), Stage.RELEASED, 100, {"holdout": {"f1": 0.5, "loss": 1.0}, "old": {"f1": 0.9}})
    b = Subject(describe("tumour", "2.0.0"), Stage.TESTING, 150, {"holdout": {"f1": 0.75}})
    compared = compare(a, b)
    assert [(*row, row.difference) for row in compared.metrics] == [
        ("holdout", "f1", 0.5, 0.75, 0.25),
        ("holdout", "loss", 1.0, None, None),
        ("old", "f1", 0.9, None, None),
    ]
    assert compared.size_difference_bytes == 50


def test_a_comparison_lists_settings_that_either_has() -> None:
    a = Subject(
        describe("tumour", server="mlserver", resources={"memory": "2Gi", "gpu": {"count": 2}}), Stage.RELEASED, 1
    )
    framework = {"name": "scikit-learn", "version": "1.10.0"}
    b = Subject(describe("tumour", "2.0.0", framework=framework, resources={"cpu": 2}), Stage.TESTING, 1)
    rows = {row.key: (row.a, row.b) for row in compare(a, b).settings}
    assert rows["framework.name"] == ("scikit-learn", "scikit-learn")
    assert rows["framework.version"] == ("1.9.1", "1.10.0")
    assert rows["resources.memory"] == ("2Gi", None)
    assert rows["resources.gpu.count"] == (2, None)
    assert rows["resources.cpu"] == (None, 2.0)
    assert rows["server.command"] == (["mlserver", "start", "{model_dir}"], None)


def test_a_server_with_another_protocol_is_in_the_way() -> None:
    chat = {"command": ["serve"], "protocol": "openai"}
    a = Subject(describe("tumour", server="mlserver"), Stage.RELEASED, 1)
    b = Subject(describe("tumour", "2.0.0", server=chat), Stage.TESTING, 1)
    assert [str(obstacle) for obstacle in compare(a, b).obstacles] == [
        "clients of A speak oip-v2, B's server speaks openai"
    ]
    assert compare(a, a).compatible


def test_a_comparison_is_a_json_document() -> None:
    a = Subject(describe("tumour", signature=SIGNATURE), Stage.RELEASED, 100, {"holdout": {"f1": 0.5}})
    b = Subject(describe("tumour", "2.0.0"), Stage.TESTING, 150)
    document = compare(a, b).document()
    assert document["a"]["version"] == "1.0.0"
    assert document["signature"][0] == {
        "side": "input", "name": "x", "a": {"shape": [-1, 4], "datatype": "FP32"}, "b": None, "same": False,
    }  # fmt: skip
    assert document["metrics"] == [{"dataset": "holdout", "metric": "f1", "a": 0.5, "b": None, "difference": None}]
    assert not document["compatible"]
    assert [obstacle["tensor"] for obstacle in document["obstacles"]] == [None]
