"""Reads what an ONNX graph takes and gives, and which files its weights are in, without loading the weights.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, ExternalData.md.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from model_packaging.errors import SourceRefused
from model_packaging.package import Signature, Tensor
from model_packaging.sources.protobuf import Malformed, MessageFile, Span

_DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
"""TensorProto.DataType -> the Open Inference Protocol's word; the others have none."""
_DEEPEST = 32
"""Graphs inside each other, as the branches of an `If`."""
_EXTERNAL = 1
_DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Port:
    """An input or output of a graph."""

    name: str
    kind: str
    """`tensor`, or what else ONNX has, which the protocol can't say: `sequence`, `map`, `optional`, `sparse tensor`."""
    datatype: str | None
    """As the Open Inference Protocol says it; None where it has no word."""
    shape: tuple[int, ...] | None
    """-1 where the length is symbolic or unknown; None where not even the rank is known."""

    @property
    def tensor(self) -> Tensor | None:
        """In the protocol's words; None where it has none."""
        if self.kind != "tensor" or self.datatype is None or self.shape is None:
            return None
        try:
            return Tensor.model_validate({"name": self.name, "shape": self.shape, "datatype": self.datatype})
        except ValidationError:
            return None


@dataclass(frozen=True)
class ExternalData:
    """A stretch of another file, which holds a tensor."""

    location: str
    offset: int
    length: int | None


@dataclass
class Graph:
    """What an ONNX file says about itself."""

    inputs: list[Port] = field(default_factory=list[Port])
    """Without those that have a default: initialisers are listed as inputs too in old files."""
    outputs: list[Port] = field(default_factory=list[Port])
    opset: int | None = None
    """Version of ONNX's own operators."""
    producer: str | None = None
    """Name and version of what wrote the file, such as `pytorch 2.4.0`."""
    external: set[ExternalData] = field(default_factory=set[ExternalData])

    @property
    def unsayable(self) -> tuple[Port, ...]:
        """Inputs and outputs that the Open Inference Protocol has no words for."""
        return tuple(port for port in (*self.inputs, *self.outputs) if port.tensor is None)

    @property
    def signature(self) -> Signature | None:
        """None where it can't be said in the Open Inference Protocol's words."""
        inputs = tuple(port.tensor for port in self.inputs if port.tensor is not None)
        outputs = tuple(port.tensor for port in self.outputs if port.tensor is not None)
        if self.unsayable or not inputs or not outputs:
            return None
        try:
            return Signature(inputs=inputs, outputs=outputs)
        except ValidationError:
            return None


def read_graph(folder: Path, file: PurePosixPath) -> Graph:
    """Reads `file` of `folder`, and checks that the files which hold its tensors are there and long enough.

    Raises:
        SourceRefused: the file is no ONNX model, or names data that is missing, too short, or outside the folder.
    """
    try:
        with open(folder / file, "rb") as source:
            reader = _Reader(MessageFile(source))
            graph = reader.read()
    except OSError as error:
        raise SourceRefused(f"{folder / file} can't be read: {error.strerror}") from error
    except Malformed as error:
        raise SourceRefused(f"{folder / file} is no ONNX model: {error}; export or download it again") from None
    for external in sorted(graph.external, key=lambda data: (data.location, data.offset)):
        _check_external(folder, file, external)
    return graph


def _check_external(folder: Path, file: PurePosixPath, data: ExternalData) -> None:
    location = PurePosixPath(data.location)
    if location.is_absolute() or ".." in location.parts or "\\" in data.location or not location.parts:
        raise SourceRefused(
            f"{folder / file} keeps weights in {data.location!r}, which could be outside the model's folder; "
            "save the model with its external data beside it"
        )
    place = folder / file.parent / location
    try:
        found = place.lstat()
    except OSError:
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise SourceRefused(
            f"{folder / file} keeps weights in {data.location!r}, and {place} is no file; put it beside the model"
        )
    end = data.offset + (data.length or 0)
    if end > found.st_size:
        raise SourceRefused(
            f"{folder / file} keeps weights in {data.location!r} up to byte {end}, and that file has {found.st_size}; "
            "export or download both again"
        )


