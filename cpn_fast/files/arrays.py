"""Arrays from an `.npz` whose every size is checked before memory is taken for it."""

from __future__ import annotations

import ast
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.regular import open_regular

DAMAGE = (
    OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, TypeError,
    OverflowError, MemoryError, RuntimeError,
)  # fmt: skip
"""Everything that reading a damaged or hostile `.npz` raises (the last: an encrypted or unknown compression)."""

_MAX_HEADER = 4096


@dataclass(frozen=True)
class ArraySpec:
    """What an array of the file has to be.

    Attributes:
        kinds: kinds of dtype, as numpy's `dtype.kind`, e.g. "ui" for integers.
        ndim: number of dimensions.
        max_values: most elements.
    """

    kinds: str
    ndim: int
    max_values: int


def read_npz(path: str | Path, specs: Mapping[str, ArraySpec]) -> dict[str, NDArray[Any]]:
    """Read some arrays of an `.npz`. Nothing is unpickled, and no more memory is taken than the specs allow.

    Args:
        path: the file.
        specs: name -> what the array has to be.

    Returns:
        name -> array.

    Raises:
        ValueError: for an array that is missing or is no such array, a damaged one, or one that is shorter or longer
            than its header says; and the others of `DAMAGE` for files that are no `.npz`.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        return {name: _read(archive, name, spec) for name, spec in specs.items()}


def npz_shape(path: str | Path, name: str) -> tuple[int, ...]:
    """The shape of one array of an `.npz`, from its header alone. Raises as `read_npz`."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
        return _header(member)[0]


def _read(archive: zipfile.ZipFile, name: str, spec: ArraySpec) -> NDArray[Any]:
    member = f"{name}.npy"
    if member not in archive.namelist():
        raise ValueError(f"no array {name!r}")
    if archive.getinfo(member).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"array {name!r} is compressed as numpy would not")  # these unpack without a limit
    with archive.open(member) as file:
        shape, dtype = _header(file)
        found = f"array {name!r} is {dtype} {list(shape)[:8]}"
        if dtype.kind not in spec.kinds or len(shape) != spec.ndim:
            raise ValueError(f"{found}, expected kind {'/'.join(spec.kinds)} with {spec.ndim} dimensions")
        if prod(shape) > spec.max_values:
            raise ValueError(f"{found}, expected at most {spec.max_values:,} values")
        size = prod(shape) * dtype.itemsize
        data = file.read(size + 1)  # decompresses no more than this
        if len(data) != size:
            raise ValueError(f"{found}, {size} bytes, but {'more' if len(data) > size else len(data)} are there")
        return np.frombuffer(data, dtype).reshape(shape).copy()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an `.npy`; the file then stands at its data (C order)."""
    start = file.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise ValueError("an array without numpy's header")
    layout = "<H" if start[6] == 1 else "<I"
    (length,) = struct.unpack(layout, file.read(struct.calcsize(layout)))
    if length > _MAX_HEADER:
        raise ValueError(f"an array with a header of {length} bytes")
    header = ast.literal_eval(file.read(length).decode("latin-1").strip())
    if not isinstance(header, dict) or header.get("fortran_order") is not False:
        raise ValueError("an array whose header numpy would not have written in C order")
    shape, descr = header.get("shape"), header.get("descr")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"an array of shape {str(shape)[:60]}")
    if not isinstance(descr, str):
        raise ValueError(f"an array of dtype {str(descr)[:60]}")
    return shape, np.dtype(descr)


@contextmanager
def damage_as(error: type[Exception], message: str) -> Iterator[None]:
    """Turn what the block raises of `DAMAGE` into `error`; in its message `{reason}` becomes what was wrong."""
    try:
        yield
    except error:
        raise
    except DAMAGE as found:
        reason = " ".join(str(found).split())[:200] or type(found).__name__
        raise error(message.replace("{reason}", reason)) from found
