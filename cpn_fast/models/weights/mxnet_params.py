"""Reads MXNet's `.params` format without MXNet, and translates the names of the ResNet38 file.

Little-endian: u64 magic 0x112, u64 0, u64 number of arrays, the arrays, u64 number of names, per name u64 length and
bytes. An array has one of three headers (V2/V3, V1, or none), then i32 device type, i32 device id, i32 dtype, data.
"""

from __future__ import annotations

import re
import struct
from math import prod
from pathlib import Path

import numpy as np

from cpn_fast.files.errors import DataError

FILE_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
MAX_DIMENSIONS = 32

_BLOCK_NAME = re.compile(r"(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|beta|gamma|moving_mean|moving_var)")
_LAST_NORM = re.compile(r"bn7_(beta|gamma|moving_mean|moving_var)")
_FIELDS = {
    "weight": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}


class _Reader:
    """Takes fields one after the other from the file's bytes; every shortage is an error that names the place."""

    def __init__(self, path: Path, content: np.ndarray) -> None:
        self.path, self.content, self.offset = path, content, 0

    def error(self, problem: str) -> DataError:
        return DataError(
            f"{self.path}: byte {self.offset}: {problem}; the file is damaged or not MXNet's: fetch it again"
        )

    def take(self, count: int, what: str) -> np.ndarray:
        left = self.content.size - self.offset
        if count > left:
            raise self.error(f"{what} needs {count} bytes, {left} are left")
        taken = self.content[self.offset : self.offset + count]
        self.offset += count
        return taken

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        layout = "<" + layout
        return struct.unpack(layout, self.take(struct.calcsize(layout), what).tobytes())

    def number(self, layout: str, what: str) -> int:
        return self.numbers(layout, what)[0]


def read_params(path: str | Path) -> dict[str, np.ndarray]:
    """Read a `.params` file.

    Args:
        path: the file; it is mapped, not read at once.

    Returns:
        Name as stored (`arg:conv1a_weight`) -> array in C order, of the stored dtype.

    Raises:
        DataError: not this format, sparse or of an unknown dtype, truncated, or a name occurs twice.
    """
    path = Path(path)
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    reader = _Reader(path, content)
    magic, _, count = reader.numbers("QQQ", "the file header")
    if magic != FILE_MAGIC:
        reader.offset = 0
        raise reader.error(f"magic number is {magic:#x}, expected {FILE_MAGIC:#x}")
    arrays = [_read_array(reader, index) for index in range(count)]
    name_count = reader.number("Q", "the number of names")
    if name_count != count:
        raise reader.error(f"{count} arrays have {name_count} names")
    named: dict[str, np.ndarray] = {}
    for array in arrays:
        length = reader.number("Q", "the length of a name")
        name = reader.take(length, "a name").tobytes().decode("utf-8", "replace")
        if name in named:
            raise reader.error(f"name {name!r} occurs twice")
        named[name] = array
    if reader.offset != content.size:
        raise reader.error(f"{content.size - reader.offset} bytes follow the last name")
    return named


def _read_array(reader: _Reader, index: int) -> np.ndarray:
    what = f"array {index}"
    version = reader.number("I", what)
    # Before V1 there was no magic number: the first field is the number of dimensions itself
    if version in (V2, V3) and (storage := reader.number("i", what)) != 0:
        raise reader.error(f"{what} has storage type {storage}, expected 0 (dense)")
    dimensions = reader.number("i", what) if version in (V1, V2, V3) else version
    if not 0 <= dimensions <= MAX_DIMENSIONS:
        raise reader.error(f"{what} has {dimensions} dimensions, expected 0 to {MAX_DIMENSIONS}")
    shape = reader.numbers(f"{dimensions}{'q' if version in (V1, V2, V3) else 'I'}", f"the shape of {what}")
    # 0 x 2^62 takes no byte of the file, and no array library can hold it.
    if any(side < 0 for side in shape) or (0 in shape and prod(filter(None, shape)) > reader.content.size):
        raise reader.error(f"{what} has shape {shape}")
    if not shape and version != V3:
        # MXNet's "none": nothing follows. Only NumPy arrays (V3) have scalars
        return np.zeros(0, np.float32)
    _device, _device_id, dtype = reader.numbers("iii", what)
    if not 0 <= dtype < len(DTYPES):
        raise reader.error(f"{what} has dtype code {dtype}, expected 0 to {len(DTYPES) - 1}")
    kind = np.dtype(DTYPES[dtype])
    data = reader.take(prod(shape) * kind.itemsize, f"the data of {what}")
    # A copy of its own: the place in the file need not be aligned for the type
    return np.array(data).view(kind).reshape(shape)


def resnet38_key(name: str) -> str:
    """Translate a name of the ResNet38 `.params` file into the state dict's key.

    Args:
        name: e.g. `arg:res5b1_branch2a_weight`, `aux:bn7_moving_mean`.

    Returns:
        E.g. `b5_1.conv_branch2a.weight`, `bn7.running_mean`; a name of no such form comes back without its prefix.
    """
    name = name.removeprefix("arg:").removeprefix("aux:")
    if name == "conv1a_weight":
        return "conv1a.weight"
    if match := _LAST_NORM.fullmatch(name):
        return f"bn7.{_FIELDS[match[1]]}"
    if match := _BLOCK_NAME.fullmatch(name):
        kind, stage, index, branch, field = match.groups()
        block = f"b{stage}_{index}" if index else f"b{stage}"
        return f"{block}.{'conv' if kind == 'res' else 'bn'}_{branch}.{_FIELDS[field]}"
    return name
