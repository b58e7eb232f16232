"""A mask's values are the numbers in the file, however many bits they take; the files are written out by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cpn_fast.files.errors import DataError
from cpn_fast.files.images import image_size, read_image
from cpn_fast.files.masks import read_mask

VALUES = np.random.default_rng(5).integers(0, 2**16, (6, 11))
"""Cut to the bits of a format."""


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of big-endian samples of 1, 2, 4, 8 or 16 bits, each row filled up to whole bytes."""
    rows = []
    for row in values.tolist():
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return rows


def png(values: np.ndarray, bits: int, palette: bool) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0))
    colours = chunk(b"PLTE", bytes(np.random.default_rng(0).integers(0, 256, 3 * 2**bits).tolist())) if palette else b""
    rows = b"".join(b"\0" + row for row in packed(values, bits))
    return b"\x89PNG\r\n\x1a\n" + header + colours + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int, white_is_zero: bool, orientation: int = 1) -> bytes:
    """One uncompressed strip, big-endian."""
    data, (height, width) = b"".join(packed(values, bits)), values.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, int(not white_is_zero)),
            (273, 4, 8), (274, 3, orientation), (277, 3, 1), (278, 3, height), (279, 4, len(data))]  # fmt: skip
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    data += bytes(len(data) % 2)
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(tags)) + entries + bytes(4)


def bmp(values: np.ndarray, bits: int, grey: bool) -> bytes:
    height, width = values.shape
    rows = [row + bytes(-len(row) % 4) for row in packed(values, bits)][::-1]
    step = 255 if grey and bits == 1 else 1
    shades = range(0, 2**bits * step, step) if grey else np.random.default_rng(1).integers(0, 256, 2**bits).tolist()
    palette = b"".join(bytes([shade, shade, shade if grey else 7, 0]) for shade in shades)
    start = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, sum(map(len, rows)), 1, 1, 2**bits, 2**bits)
    return b"BM" + struct.pack("<IHHI", start + sum(map(len, rows)), 0, 0, start) + head + palette + b"".join(rows)


def pgm(values: np.ndarray, maximum: int, plain: bool) -> bytes:
    height, width = values.shape
    head = f"{'P2' if plain else 'P5'}\n{width} {height}\n{maximum}\n".encode()
    if plain:
        return head + "\n".join(" ".join(map(str, row)) for row in values.tolist()).encode() + b"\n"
    return head + values.astype(np.uint8 if maximum < 256 else ">u2").tobytes()


def check(folder: Path, content: bytes, values: np.ndarray) -> None:
    path = folder / "mask.bin"  # the content decides
    path.write_bytes(content)
    found = read_mask(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_png_of_any_bits(tmp_path: Path, bits: int, palette: bool) -> None:
    values = VALUES % 2**bits
    check(tmp_path, png(values, bits, palette), values)


def test_png_of_16_bits_holds_small_numbers_or_is_an_error(tmp_path: Path) -> None:
    check(tmp_path, png(VALUES % 21, 16, False), VALUES % 21)
    (tmp_path / "high.png").write_bytes(png(VALUES, 16, False))
    with pytest.raises(DataError, match=r"high\.png: a mask with the value \d+; expected class indices 0\.\.255"):
        read_mask(tmp_path / "high.png")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_of_any_bits(tmp_path: Path, bits: int, white_is_zero: bool) -> None:
    values = VALUES % 2**bits
    check(tmp_path, tiff(values, bits, white_is_zero), values)


def test_wide_numbers_in_tiff(tmp_path: Path) -> None:
    values = VALUES % 21
    check(tmp_path, tiff(values, 16, False), values)
    for kind in (np.int32, np.float32):
        Image.fromarray(values.astype(kind)).save(tmp_path / "wide.tif")
        np.testing.assert_array_equal(read_mask(tmp_path / "wide.tif"), values)
    for odd in (0.5, -1.0, 256.0, np.nan, np.inf):
        Image.fromarray(np.full((2, 2), odd, np.float32)).save(tmp_path / "odd.tif")
        with pytest.raises(DataError, match=r"odd\.tif: a mask with the value"):
            read_mask(tmp_path / "odd.tif")


@pytest.mark.parametrize(("bits", "grey"), [(1, False), (1, True), (4, False), (8, False), (8, True)])
def test_bmp_of_any_bits(tmp_path: Path, bits: int, grey: bool) -> None:
    values = VALUES % 2**bits
    check(tmp_path, bmp(values, bits, grey), values)


def test_a_bmp_that_pillow_decodes_wrongly_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.bmp").write_bytes(bmp(VALUES % 16, 4, True))
    with pytest.raises(DataError, match=r"m\.bmp: a BMP of 4 bits with a grey palette cannot be read; save the mask"):
        read_mask(tmp_path / "m.bmp")


@pytest.mark.parametrize("maximum", [1, 3, 15, 20, 200, 255, 300, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_of_any_maximum(tmp_path: Path, maximum: int, plain: bool) -> None:
    values = VALUES % (min(maximum, 255) + 1)
    check(tmp_path, pgm(values, maximum, plain), values)


@pytest.mark.parametrize("plain", [False, True])
def test_pbm_bits_are_its_numbers(tmp_path: Path, plain: bool) -> None:
    values = VALUES % 2
    rows = "\n".join(" ".join(map(str, row)) for row in values.tolist()).encode()
    body = rows if plain else b"".join(packed(values, 1))
    check(tmp_path, (b"P1" if plain else b"P4") + b"\n11 6\n" + body + b"\n", values)


def test_gif_and_jpeg(tmp_path: Path) -> None:
    indexed = Image.fromarray((VALUES % 7).astype(np.uint8))
    indexed.putpalette(np.random.default_rng(2).integers(0, 256, 768).astype(np.uint8).tobytes())
    indexed.save(tmp_path / "m.gif", optimize=False)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.gif"), VALUES % 7)
    Image.fromarray((VALUES % 7).astype(np.uint8)).save(tmp_path / "m.jpg")
    with pytest.raises(DataError, match=r"m\.jpg: a mask as JPEG, which changes the class numbers"):
        read_mask(tmp_path / "m.jpg")


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, 1),
}
"""What a viewer does to the stored pixels, by the EXIF standard."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_turned_once(tmp_path: Path, orientation: int) -> None:
    """Pillow turns TIFF itself, other formats not; image and mask stay together. OpenCV is a second witness."""
    grey = VALUES % 256
    (tmp_path / "a.tif").write_bytes(tiff(grey, 8, False, orientation))
    upright = UPRIGHT[orientation](grey)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.repeat(upright[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), upright)
    assert image_size(tmp_path / "a.tif") == upright.shape[::-1]
    if orientation <= 4:  # of the others OpenCV 5 reads nothing
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.tif"), cv2.IMREAD_GRAYSCALE), upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), upright)
