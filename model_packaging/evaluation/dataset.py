"""Held-out data sets: CSV and Parquet read in batches, NPZ as arrays."""

from __future__ import annotations

import contextlib
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from pyarrow import csv
from pyarrow import parquet as pq

from model_packaging import digests
from model_packaging.errors import DatasetRefused
from model_packaging.evaluation.results import DatasetReference
from model_packaging.package import Datatype

_BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 65_536
_FILL = "fill it in, or take the row out"

# Sixteen-bit numbers are read as 32-bit ones: requests are JSON, in which they look the same.
_ARROW_TYPES: dict[Datatype, pa.DataType] = {
    "BOOL": pa.bool_(), "BYTES": pa.string(), "FP16": pa.float32(), "BF16": pa.float32(), "FP32": pa.float32(),
    "FP64": pa.float64(), "INT8": pa.int8(), "INT16": pa.int16(), "INT32": pa.int32(), "INT64": pa.int64(),
    "UINT8": pa.uint8(), "UINT16": pa.uint16(), "UINT32": pa.uint32(), "UINT64": pa.uint64(),
}  # fmt: skip


@dataclass(frozen=True)
class DataFile:
    """A file as it was when the evaluation began."""

    path: Path
    digest: str
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> DataFile:
        try:
            before = path.stat()
            with open(path, "rb") as source:
                digest, _ = digests.copy(source, None)
        except OSError as error:
            raise DatasetRefused(f"{path} can't be read: {error.strerror}; name a CSV, Parquet or NPZ file") from error
        found = cls(path.resolve(), digest, before.st_size, before.st_mtime_ns)
        found.check()
        return found

    def check(self) -> None:
        """Raises DatasetRefused where the file is no longer that of the digest, as far as its size and time say."""
        try:
            now = self.path.stat()
        except OSError as error:
            raise DatasetRefused(
                f"{self.path} can't be read any more: {error.strerror}; every machine that evaluates needs it there"
            ) from error
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified_ns):
            raise DatasetRefused(f"{self.path} changed while it was read; evaluate again once it is complete")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turns what readers raise for a file that is not what its name says into DatasetRefused."""
        try:
            yield
        except (pa.ArrowException, OSError, zipfile.BadZipFile, ValueError, EOFError, KeyError) as error:
            raise DatasetRefused(f"{self.path} can't be read: {str(error) or 'it ends too early'}") from error


@dataclass(frozen=True)
class Dataset(ABC):
    """Rows of named columns; of arrays of more than one dimension, too, where the form can hold them."""

    file: DataFile
    shapes: Mapping[str, tuple[int, ...]]
    """Of one row of each column: () where it holds one value a row."""
    rows: int

    @classmethod
    @abstractmethod
    def open(cls, file: DataFile) -> Self:
        """Raises DatasetRefused where the file is damaged."""

    @abstractmethod
    def target(self, name: str) -> np.ndarray:
        """A whole column, as int64, float64 or text, of shape (rows,).

        Raises:
            DatasetRefused: there is no such column, or a row has nothing in it.
        """

    @abstractmethod
    def batches(self, types: Mapping[str, Datatype], rows: int) -> Iterator[dict[str, np.ndarray]]:
        """The columns named, in pieces of at most `rows`: arrays of shape (rows, *the column's own).

        Raises:
            DatasetRefused: a value is missing, or is not of the column's datatype.
        """

    def require(self, names: tuple[str, ...], what: str) -> None:
        """Raises DatasetRefused unless there is every column named."""
        missing = [name for name in names if name not in self.shapes]
        if missing:
            raise DatasetRefused(
                f"{self.file.path} has no {what} {', '.join(map(repr, missing))}; it has {listed(self.shapes)}"
            )

    @property
    def reference(self) -> DatasetReference:
        return DatasetReference(path=str(self.file.path), digest=self.file.digest, rows=self.rows)


def open_dataset(path: Path) -> Dataset:
    """Opens a data set by its suffix: `.csv`, `.parquet` or `.npz`. It can be sent to other processes.

    Raises:
        DatasetRefused: it is none of these, is damaged, or has no rows.
    """
    kinds: dict[str, type[Dataset]] = {".csv": Csv, ".parquet": Parquet, ".npz": Npz}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise DatasetRefused(f"{path} is no data set by its name; name a file that ends in {', '.join(kinds)}")
    dataset = kind.open(DataFile.of(path))
    if dataset.rows == 0:
        raise DatasetRefused(f"{path} has no rows; there is nothing to evaluate on")
    return dataset


class _Table(Dataset):
    """Columns of one value a row, read in blocks."""

    def batches(self, types: Mapping[str, Datatype], rows: int) -> Iterator[dict[str, np.ndarray]]:
        self.file.check()
        first = 0
        for block in self._blocks({name: _ARROW_TYPES[datatype] for name, datatype in types.items()}):
            columns = {name: self._complete(block.column(name), name, first) for name in types}
            first += block.num_rows
            for start in range(0, block.num_rows, rows):
                yield {name: column[start : start + rows] for name, column in columns.items()}
        self.file.check()

    @abstractmethod
    def _blocks(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]: ...

    def _complete(self, column: pa.Array | pa.ChunkedArray, name: str, first: int) -> np.ndarray:
        if column.null_count:
            row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) + 1
            raise DatasetRefused(f"{self.file.path}: column {name!r} is empty in row {row}; {_FILL}")
        values = column.to_numpy(zero_copy_only=False)
        return _finite(values, self.file.path, f"column {name!r}", first)

    def _whole(self, column: pa.ChunkedArray, name: str) -> np.ndarray:
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        values = self._complete(column, name, 0)
        if _is_text(kind):
            return values.astype(str)
        if pa.types.is_floating(kind):
            return values.astype(np.float64)
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return values.astype(np.int64)
        raise DatasetRefused(f"{self.file.path}: column {name!r} holds {kind}, which is neither label nor number")


class Csv(_Table):
    """Comma-separated values in UTF-8, the first line naming the columns."""

    @classmethod
    def open(cls, file: DataFile) -> Self:
        with file.reading(), csv.open_csv(file.path, read_options=_csv_blocks()) as reader:
            shapes = _one_value_each(reader.schema.names, file)
        # Any one column, as text, since that can't fail.
        rows = sum(block.num_rows for block in _csv_stream(file, {next(iter(shapes)): pa.string()}))
        return cls(file, shapes, rows)

    def target(self, name: str) -> np.ndarray:
        self.require((name,), "target column")
        options = csv.ConvertOptions(
            include_columns=[name], null_values=["", "NA", "NaN", "nan", "null", "NULL"], strings_can_be_null=True
        )
        # Read whole, as its type is that of all its rows: a stream's is that of the first block.
        with self.file.reading():
            column = csv.read_csv(self.file.path, convert_options=options).column(name)
        return self._whole(column, name)

    def _blocks(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        return _csv_stream(self.file, types)


def _csv_stream(file: DataFile, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    options = csv.ConvertOptions(column_types=dict(types), include_columns=list(types))
    with (
        file.reading(),
        csv.open_csv(file.path, read_options=_csv_blocks(), convert_options=options) as reader,
    ):
        yield from reader


def _csv_blocks() -> csv.ReadOptions:
    # With threads, errors name no row.
    return csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)


class Parquet(_Table):
    """Apache Parquet. What pandas wrote as a table's index is no column."""

    @classmethod
    def open(cls, file: DataFile) -> Self:
        with file.reading(), pq.ParquetFile(file.path) as parquet:
            index = (parquet.schema_arrow.pandas_metadata or {}).get("index_columns", [])
            names = [name for name in parquet.schema_arrow.names if name not in index]
            return cls(file, _one_value_each(names, file), parquet.metadata.num_rows)

    def target(self, name: str) -> np.ndarray:
        self.require((name,), "target column")
        with self.file.reading(), pq.ParquetFile(self.file.path) as parquet:
            column = parquet.read([name]).column(name)
        return self._whole(column, name)

    def _blocks(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        with self.file.reading(), pq.ParquetFile(self.file.path) as parquet:
            for name, wanted in types.items():
                self._check_kind(name, parquet.schema_arrow.field(name).type, wanted)
            for block in parquet.iter_batches(_BLOCK_ROWS, columns=list(types)):
                columns = {name: block.column(name).cast(wanted) for name, wanted in types.items()}
                yield pa.RecordBatch.from_pydict(columns)

    def _check_kind(self, name: str, found: pa.DataType, wanted: pa.DataType) -> None:
        """Casting would read numbers out of text, and write them as text."""
        if pa.types.is_dictionary(found):
            found = found.value_type
        if _is_text(found) != _is_text(wanted):
            raise DatasetRefused(
                f"{self.file.path}: column {name!r} holds {found}, the version's signature asks for {wanted}"
            )


class Npz(Dataset):
    """NumPy arrays of any shape, the first dimension being the rows. An array is held in memory whole."""

    @classmethod
    def open(cls, file: DataFile) -> Self:
        with file.reading(), zipfile.ZipFile(file.path) as archive:
            whole = {name.removesuffix(".npy"): _npy_shape(archive, name) for name in archive.namelist()}
        lengths = {name: shape[0] if shape else None for name, shape in whole.items()}
        first = next(iter(lengths.values()), None)
        if first is None or set(lengths.values()) != {first}:
            given = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "there is none"
            raise DatasetRefused(f"{file.path}: arrays must have the same first dimension, the rows, but {given}")
        return cls(file, {name: shape[1:] for name, shape in whole.items()}, first)

    def target(self, name: str) -> np.ndarray:
        self.require((name,), "target array")
        if self.shapes[name] not in ((), (1,)):
            raise DatasetRefused(
                f"{self.file.path}: array {name!r} has shape {[self.rows, *self.shapes[name]]}; "
                "a target has one value a row"
            )
        values = _finite(self._load(name).reshape(-1), self.file.path, f"array {name!r}", 0)
        match values.dtype.kind:
            case "b" | "i" | "u":
                return values.astype(np.int64)
            case "f":
                return values.astype(np.float64)
            case _:
                return values

    def batches(self, types: Mapping[str, Datatype], rows: int) -> Iterator[dict[str, np.ndarray]]:
        self.file.check()
        arrays = {name: self._typed(self._load(name), name, datatype) for name, datatype in types.items()}
        for start in range(0, self.rows, rows):
            yield {name: array[start : start + rows] for name, array in arrays.items()}

    def _load(self, name: str) -> np.ndarray:
        with self.file.reading(), np.load(self.file.path, allow_pickle=False) as archive:
            array = archive[name]
            if array.dtype.kind == "S":
                array = np.char.decode(array, "utf-8")
        if array.dtype.kind not in "biufU":
            raise DatasetRefused(f"{self.file.path}: array {name!r} holds {array.dtype}, neither numbers nor text")
        return array

    def _typed(self, array: np.ndarray, name: str, datatype: Datatype) -> np.ndarray:
        what = f"array {name!r}"
        wanted = np.dtype(object) if datatype == "BYTES" else np.dtype(_ARROW_TYPES[datatype].to_pandas_dtype())
        if (array.dtype.kind == "U") != (datatype == "BYTES") or (array.dtype.kind == "f" and wanted.kind == "b"):
            raise DatasetRefused(
                f"{self.file.path}: {what} holds {array.dtype}, the version's signature asks for {datatype}"
            )
        array = _finite(array, self.file.path, what, 0)
        with np.errstate(all="ignore"):
            converted = array.astype(wanted)
        if wanted.kind in "iub" and not np.array_equal(converted, array):
            raise DatasetRefused(
                f"{self.file.path}: {what} holds numbers that are no {datatype}, as the version's signature asks for"
            )
        return _finite(converted, self.file.path, what, 0)


def _one_value_each(names: list[str], file: DataFile) -> dict[str, tuple[int, ...]]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatasetRefused(f"{file.path} has the column {twice[0]!r} twice; give each a name of its own")
    return dict.fromkeys(names, ())


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(member)[0]


def _finite(values: np.ndarray, path: Path, what: str, first: int) -> np.ndarray:
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        row = first + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1))) + 1
        raise DatasetRefused(f"{path}: {what} holds NaN or an infinity in row {row}, which no request can; {_FILL}")
    return values


def listed(names: Iterable[str], most: int = 12) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
