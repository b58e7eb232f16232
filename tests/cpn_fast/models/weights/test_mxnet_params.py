"""The .params reader against bytes written out from the format's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpn_fast.files.errors import DataError
from cpn_fast.models.weights.mxnet_params import read_params, resnet38_key

FILE_HEADER = "1201000000000000 0000000000000000"
DEVICE = "01000000 00000000"
F32, F64, F16, U8, I32, I8, I64 = (f"{code:02x}000000" for code in range(7))
ONE_TO_SIX = "0000803f 00000040 00004040 00008040 0000a040 0000c040"

# magic, dense, 2 dimensions (int64 2, 3)
V2 = "c9fa93f9 00000000 02000000 0200000000000000 0300000000000000"
V3 = "cafa93f9 00000000 02000000 0200000000000000 0300000000000000"
# magic, 2 dimensions (int64)
V1 = "c8fa93f9 02000000 0200000000000000 0300000000000000"
# no magic: 2 dimensions (uint32)
OLDEST = "02000000 02000000 03000000"
NAME_A = "0500000000000000 6172673a61"  # arg:a


def file_of(*arrays: str, names: str = NAME_A, name_count: int | None = None) -> bytes:
    count = f"{len(arrays):02x}00000000000000"
    name_total = count if name_count is None else f"{name_count:02x}00000000000000"
    return bytes.fromhex(" ".join([FILE_HEADER, count, *arrays, name_total, names]))


def written(folder: Path, content: bytes) -> Path:
    path = folder / "weights.params"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("header", [V2, V3, V1, OLDEST], ids=["v2", "v3", "v1", "oldest"])
def test_every_header_form(tmp_path: Path, header: str) -> None:
    arrays = read_params(written(tmp_path, file_of(f"{header} {DEVICE} {F32} {ONE_TO_SIX}")))
    assert list(arrays) == ["arg:a"]
    assert arrays["arg:a"].dtype == np.float32
    np.testing.assert_array_equal(arrays["arg:a"], [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("dtype", "data", "values"),
    [
        (F64, "000000000000f83f 00000000000000c0", np.float64([1.5, -2])),
        (F16, "003e 00c0", np.float16([1.5, -2])),
        (U8, "07 ff", np.uint8([7, 255])),
        (I32, "07000000 feffffff", np.int32([7, -2])),
        (I8, "07 fe", np.int8([7, -2])),
        (I64, "0700000000000000 feffffffffffffff", np.int64([7, -2])),
    ],
)
def test_every_dtype(tmp_path: Path, dtype: str, data: str, values: np.ndarray) -> None:
    found = read_params(written(tmp_path, file_of(f"01000000 02000000 {DEVICE} {dtype} {data}")))["arg:a"]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_several_arrays_keep_their_names_whatever_the_alignment(tmp_path: Path) -> None:
    byte = f"01000000 01000000 {DEVICE} {U8} 09"
    names = f"{NAME_A} 0700000000000000 6175783a62c3a4 0100000000000000 63"
    arrays = read_params(written(tmp_path, file_of(byte, f"{V2} {DEVICE} {F32} {ONE_TO_SIX}", f"{byte}", names=names)))
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "arg:a": [9],
        "aux:bä": [[1, 2, 3], [4, 5, 6]],
        "c": [9],
    }
    assert arrays["aux:bä"].flags.writeable and arrays["aux:bä"].flags.aligned


def test_scalars_and_empty_arrays(tmp_path: Path) -> None:
    scalar = f"cafa93f9 00000000 00000000 {DEVICE} {F32} 0000c040"  # only NumPy arrays have them
    none = "c9fa93f9 00000000 00000000"  # MXNet's "none" ends after its shape
    names = f"{NAME_A} 0100000000000000 62"
    arrays = read_params(written(tmp_path, file_of(scalar, none, names=names)))
    assert arrays["arg:a"].shape == () and arrays["arg:a"] == 6
    assert arrays["b"].shape == (0,)


GOOD = file_of(f"{V2} {DEVICE} {F32} {ONE_TO_SIX}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file header needs 24 bytes, 0 are left"),
        (b"PK\x03\x04" + bytes(40), r"magic number is 0x4034b50, expected 0x112"),
        (file_of(V2.replace("f9 00000000", "f9 01000000")), r"array 0 has storage type 1, expected 0 \(dense\)"),
        (file_of(f"{V1} {DEVICE} 0c000000"), r"array 0 has dtype code 12, expected 0 to 6"),
        (file_of(f"ffffffff {DEVICE}"), r"array 0 has 4294967295 dimensions"),
        (file_of("c8fa93f9 ffffffff"), r"array 0 has -1 dimensions"),
        (file_of("c8fa93f9 01000000 ffffffffffffffff"), r"array 0 has shape \(-1,\)"),
        (file_of(f"c8fa93f9 01000000 ffffffffffffff7f {DEVICE} {F32}"), r"the data of array 0 needs 36893\d+ bytes"),
        (file_of(f"c8fa93f9 02000000 {'00' * 8} {'00' * 7}40 {DEVICE} {F32}"), r"array 0 has shape \(0, 46116860184"),
        (GOOD[:-6], r"a name needs 5 bytes|the length of a name needs 8 bytes"),
        (GOOD + b"x", r"1 bytes follow the last name"),
        (file_of(f"{OLDEST} {DEVICE} {F32} {ONE_TO_SIX}", name_count=0), r"1 arrays have 0 names"),
        (file_of(*["01000000 01000000 " + DEVICE + U8 + "09"] * 2, names=NAME_A * 2), r"name 'arg:a' occurs twice"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_params(path)
    assert str(path) in str(caught.value) and "byte " in str(caught.value)


def test_a_file_cut_anywhere_is_a_data_error(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(DataError):
            read_params(written(tmp_path, GOOD[:length]))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("arg:conv1a_weight", "conv1a.weight"),
        ("arg:res2a_branch2a_weight", "b2.conv_branch2a.weight"),
        ("arg:res2a_branch1_weight", "b2.conv_branch1.weight"),
        ("arg:res4b5_branch2b1_weight", "b4_5.conv_branch2b1.weight"),
        ("arg:res7a_branch2b2_weight", "b7.conv_branch2b2.weight"),
        ("arg:bn5b1_branch2a_gamma", "b5_1.bn_branch2a.weight"),
        ("arg:bn5b1_branch2a_beta", "b5_1.bn_branch2a.bias"),
        ("aux:bn6a_branch2b2_moving_mean", "b6.bn_branch2b2.running_mean"),
        ("aux:bn3b2_branch2b1_moving_var", "b3_2.bn_branch2b1.running_var"),
        ("arg:bn7_gamma", "bn7.weight"),
        ("arg:bn7_beta", "bn7.bias"),
        ("aux:bn7_moving_mean", "bn7.running_mean"),
        ("aux:bn7_moving_var", "bn7.running_var"),
        ("arg:linear1000_weight", "linear1000_weight"),
        ("arg:something_else", "something_else"),
    ],
)
def test_names_of_resnet38(name: str, key: str) -> None:
    assert resnet38_key(name) == key
