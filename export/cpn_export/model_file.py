"""A stranger's ONNX file, looked through before a runtime sees it, by protobuf's wire format, without `onnx`."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.names import quoted
from cpn_fast.files.regular import open_regular

MAX_BYTES = 2 << 30
"""Largest file: that of a protobuf."""

DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
"""Sets of operators that onnxruntime brings itself; any other would need a library that runs code of its own."""

REFUSED = frozenset(("EPContext",))
"""Operators that name a file with code for a device."""

_MAX_DEPTH = 32
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Numbers of the fields in onnx.proto3
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTIONS = 7, 8, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_FUNCTION_NODE, _FUNCTION_OPSET = 7, 9
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 8, 9, 13, 14
_TENSOR_LISTS = (4, 5, 6, 7, 10, 11)

# Bits of a value by TensorProto.DataType; strings (8) have none.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4,
}  # fmt: skip

Field = tuple[int, int, memoryview]


def check_model_file(path: Path) -> None:
    """Look through an ONNX file before it is opened, without taking memory for what it claims to hold.

    Args:
        path: the file.

    Raises:
        DataError: of one line, for a file that is no protobuf, is larger than one can be, keeps weights in other files,
            has a tensor whose size is not that of its content, or an operator that would need a library.
    """
    with open_regular(path) as file:
        size = path.stat().st_size
        if not 0 < size < MAX_BYTES:
            raise DataError(f"{path}: {size:,} bytes; expected an ONNX model, of at most {MAX_BYTES:,}")
        # Not closed here: an error's traceback still holds parts of it, and it goes with them.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        _Checker(path).model(memoryview(content))
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{path}: damaged, or no ONNX model ({error}); copy it again, or export the run again with `cpn export`"
        ) from None


class _Checker:
    def __init__(self, path: Path) -> None:
        self._path = path

    def model(self, view: memoryview) -> None:
        graphs = 0
        for number, kind, value in _fields(view):
            if kind != _BYTES:
                continue
            if number == _MODEL_GRAPH:
                graphs += 1
                self._graph(value, 0)
            elif number == _MODEL_OPSET:
                self._opset(value)
            elif number == _MODEL_FUNCTIONS:
                for part, _, inside in _messages(value):
                    if part == _FUNCTION_NODE:
                        self._node(inside, 0)
                    elif part == _FUNCTION_OPSET:
                        self._opset(inside)
        if graphs != 1:
            raise ValueError(f"{graphs} graphs, expected one")

    def _opset(self, view: memoryview) -> None:
        for number, _, value in _messages(view):
            if number == 1:
                self._domain(_text(value), "the model")

    def _domain(self, domain: str, where: str) -> None:
        if domain not in DOMAINS:
            raise DataError(
                f"{self._path}: {where} needs operators of {quoted(domain)}, which only a library with code of its own "
                f"could run; expected those of ONNX: not opened"
            )

    def _graph(self, view: memoryview, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError(f"graphs nested more than {_MAX_DEPTH} deep")
        for number, _, value in _messages(view):
            if number == _GRAPH_NODE:
                self._node(value, depth)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(value)
            elif number == _GRAPH_SPARSE:
                self._sparse(value)

    def _node(self, view: memoryview, depth: int) -> None:
        operator = domain = name = ""
        for number, _, value in _messages(view):
            if number == _NODE_OPERATOR:
                operator = _text(value)
            elif number == _NODE_DOMAIN:
                domain = _text(value)
            elif number == _NODE_NAME:
                name = _text(value)
            elif number == _NODE_ATTRIBUTE:
                self._attribute(value, depth)
        self._domain(domain, f"node {quoted(name or operator)}")
        if operator in REFUSED:
            raise DataError(
                f"{self._path}: node {quoted(name)} is {operator}, which names a file with code: not opened"
            )

    def _attribute(self, view: memoryview, depth: int) -> None:
        for number, _, value in _messages(view):
            if number in _ATTRIBUTE_TENSORS:
                self._tensor(value)
            elif number in _ATTRIBUTE_GRAPHS:
                self._graph(value, depth + 1)
            elif number in _ATTRIBUTE_SPARSE:
                self._sparse(value)

    def _sparse(self, view: memoryview) -> None:
        for number, _, value in _messages(view):
            if number in (_SPARSE_VALUES, _SPARSE_INDICES):
                self._tensor(value)

    def _tensor(self, view: memoryview) -> None:
        count, type_, name, raw, listed = 1, 0, "", None, 0
        for number, kind, value in _fields(view):
            if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and _integer(value)):
                raise DataError(
                    f"{self._path}: tensor {quoted(name)} lies in another file; expected a model in one file, as "
                    "`cpn export` writes it: not opened"
                )
            if number == _TENSOR_DIMS:
                for side in _integers(value) if kind == _BYTES else (_integer(value),):
                    if side >= 1 << 40:  # also what is negative
                        raise ValueError(f"tensor {quoted(name)} has a side of {side}")
                    count *= side
            elif number == _TENSOR_TYPE:
                type_ = _integer(value)
            elif number == _TENSOR_NAME:
                name = _text(value)
            elif number == _TENSOR_RAW:
                raw = len(value)
            elif number in _TENSOR_LISTS:
                listed += len(value)
        self._size(count, type_, name, raw, listed)

    def _size(self, count: int, type_: int, name: str, raw: int | None, listed: int) -> None:
        """A tensor's size against the bytes that it has; a list holds a value in a byte or more, a packed one in half.

        Raises:
            DataError: where they differ, so that a runtime would take memory for nothing.
        """
        bits = _BITS.get(type_, 8)
        expected = -(-count * bits // 8)
        if (raw is not None and raw != expected) or (raw is None and count > 2 * listed):
            found = listed if raw is None else raw
            raise DataError(
                f"{self._path}: tensor {quoted(name)} of {count:,} values has {found:,} bytes; damaged or made up: not "
                "opened"
            )


def _messages(view: memoryview) -> Iterator[Field]:
    return (found for found in _fields(view) if found[1] == _BYTES)


def _fields(view: memoryview) -> Iterator[Field]:
    """(number, wire type, bytes) of every field of a message; of a varint its bytes.

    Raises:
        ValueError: for what is no protobuf.
        IndexError: for one that is cut off.
    """
    place, end = 0, len(view)
    while place < end:
        tag, place = _varint(view, place)
        number, kind = tag >> 3, tag & 7
        begin = place
        if kind == _VARINT:
            _, place = _varint(view, place)
        elif kind == _BYTES:
            size, begin = _varint(view, place)
            place = begin + size
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"no protobuf at byte {begin}")
        if not number or place > end:
            raise ValueError("a field that is cut off" if number else "a field without number")
        yield number, kind, view[begin:place]


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = view[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 64 bits")


def _integer(view: memoryview) -> int:
    return _varint(view, 0)[0]


def _integers(view: memoryview) -> Iterator[int]:
    place = 0
    while place < len(view):
        value, place = _varint(view, place)
        yield value


def _text(view: memoryview) -> str:
    return view[:1000].tobytes().decode("utf-8", "replace")
