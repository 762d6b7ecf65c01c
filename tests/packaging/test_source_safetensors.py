"""Reading safetensors headers: what the safetensors package writes, and every way in which such a file can be wrong."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from model_packaging.errors import SourceRefused
from model_packaging.sources.findings import Weights
from model_packaging.sources.safetensors import read_header, read_weights

TENSORS = {
    "a": np.ones((2, 3), dtype=np.float32),
    "b": np.ones((4,), dtype=np.int8),
    "c": np.ones((), dtype=np.float64),
}


def written(file: Path, header: object, data: bytes = b"") -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return file


def entry(begin: int, end: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def paths(folder: Path) -> list[PurePosixPath]:
    return [PurePosixPath(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]


def sharded(folder: Path) -> Path:
    """A model in two shards, and its index."""
    folder.mkdir(exist_ok=True)
    shards = {"model-00001-of-00002.safetensors": ["a"], "model-00002-of-00002.safetensors": ["b", "c"]}
    for shard, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_a_header_says_what_the_tensors_are(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {"a": (2, 3), "b": (4,), "c": ()}
    assert header.metadata == {"format": "pt"}
    assert header.weights == Weights(11, 24 + 4 + 8, {"F32": 6, "I8": 4, "F64": 1})


def test_a_file_without_tensors_is_sound(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    assert read_header(tmp_path / "empty.safetensors").weights == Weights(0, 0, {})


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"[]", b"", "starts with"),
        (b"{", b"", "not JSON"),
        (b'{"a":' * 50_000, b"", "not JSON"),
        (b'{"a": 1, "a": 1}', b"", "twice"),
        ({"a": 1}, b"", "should have a dtype"),
        ({"a": entry(0, 1, shape=[-1])}, b"x", "should have a dtype"),
        ({"a": entry(0, 1, dtype="F33")}, b"x", "dtype 'F33'"),
        ({"a": entry(0, 2, shape=[3])}, b"xx", "needs 3 bytes, and has 2"),
        ({"a": entry(0, 1, dtype="F4", shape=[1])}, b"x", "needs 0.5 bytes"),
        ({"a": entry(2, 0, shape=[2])}, b"xx", "needs 2 bytes, and has -2"),
        ({"a": entry(0, 2), "b": entry(1, 3)}, b"xxx", "an overlap"),
        ({"a": entry(0, 1), "b": entry(2, 3)}, b"xxx", "a gap"),
        ({"a": entry(1, 2)}, b"xx", "a gap"),
        ({"a": entry(0, 1)}, b"xx", "the file has 2"),
        ({"a": entry(0, 3)}, b"xx", "the file has 2"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    ],
)
def test_an_unsound_header_is_refused_with_the_reason(header: object, data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match=reason):
        read_header(written(tmp_path / "model.safetensors", header, data))


@pytest.mark.parametrize("content", [b"", b"1234567", (100).to_bytes(8, "little") + b"{}", b"\xff" * 16])
def test_a_truncated_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceRefused, match="its header should have"):
        read_header(tmp_path / "model.safetensors")


def test_a_header_longer_than_the_format_allows_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(SourceRefused, match="the format allows 100000000"):
        read_header(tmp_path / "model.safetensors")


def test_shards_count_together_and_once(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    save_file(TENSORS, folder / "consolidated.safetensors")
    weights = read_weights(folder, paths(folder))
    assert weights is not None
    assert weights.parameters == 11


def test_folders_inside_count_each_with_its_main_file(tmp_path: Path) -> None:
    for inner in ("unet", "vae"):
        (tmp_path / inner).mkdir()
        for name in ("model.safetensors", "model.fp16.safetensors"):
            save_file(TENSORS, tmp_path / inner / name)
    weights = read_weights(tmp_path, paths(tmp_path))
    assert weights is not None
    assert weights.parameters == 22


def test_a_folder_without_safetensors_has_no_weights(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    assert read_weights(tmp_path, paths(tmp_path)) is None


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceRefused, match="names the shard model-00002-of-00002"):
        read_weights(folder, paths(folder))


def test_swapped_shards_are_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    one, other = sorted(folder.glob("model-*"))
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)
    with pytest.raises(SourceRefused, match=r"00001-of-00002\.safetensors holds 'a', and that file doesn't"):
        read_weights(folder, paths(folder))


def test_a_tensor_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    save_file({"a": TENSORS["a"], "more": TENSORS["b"]}, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(SourceRefused, match="holds 'more', which the index doesn't name"):
        read_weights(folder, paths(folder))


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", 7])
def test_an_index_that_leads_elsewhere_is_refused(shard: object, tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(SourceRefused, match="should be in a safetensors file beside the index"):
        read_weights(folder, paths(folder))


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["F32", "U8", "F4"]) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a", "__metadata__"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), HEADERS, max_size=3).map(
        lambda document: json.dumps(document).encode()
    )
    | st.binary(max_size=40),
    data=st.binary(max_size=8),
)
def test_what_is_read_the_safetensors_package_reads_too(header: bytes, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder) / "model.safetensors", header, data)
        try:
            found = read_header(file)
        except SourceRefused:
            return
        try:
            loaded = load_file(file)
        except (SafetensorError, KeyError, TypeError):
            # NumPy has no word for some data types.
            assert {tensor.dtype for tensor in found.tensors.values()} == {"F4"}
        else:
            assert {name: array.shape for name, array in loaded.items()} == {
                name: tensor.shape for name, tensor in found.tensors.items()
            }
