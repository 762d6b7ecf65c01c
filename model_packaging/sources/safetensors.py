"""Reads the headers of safetensors files, and checks them as its own reader does, without a tensor library.

Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn, cast

from model_packaging.errors import SourceRefused
from model_packaging.sources.documents import read_json
from model_packaging.sources.findings import Weights

INDEX_SUFFIX = ".safetensors.index.json"
_LONGEST_HEADER = 100_000_000
_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class StoredTensor(NamedTuple):
    """Where a tensor's values lie, in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about its tensors."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @property
    def weights(self) -> Weights:
        dtypes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            dtypes[tensor.dtype] += math.prod(tensor.shape)
        return Weights(dtypes.total(), sum(tensor.end - tensor.begin for tensor in self.tensors.values()), dict(dtypes))


def read_header(file: Path) -> Header:
    """Reads and checks one file's header; the weights are not read.

    Raises:
        SourceRefused: the file is truncated, or its tensors don't fill it without gap and overlap.
    """
    try:
        with open(file, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            length = int.from_bytes(source.read(8), "little")
            if size < 8 or length > size - 8:
                _refuse(
                    file, f"its header should have {length} bytes, the file has {max(0, size - 8)} behind the length"
                )
            if length > _LONGEST_HEADER:
                _refuse(file, f"its header has {length} bytes, and the format allows {_LONGEST_HEADER}")
            content = source.read(length)
    except OSError as error:
        raise SourceRefused(f"{file} can't be read: {error.strerror}") from error
    if not content.startswith(b"{"):
        _refuse(file, f"its header starts with {content[:8]!r}, and should with '{{'")
    try:
        document = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(file, f"its header is not JSON: {error}")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(file, "its __metadata__ should map texts to texts")
    tensors = {name: _tensor(file, name, entry) for name, entry in document.items()}
    _check_places(file, tensors, size - 8 - length)
    return Header(tensors, metadata)


def read_weights(folder: Path, files: Collection[PurePosixPath]) -> Weights | None:
    """All weights in the safetensors files of `folder`, of which `files` are the paths; None if there are none.

    Where a folder inside holds the same weights more than once, in shards and in one file, they count once: those of
    its index, else of `model.safetensors`.

    Raises:
        SourceRefused: a file is damaged, or an index and its shards don't agree.
    """
    headers = {file: read_header(folder / file) for file in sorted(files) if file.suffix == ".safetensors"}
    indexed = {
        index.parent: _check_index(folder, index, headers)
        for index in sorted(files)
        if index.name.endswith(INDEX_SUFFIX)
    }
    counted = [header.weights for file, header in headers.items() if _counts(file, headers, indexed)]
    return sum(counted[1:], start=counted[0]) if counted else None


def _counts(
    file: PurePosixPath, headers: Collection[PurePosixPath], indexed: Mapping[PurePosixPath, Collection[PurePosixPath]]
) -> bool:
    if file.parent in indexed:
        return file in indexed[file.parent]
    whole = file.with_name("model.safetensors")
    return whole not in headers or file == whole


def _check_index(folder: Path, index: PurePosixPath, headers: Mapping[PurePosixPath, Header]) -> set[PurePosixPath]:
    """The shards that an index names.

    `metadata.total_size` is not compared: no reader uses it, and in published models it is often wrong.
    """
    place = folder / index
    weight_map = read_json(place).get("weight_map")
    if not isinstance(weight_map, dict):
        _refuse(place, "'weight_map' should map the tensors' names to files")
    shards: dict[PurePosixPath, set[str]] = {}
    for tensor, name in cast("dict[str, object]", weight_map).items():
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            _refuse(place, f"tensor {tensor!r} should be in a safetensors file beside the index, not in {name!r}")
        shards.setdefault(index.with_name(name), set()).add(tensor)
    for shard, tensors in shards.items():
        if shard not in headers:
            _refuse(place, f"it names the shard {shard.name}, which is not there")
        found = headers[shard].tensors.keys()
        missing, unnamed = sorted(tensors - found), sorted(found - weight_map.keys())
        if missing:
            _refuse(place, f"it says that {shard.name} holds {missing[0]!r}, and that file doesn't")
        if unnamed:
            _refuse(place, f"{shard.name} holds {unnamed[0]!r}, which the index doesn't name")
    return set(shards)


def _tensor(file: Path, name: str, entry: object) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if all(
            isinstance(length, int) and length >= 0 for length in cast("list[object]", shape)
        ):
            pass
        case _:
            _refuse(file, f"tensor {name!r} should have a dtype, a shape and two data_offsets, is {str(entry)[:80]}")
    if dtype not in _BITS:
        _refuse(file, f"tensor {name!r} has the dtype {dtype!r}; known are {', '.join(_BITS)}")
    bits = math.prod(shape) * _BITS[dtype]
    if begin > end or bits != (end - begin) * 8:
        _refuse(file, f"tensor {name!r} of {dtype} {shape} needs {bits / 8:g} bytes, and has {end - begin}")
    return StoredTensor(dtype, tuple(shape), begin, end)


def _check_places(file: Path, tensors: Mapping[str, StoredTensor], size: int) -> None:
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            what = "a gap" if tensor.begin > end else "an overlap"
            _refuse(file, f"tensor {name!r} starts at byte {tensor.begin}, where {end} is due: there is {what}")
        end = tensor.end
    if end != size:
        _refuse(file, f"its tensors have {end} bytes, and the file has {size} for them")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _refuse(file: Path, reason: str) -> NoReturn:
    raise SourceRefused(f"{file} is no sound safetensors file: {reason}; save or download it again")
