"""Soft maps whose file lies: each is one line about that file, and memory stays within what the maps may take."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.soft_maps import SoftMaps, read_soft_maps, write_soft_maps


def arrays(**changed: Any) -> dict[str, Any]:
    """What a file of two 3 x 4 maps for an image of 6 x 8 holds, with some of it changed."""
    good = {
        "classes": np.array([2, 7], np.uint8),
        "maps": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "size": np.array([6, 8], np.int32),
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def npy(array: np.ndarray, **header: Any) -> bytes:
    """An `.npy`, with entries of its header changed."""
    data = io.BytesIO()
    described = np.lib.format.header_data_from_array_1_0(np.asarray(array))
    np.lib.format.write_array_header_1_0(data, {**described, **header})
    return data.getvalue() + np.asarray(array).tobytes()


def archive(compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in ({name: npy(value) for name, value in arrays().items()} | members).items():
            file.writestr(f"{name}.npy", content)
    return data.getvalue()


def saved(values: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **values)
    return data.getvalue()


def undeflatable() -> bytes:
    """The maps' compressed data begin with a block of a type that deflate does not have."""
    content = saved(arrays())
    member = zipfile.ZipFile(io.BytesIO(content)).getinfo("maps.npy")
    name, extra = (int.from_bytes(content[member.header_offset + at :][:2], "little") for at in (26, 28))
    start = member.header_offset + 30 + name + extra
    return content[:start] + b"\xff" + content[start + 1 :]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "image of 10^10 pixels": (
        lambda: saved(arrays(size=np.array([100_000, 100_000]))),
        "for an image of 100000 x 100000",
    ),
    "size NaN": (lambda: saved(arrays(size=np.array([np.nan, 8]))), r"'size' is float64 \[2\], expected kind u/i"),
    "size of three": (lambda: saved(arrays(size=np.array([6, 8, 1]))), r"'size' is int64 \[3\], expected at most 2"),
    "size of one": (lambda: saved(arrays(size=np.array([6]))), "and the size of an image"),
    "size 0": (lambda: saved(arrays(size=np.array([0, 8]))), "for an image of 8 x 0"),
    "size below the maps": (lambda: saved(arrays(size=np.array([2, 8]))), "maps of 4 x 3 pixels for an image of 8 x 2"),
    "float maps": (lambda: saved(arrays(maps=np.zeros((2, 3, 4)))), "'maps' is float64"),
    "16-bit maps": (lambda: saved(arrays(maps=np.zeros((2, 3, 4), np.uint16))), "found maps uint16"),
    "flat maps": (lambda: saved(arrays(maps=np.zeros((3, 4), np.uint8))), "with 3 dimensions"),
    "empty maps": (lambda: saved(arrays(maps=np.zeros((2, 0, 4), np.uint8))), "maps of 4 x 0 pixels"),
    "fewer maps": (lambda: saved(arrays(maps=np.zeros((1, 3, 4), np.uint8))), "of 2 classes"),
    "a class twice": (lambda: saved(arrays(classes=np.array([2, 2], np.uint8))), r"the classes \[2, 2\]"),
    "classes descending": (lambda: saved(arrays(classes=np.array([7, 2], np.uint8))), r"the classes \[7, 2\]"),
    "class -1": (lambda: saved(arrays(classes=np.array([-1, 2], np.int16))), r"the classes \[-1, 2\]"),
    "class 300": (lambda: saved(arrays(classes=np.array([2, 300]))), r"the classes \[2, 300\]"),
    "float classes": (lambda: saved(arrays(classes=np.array([2.0, 7.0]))), "'classes' is float64"),
    "no maps": (lambda: saved(arrays(maps=None)), "no array 'maps'"),
    "objects": (lambda: saved(arrays(classes=np.array([{}, {}], dtype=object))), "'classes' is object"),
    "bomb": (
        lambda: archive(maps=npy(np.zeros((2, 3, 4), np.uint8)) + bytes(50_000_000)),
        "bytes, but more are there",
    ),
    "2^40 values": (lambda: archive(maps=npy(np.zeros(24, np.uint8), shape=(2, 2**19, 2**20))), "expected at most"),
    "2^28 values declared": (lambda: archive(maps=npy(np.zeros(24, np.uint8), shape=(2, 2**7, 2**20))), "but 24 are"),
    "negative shape": (lambda: archive(maps=npy(np.zeros(24, np.uint8), shape=(2, -3, -4))), r"shape \(2, -3, -4\)"),
    "record dtype": (lambda: archive(maps=npy(np.zeros(24, np.uint8), descr=[("a", "|u1")])), "of dtype"),
    "Fortran order": (lambda: archive(maps=npy(np.zeros(24, np.uint8), fortran_order=True)), "C order"),
    "long header": (
        lambda: archive(maps=b"\x93NUMPY\x03\0" + b"\xff\xff\xff\x7f" + b"(" * 100),
        "with a header of 2147",
    ),
    "nested header": (lambda: archive(maps=b"\x93NUMPY\x01\0" + b"\xa0\x0f" + b"(" * 4000), "cannot read class maps"),
    "bzip2": (lambda: archive(zipfile.ZIP_BZIP2), "compressed as numpy would not"),
    "no zip": (lambda: b"not a zip", "not a zip file"),
    "empty": (lambda: b"", "cannot read class maps"),
    "cut": (lambda: saved(arrays())[:200], "cannot read class maps"),
    "deflate damaged": (undeflatable, "invalid block type"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_line_and_takes_little_memory(tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    (tmp_path / "a.npz").write_bytes(make())
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as error:
        read_soft_maps(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value).startswith(f"{tmp_path / 'a.npz'}: ") and "\n" not in str(error.value)
    assert peak < 20e6


def test_good_files_are_read_as_written(tmp_path: Path) -> None:
    for content in (saved(arrays()), archive(), archive(zipfile.ZIP_STORED), archive(unknown=b"what else")):
        (tmp_path / "a.npz").write_bytes(content)
        soft = read_soft_maps(tmp_path / "a.npz")
        np.testing.assert_array_equal(soft.maps, np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 255)
        assert soft.classes.dtype == np.uint8 and soft.classes.tolist() == [2, 7] and soft.size == (6, 8)
        assert soft.at_image_size()[0, :2, :2].tolist() == [[0, 0], [0, 0]]
    empty = SoftMaps(np.zeros(0, np.uint8), np.zeros((0, 3, 4), np.float32), (6, 8))
    write_soft_maps(tmp_path / "none.npz", empty)
    assert read_soft_maps(tmp_path / "none.npz").at_image_size().shape == (0, 6, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1, 1.5])
def test_values_that_are_no_scores_are_not_written(tmp_path: Path, value: float) -> None:
    maps = np.full((1, 3, 4), 0.5, np.float32)
    maps[0, 1, 2] = value
    with pytest.raises(DataError, match=r"a\.npz: class maps with values from .*expected 0\.\.1"):
        write_soft_maps(tmp_path / "a.npz", SoftMaps(np.array([1], np.uint8), maps, (3, 4)))
    assert not list(tmp_path.iterdir())


def test_values_that_rounding_took_past_the_ends_are_kept(tmp_path: Path) -> None:
    maps = np.array([[[1.000001, -0.000001]]], np.float32)
    write_soft_maps(tmp_path / "a.npz", SoftMaps(np.array([1], np.uint8), maps, (1, 2)))
    assert read_soft_maps(tmp_path / "a.npz").maps.tolist() == [[[1.0, 0.0]]]


def test_background_may_have_a_map_of_its_own_but_not_in_a_labelling(tmp_path: Path) -> None:
    folder = MaskFolder.at(tmp_path)
    maps = np.zeros((2, 3, 4), np.float32)
    write_soft_maps(folder.soft_path("a"), SoftMaps(np.array([0, 2], np.uint8), maps, (6, 8)))
    assert read_soft_maps(folder.soft_path("a")).classes.tolist() == [0, 2]
    with pytest.raises(DataError, match=r"maps of class 0; expected 1\.\.3"):
        folder.read_soft("a", 3)