class _Reader:
    """Walks a ModelProto."""

    def __init__(self, file: MessageFile) -> None:
        self._file = file
        self._graph = Graph()
        self._defaults: set[str] = set()

    def read(self) -> Graph:
        """
        Raises:
            Malformed: the file is not ONNX.
        """
        names = {2: "", 3: ""}
        has_version = has_graph = False
        for part in self._file.fields(self._file.whole):
            match part.number:
                case 1:
                    has_version = part.integer > 0
                case 2 | 3:
                    names[part.number] = self._file.text(part.span)
                case 7:
                    has_graph = True
                    self._read_graph(part.span)
                case 8:
                    self._read_opset(part.span)
                case 25:
                    self._read_nodes(part.span, number=7, depth=0)
                case _:
                    pass
        if not has_version or not has_graph:
            raise Malformed(f"it has no {'graph' if has_version else 'version of ONNX (ir_version)'}")
        self._graph.inputs = [port for port in self._graph.inputs if port.name not in self._defaults]
        self._graph.producer = " ".join(name for name in names.values() if name) or None
        return self._graph

    def _read_graph(self, span: Span) -> None:
        for part in self._file.fields(span):
            match part.number:
                case 11:
                    self._graph.inputs.append(self._port(part.span))
                case 12:
                    self._graph.outputs.append(self._port(part.span))
                case 5:
                    self._defaults.add(self._read_tensor(part.span))
                case 15:
                    self._defaults.add(self._read_sparse(part.span))
                case _:
                    pass
        self._read_nodes(span, number=1, depth=0)

    def _read_opset(self, span: Span) -> None:
        domain, version = "", 0
        for part in self._file.fields(span):
            if part.number == 1:
                domain = self._file.text(part.span)
            elif part.number == 2:
                version = part.integer
        if domain in _DEFAULT_DOMAINS:
            self._graph.opset = version

    # Tensors, wherever they are: each may keep its values in another file

    def _read_nodes(self, span: Span, number: int, depth: int) -> None:
        """Reads the nodes of a graph or a function, which are its fields of that `number`."""
        if depth > _DEEPEST:
            raise Malformed(f"more than {_DEEPEST} graphs are inside each other")
        for node in self._spans(span, number):
            for attribute in self._spans(node, 5):
                self._read_attribute(attribute, depth)

    def _read_attribute(self, span: Span, depth: int) -> None:
        for part in self._file.fields(span):
            match part.number:
                case 5 | 10:
                    self._read_tensor(part.span)
                case 22 | 23:
                    self._read_sparse(part.span)
                case 6 | 11:
                    self._read_inner_graph(part.span, depth + 1)
                case _:
                    pass

    def _read_inner_graph(self, span: Span, depth: int) -> None:
        self._read_nodes(span, number=1, depth=depth)
        for tensor in self._spans(span, 5):
            self._read_tensor(tensor)
        for tensor in self._spans(span, 15):
            self._read_sparse(tensor)

    def _read_sparse(self, span: Span) -> str:
        """The name of its values' tensor, which is its own."""
        name = ""
        for part in self._file.fields(span):
            if part.number in (1, 2):
                read = self._read_tensor(part.span)
                name = read if part.number == 1 else name
        return name

    def _read_tensor(self, span: Span) -> str:
        """Its name; where its values are in another file, that is noted."""
        name, external, entries = "", False, dict[str, str]()
        for part in self._file.fields(span):
            match part.number:
                case 8:
                    name = self._file.text(part.span)
                case 13:
                    key, value = self._entry(part.span)
                    entries[key] = value
                case 14:
                    external = part.integer == _EXTERNAL
                case _:
                    pass
        if external:
            self._graph.external.add(_external(name, entries))
        return name

    def _entry(self, span: Span) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for part in self._file.fields(span):
            if part.number in texts:
                texts[part.number] = self._file.text(part.span)
        return texts[1], texts[2]

    def _spans(self, span: Span, number: int) -> Iterator[Span]:
        return (part.span for part in self._file.fields(span) if part.number == number)

    # Inputs and outputs

    def _port(self, span: Span) -> Port:
        name, described = "", None
        for part in self._file.fields(span):
            if part.number == 1:
                name = self._file.text(part.span)
            elif part.number == 2:
                described = part.span
        kind, datatype, shape = "nothing", None, None
        for part in self._file.fields(described) if described else ():
            if part.number in _KINDS:
                kind = _KINDS[part.number]
                if kind == "tensor":
                    datatype, shape = self._tensor_type(part.span)
        return Port(name, kind, datatype, shape)

    def _tensor_type(self, span: Span) -> tuple[str | None, tuple[int, ...] | None]:
        datatype, shape = None, None
        for part in self._file.fields(span):
            if part.number == 1:
                datatype = _DATATYPES.get(part.integer)
            elif part.number == 2:
                shape = tuple(self._length(dimension) for dimension in self._spans(part.span, 1))
        return datatype, shape

    def _length(self, span: Span) -> int:
        lengths = [part.integer for part in self._file.fields(span) if part.number == 1]
        return lengths[-1] if lengths and lengths[-1] >= 0 else -1


_KINDS = {1: "tensor", 4: "sequence", 5: "map", 7: "opaque", 8: "sparse tensor", 9: "optional"}
"""TypeProto's fields."""


def _external(name: str, entries: dict[str, str]) -> ExternalData:
    numbers = {key: entries.get(key, "") for key in ("offset", "length")}
    for key, text in numbers.items():
        if text and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise Malformed(f"tensor {name!r} has the {key} {text!r} in its external data")
    if "location" not in entries:
        raise Malformed(f"tensor {name!r} is said to be in another file, and not in which")
    length = int(numbers["length"]) if numbers["length"] else None
    return ExternalData(entries["location"], int(numbers["offset"] or 0), length)
