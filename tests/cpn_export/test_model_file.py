"""ONNX files of strangers: bad ones, written by the `onnx` package, are refused before a runtime opens them."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpn_export.model_file import check_model_file
from cpn_export.runtime import OnnxLabeller
from cpn_fast.files.errors import DataError

X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")


def model(*nodes: onnx.NodeProto, tensors: tuple[onnx.TensorProto, ...] = (), **more: object) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes) or [helper.make_node("Relu", ["x"], ["y"])], "g", [X], [Y], list(tensors))
    return helper.make_model(graph, **more)


def weights(values: object = (1.0, 2.0), name: str = "w") -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def refused(path: Path, found: onnx.ModelProto | bytes, expected: str) -> None:
    path.write_bytes(found if isinstance(found, bytes) else found.SerializeToString())
    for opened in (check_model_file, OnnxLabeller):
        with pytest.raises(DataError, match=expected) as error:
            opened(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int64", "bool", "float64", "int32"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (1,)])
def test_tensors_of_every_type_pass(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = numpy_helper.from_array(np.ones(shape, dtype), "w")
    listed = helper.make_tensor("v", tensor.data_type, shape, np.ones(shape, dtype).ravel().tolist())
    (tmp_path / "m.onnx").write_bytes(model(tensors=(tensor, listed)).SerializeToString())
    check_model_file(tmp_path / "m.onnx")


def test_four_bits_and_nested_graphs_pass(tmp_path: Path) -> None:
    four = helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3])
    inner = helper.make_graph([helper.make_node("Constant", [], ["z"], value=weights())], "i", [], [Y])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    (tmp_path / "m.onnx").write_bytes(model(branch, tensors=(four,)).SerializeToString())
    check_model_file(tmp_path / "m.onnx")


def _external(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "weights.bin"])
def test_weights_in_other_files_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    refused(tmp_path / "m.onnx", model(tensors=(_external(location),)), "lies in another file")
    constant = helper.make_node("Constant", [], ["y"], value=_external(location))
    refused(tmp_path / "m.onnx", model(constant), "lies in another file")
    inner = helper.make_graph([constant], "inner", [], [Y])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    refused(tmp_path / "m.onnx", model(branch), "lies in another file")


def test_a_location_without_the_mark_is_refused_too(tmp_path: Path) -> None:
    tensor = _external("/etc/passwd")
    tensor.ClearField("data_location")
    refused(tmp_path / "m.onnx", model(tensors=(tensor,)), "lies in another file")


def test_operators_of_other_domains_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Run", ["x"], ["y"], domain="evil.ops", name="n")
    refused(tmp_path / "m.onnx", model(node), "node 'n' needs operators of 'evil.ops'")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("evil.ops", 1)]
    refused(tmp_path / "m.onnx", model(opset_imports=opsets), "the model needs operators of 'evil.ops'")
    function = helper.make_function("f", "f", ["x"], ["y"], [node], opsets)
    refused(tmp_path / "m.onnx", model(functions=[function]), "evil.ops")
    context = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", name="n")
    refused(tmp_path / "m.onnx", model(context), "is EPContext")


def _claiming(dims: list[int], raw: bool = True) -> onnx.ModelProto:
    tensor = weights()
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if not raw:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0, 2.0])
    return model(tensors=(tensor,))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dims", [[1 << 34], [1 << 20, 1 << 20, 1 << 20], [100]])
def test_sizes_that_the_content_has_not_are_refused_without_memory(tmp_path: Path, dims: list[int], raw: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "m.onnx", _claiming(dims, raw), "values has 8 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"no model at all",
        lambda data: data[:-3],
        lambda data: bytes([data[0] | 7]) + data[1:],
        lambda data: b"\xff" * 30,
        lambda data: data + b"\x3a\xff\xff\xff\xff\x0f",
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    refused(tmp_path / "m.onnx", change(model(tensors=(weights(),)).SerializeToString()), "damaged|expected an ONNX")


def test_negative_sides_and_deep_nesting(tmp_path: Path) -> None:
    refused(tmp_path / "m.onnx", _claiming([-1]), "damaged, or no ONNX model")
    graph = b""
    for _ in range(40):  # a graph in an attribute of a node of a graph; the `onnx` package itself refuses so many
        graph = field(1, field(5, field(6, graph)))
    refused(tmp_path / "m.onnx", field(7, graph), "nested more than 32 deep")


def field(number: int, content: bytes) -> bytes:
    """A field of bytes in protobuf's wire format."""
    size, length = b"", len(content)
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content
