"""Data sets of each form give the same rows, and what is wrong with one is found and named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from model_packaging.errors import DatasetRefused
from model_packaging.evaluation import dataset as datasets
from model_packaging.evaluation.dataset import Dataset, open_dataset
from model_packaging.package import Datatype
from tests.evaluation.conftest import write

TYPES: dict[str, Datatype] = {"age": "INT8", "size": "FP32", "kind": "BYTES"}
AGES, SIZES, KINDS, TARGETS = [40, 51, 62], [0.5, 1.5, 2.5], ["a", "", "c"], ["yes", "no", "yes"]


@pytest.fixture(params=["csv", "parquet", "npz"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    path = tmp_path / f"held-out.{request.param}"
    columns = {"age": AGES, "size": SIZES, "kind": KINDS, "target": TARGETS}
    match request.param:
        case "csv":
            rows = zip(*columns.values(), strict=True)
            write(path, "\n".join(",".join(map(str, row)) for row in [tuple(columns), *rows]))
        case "parquet":
            parquet.write_table(pa.table(columns), path)
        case _:
            np.savez(path, age=AGES, size=SIZES, kind=KINDS, target=TARGETS)
    return open_dataset(path)


def csv(folder: Path, *lines: str) -> Path:
    return write(folder / "held-out.csv", "\n".join(lines))


def read(path: Path, **types: Datatype) -> list[dict[str, np.ndarray]]:
    return list(open_dataset(path).batches(types, 2))


def test_every_form_gives_the_same_rows_in_batches(dataset: Dataset) -> None:
    batches = list(dataset.batches(TYPES, 2))
    assert [len(batch["age"]) for batch in batches] == [2, 1]
    assert np.concatenate([batch["age"] for batch in batches]).tolist() == AGES
    assert np.concatenate([batch["size"] for batch in batches]).tolist() == SIZES
    assert np.concatenate([batch["kind"] for batch in batches]).tolist() == KINDS
    assert batches[0]["size"].dtype == np.float32


def test_every_form_gives_the_target_whole(dataset: Dataset) -> None:
    assert dataset.target("target").tolist() == TARGETS
    assert dataset.target("age").dtype == np.int64
    assert dataset.target("size").dtype == np.float64


def test_every_form_says_which_columns_there_are(dataset: Dataset) -> None:
    with pytest.raises(DatasetRefused, match=r"no target (column|array) 'tarjet'; it has age, size, kind, target"):
        dataset.target("tarjet")


def test_every_form_is_known_by_its_digest_in_another_process(dataset: Dataset) -> None:
    again: Dataset = pickle.loads(pickle.dumps(dataset))
    assert again.reference == dataset.reference
    assert again.reference.rows == 3
    assert next(again.batches(TYPES, 9))["age"].tolist() == AGES


def test_a_file_that_changes_while_it_is_read_is_refused(dataset: Dataset) -> None:
    os.utime(dataset.file.path, ns=(1, 1))
    with pytest.raises(DatasetRefused, match="changed while it was read"):
        list(dataset.batches(TYPES, 2))


def test_text_where_a_number_belongs_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetRefused, match=r"invalid value 'a'|signature asks for"):
        list(dataset.batches({"kind": "FP64"}, 2))


def test_numbers_too_large_for_the_signature_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused, match=r"Row #3.*int8.*'300'"):
        read(csv(tmp_path, "age", "30", "300"), age="INT8")


@pytest.mark.parametrize("value", ["", "NaN", "NA"])
def test_a_missing_number_is_refused_with_its_row(tmp_path: Path, value: str) -> None:
    with pytest.raises(DatasetRefused, match="column 'age' is empty in row 2"):
        read(csv(tmp_path, "age,size", "1,1", f"{value},1"), age="FP64")


def test_a_row_is_counted_over_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_BLOCK_BYTES", 64)
    lines = [f"{number},1" for number in range(100)]
    lines[83] = "83,"
    with pytest.raises(DatasetRefused, match="column 'size' is empty in row 84"):
        read(csv(tmp_path, "age,size", *lines), size="FP64")


def test_a_target_s_type_is_that_of_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_BLOCK_BYTES", 64)
    path = csv(tmp_path, "a,target", *[f"1,{number}" for number in range(50)], "1,unknown")
    assert open_dataset(path).target("target").tolist()[-2:] == ["49", "unknown"]


def test_a_missing_number_in_parquet_is_refused_with_its_row(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"age": [1.0, 2.0, None]}), tmp_path / "held-out.parquet")
    with pytest.raises(DatasetRefused, match="column 'age' is empty in row 3"):
        read(tmp_path / "held-out.parquet", age="FP64")


def test_an_index_that_pandas_wrote_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": AGES, "target": TARGETS}, index=[7, 3, 5])
    frame.to_parquet(tmp_path / "held-out.parquet")
    assert list(open_dataset(tmp_path / "held-out.parquet").shapes) == ["age", "target"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_s_nan_is_refused_with_its_row(tmp_path: Path, value: float) -> None:
    np.savez(tmp_path / "held-out.npz", image=np.array([[[0, 1], [2, 3]], [[0, 1], [2, value]]]))
    with pytest.raises(DatasetRefused, match="array 'image' holds NaN or an infinity in row 2"):
        read(tmp_path / "held-out.npz", image="FP32")


def test_fractions_are_not_cut_to_whole_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "held-out.npz", age=np.array([1.0, 2.5]))
    with pytest.raises(DatasetRefused, match="numbers that are no INT64"):
        read(tmp_path / "held-out.npz", age="INT64")


def test_arrays_of_objects_are_refused_unread(tmp_path: Path) -> None:
    np.savez(tmp_path / "held-out.npz", age=np.array([{}, {}], dtype=object))
    with pytest.raises(DatasetRefused, match="allow_pickle"):
        read(tmp_path / "held-out.npz", age="INT64")


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "held-out.npz", age=np.zeros(3), target=np.zeros(2))
    with pytest.raises(DatasetRefused, match="age has 3, target has 2"):
        open_dataset(tmp_path / "held-out.npz")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["age,size", ""], "has no rows"),
        ([], "Empty CSV file"),
        (["age,age", "1,2"], "column 'age' twice"),
        (["age,size", "1,2", "1"], "Expected 2 columns, got 1"),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused(tmp_path: Path, lines: list[str], problem: str) -> None:
    path = tmp_path / "held-out.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(DatasetRefused, match=problem):
        read(path, age="FP64")


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DatasetRefused, match="can't be read"):
        open_dataset(write(tmp_path / f"held-out.{suffix}", "rubbish"))


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "held-out.npz", age=np.zeros(1000))
    whole = (tmp_path / "held-out.npz").read_bytes()
    (tmp_path / "held-out.npz").write_bytes(whole[:4000])
    with pytest.raises(DatasetRefused, match="can't be read"):
        open_dataset(tmp_path / "held-out.npz")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused, match=r"ends in \.csv, \.parquet, \.npz"):
        open_dataset(write(tmp_path / "held-out.xlsx", ""))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused, match="No such file"):
        open_dataset(tmp_path / "held-out.csv")
