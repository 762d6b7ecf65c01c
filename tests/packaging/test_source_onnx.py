"""Reading ONNX graphs without their weights: compared with what the onnx package says of the same files."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from model_packaging.errors import SourceRefused
from model_packaging.sources.onnx import Graph, read_graph

FILE = PurePosixPath("model.onnx")
DATATYPES = {
    "FLOAT": "FP32", "UINT8": "UINT8", "INT8": "INT8", "UINT16": "UINT16", "INT16": "INT16", "INT32": "INT32",
    "INT64": "INT64", "STRING": "BYTES", "BOOL": "BOOL", "FLOAT16": "FP16", "DOUBLE": "FP64", "UINT32": "UINT32",
    "UINT64": "UINT64", "BFLOAT16": "BF16",
}  # fmt: skip


def make_model(weights: Any = None, **graph: Any) -> onnx.ModelProto:
    """x [N, 4] times w [4, 3] is y [N, 3]."""
    initialiser = numpy_helper.from_array(np.ones((4, 3), dtype=np.float32) if weights is None else weights, "w")
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        graph.get("inputs", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]),
        graph.get("outputs", [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])]),
        [initialiser],
    )
    return helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", 17)],
        producer_name="pytorch",
        producer_version="2.4.0",
        ir_version=8,
    )


def read(folder: Path, model: onnx.ModelProto) -> Graph:
    onnx.save(model, folder / FILE)
    return read_graph(folder, FILE)


def identity(ports: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """A graph that gives back what it takes."""
    outputs = []
    for port in ports:
        output = onnx.ValueInfoProto()
        output.CopyFrom(port)
        output.name += "_out"
        outputs.append(output)
    nodes = [helper.make_node("Identity", [port.name], [f"{port.name}_out"]) for port in ports]
    return helper.make_model(helper.make_graph(nodes, "graph", ports, outputs))


def test_a_graph_says_what_it_takes_and_gives(tmp_path: Path) -> None:
    model = make_model()
    onnx.checker.check_model(model)
    graph = read(tmp_path, model)
    assert graph.signature is not None
    assert graph.signature.model_dump(mode="json") == {
        "inputs": [{"name": "x", "shape": [-1, 4], "datatype": "FP32"}],
        "outputs": [{"name": "y", "shape": [-1, 3], "datatype": "FP32"}],
    }
    assert (graph.opset, graph.producer) == (17, "pytorch 2.4.0")


def test_every_datatype_is_said_in_the_protocols_words(tmp_path: Path) -> None:
    ports = [
        helper.make_tensor_value_info(f"in_{name}", getattr(TensorProto, name), [1, number])
        for number, name in enumerate(DATATYPES)
    ]
    graph = read(tmp_path, identity(ports))
    assert graph.signature is not None
    assert [tensor.datatype for tensor in graph.signature.inputs] == list(DATATYPES.values())
    assert [tensor.shape for tensor in graph.signature.inputs] == [(1, number) for number in range(len(DATATYPES))]


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (helper.make_tensor_value_info("x", TensorProto.COMPLEX64, [1]), "tensor"),
        (helper.make_tensor_value_info("x", TensorProto.FLOAT, None), "tensor"),
        (helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1]), "sequence"),
        (helper.make_value_info("x", helper.make_map_type_proto(TensorProto.INT64, FLOATS)), "map"),
    ],
)
def test_what_the_protocol_has_no_words_for_gives_no_signature(
    port: onnx.ValueInfoProto, kind: str, tmp_path: Path
) -> None:
    graph = read(tmp_path, identity([port]))
    assert graph.signature is None
    assert [unsayable.kind for unsayable in graph.unsayable] == [kind, kind]


def test_inputs_with_a_default_need_not_be_given(tmp_path: Path) -> None:
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]),
    ]
    model = make_model(inputs=inputs)
    onnx.checker.check_model(model)
    assert [port.name for port in read(tmp_path, model).inputs] == ["x"]


def test_weights_in_another_file_are_found_and_checked(tmp_path: Path) -> None:
    weights = np.ones((4, 3), dtype=np.float32)
    onnx.save(make_model(weights), tmp_path / FILE, save_as_external_data=True, location="w.bin", size_threshold=0)
    (external,) = read_graph(tmp_path, FILE).external
    assert (external.location, external.offset, external.length) == ("w.bin", 0, weights.nbytes)
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(SourceRefused, match="up to byte 48, and that file has 5"):
        read_graph(tmp_path, FILE)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(SourceRefused, match="is no file"):
        read_graph(tmp_path, FILE)


def test_weights_are_looked_for_beside_the_model(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    onnx.save(make_model(), inner / FILE, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert read_graph(tmp_path, PurePosixPath("inner/model.onnx")).external


def external_tensor(location: str) -> onnx.TensorProto:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "..\\w.bin", "."])
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"1234")
    (tmp_path / "model").mkdir()
    model = make_model()
    model.graph.initializer[0].CopyFrom(external_tensor(location))
    with pytest.raises(SourceRefused, match="could be outside"):
        read(tmp_path / "model", model)


def test_weights_behind_a_link_are_refused(tmp_path: Path) -> None:
    model = make_model()
    model.graph.initializer[0].CopyFrom(external_tensor("w.bin"))
    (tmp_path / "w.bin").symlink_to("/etc/hostname")
    with pytest.raises(SourceRefused, match="is no file"):
        read(tmp_path, model)


def test_weights_in_constants_branches_and_functions_are_found_too(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=external_tensor("branch.bin"))], "branch", [], []
    )
    model = make_model()
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=external_tensor("constant.bin")))
    constant = helper.make_node("Constant", [], ["o"], value=external_tensor("function.bin"))
    model.functions.append(helper.make_function("own", "f", [], ["o"], [constant], [helper.make_opsetid("", 17)]))
    names = {"branch.bin", "constant.bin", "function.bin"}
    for name in names:
        (tmp_path / name).write_bytes(b"1234")
    assert {external.location for external in read(tmp_path, model).external} == names


def test_a_large_file_costs_little_memory(tmp_path: Path) -> None:
    # The weights are a hole in the file: as long as real ones, and never written.
    size = 2_000_000_000
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size // 4]).SerializeToString()
    model = make_model()
    del model.graph.initializer[:]
    head, graph = model.SerializeToString(), model.graph.SerializeToString()
    rest = head.replace(b"\x3a" + bytes([len(graph)]) + graph, b"")
    assert len(rest) < len(head)
    tensor += b"\x4a" + varint(size)
    initialiser = b"\x2a" + varint(len(tensor) + size) + tensor
    with open(tmp_path / FILE, "wb") as file:
        file.write(rest + b"\x3a" + varint(len(graph) + len(initialiser) + size) + graph + initialiser)
        file.truncate(file.tell() + size)
    program = (
        "import pathlib, sys\n"
        "from model_packaging.sources.onnx import read_graph\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: int(status.read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "graph = read_graph(pathlib.Path(sys.argv[1]), pathlib.PurePosixPath('model.onnx'))\n"
        "print((peak() - before) / 1024, graph.signature.inputs[0].name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    memory_mib, name = done.stdout.split()
    assert name == "x"
    assert float(memory_mib) < 10


def varint(number: int) -> bytes:
    octets = bytearray()
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no version of ONNX"),
        (b"not a protobuf message", "no ONNX model"),
        (b"\x08\x08", "has no graph"),
        (make_model().SerializeToString()[:-5], "no ONNX model"),
        (b"\x08" + b"\xff" * 11, "has no end"),
        (b"\x0b", "wire type 3"),
        (b"\x08\x08\x38\x01", "holds a number, not bytes"),
    ],
)
def test_what_is_no_onnx_is_refused_with_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(SourceRefused, match=reason):
        read_graph(tmp_path, FILE)


def test_graphs_inside_each_other_without_end_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(100):
        attribute = b"\x32" + varint(len(graph)) + graph
        node = b"\x2a" + varint(len(attribute)) + attribute
        graph = b"\x0a" + varint(len(node)) + node
    (tmp_path / FILE).write_bytes(b"\x08\x08\x3a" + varint(len(graph)) + graph)
    with pytest.raises(SourceRefused, match="inside each other"):
        read_graph(tmp_path, FILE)


SOUND = make_model().SerializeToString()


@settings(max_examples=300)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=6),
    end=st.integers(0, len(SOUND)) | st.just(len(SOUND)),
)
def test_what_is_read_of_a_damaged_file_is_what_onnx_reads(changes: list[tuple[int, int]], end: int) -> None:
    damaged = bytearray(SOUND)
    for place, octet in changes:
        damaged[place] = octet
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_bytes(damaged[:end])
        try:
            graph = read_graph(Path(folder), FILE)
        except SourceRefused:
            return
        try:
            model = onnx.load_model_from_string(bytes(damaged[:end]))
        except Exception:
            # Protobuf checks more, such as the texts of nodes, which are not read here.
            return
    defaults = {tensor.name for tensor in itertools.chain(model.graph.initializer)}
    defaults |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    assert [port.name for port in graph.inputs] == [
        port.name for port in model.graph.input if port.name not in defaults
    ]
    assert [port.name for port in graph.outputs] == [port.name for port in model.graph.output]
