"""Reading any image: what works gives the right pixels, what does not gives an error that names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, image_size, list_images, read_image

# What a viewer must do to the stored pixels for each EXIF orientation, in numpy's terms (from the EXIF standard's table
# of where row 0 and column 0 lie).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def png_bytes(rows: list[bytes], width: int, bit_depth: int, colour_type: int, height: int | None = None) -> bytes:
    """A PNG written out by hand, so that 16-bit files do not come from the library under test."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height or len(rows), bit_depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_rgb_is_read_as_it_is(tmp_path: Path, pixels: np.ndarray) -> None:
    for suffix in ("png", "bmp", "tif", "ppm"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(pixels).save(path)
        image = read_image(path)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        np.testing.assert_array_equal(image, pixels)


def test_grey_palette_and_one_bit_become_rgb(tmp_path: Path) -> None:
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))

    indexed = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8))
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    indexed.save(tmp_path / "palette.png")
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), expected)

    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png"), [[[255] * 3, [0] * 3]])


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 128]]], dtype=np.uint8)).save(
        tmp_path / "rgba.png"
    )
    # 255 - 128 / 255 * 255 = 127 where green and blue shine through
    np.testing.assert_allclose(
        read_image(tmp_path / "rgba.png")[0].astype(int), [[255, 0, 0], [255, 255, 255], [255, 127, 127]], atol=1
    )
    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), [[[255, 255, 255]]])
    keyed = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    keyed.putpalette([10, 20, 30, 40, 50, 60])
    keyed.save(tmp_path / "keyed.png", transparency=1)
    np.testing.assert_array_equal(read_image(tmp_path / "keyed.png"), [[[10, 20, 30], [255, 255, 255]]])


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    np.testing.assert_allclose(read_image(tmp_path / "red.jpg").astype(int), np.full((16, 16, 3), [255, 0, 0]), atol=2)


def test_sixteen_bit_png_keeps_its_high_byte(tmp_path: Path) -> None:
    grey = [struct.pack(">3H", 0x0000, 0x12FF, 0xFFFF), struct.pack(">3H", 0x8000, 0x00FF, 0x7F00)]
    (tmp_path / "grey16.png").write_bytes(png_bytes(grey, 3, 16, 0))
    expected = np.array([[0x00, 0x12, 0xFF], [0x80, 0x00, 0x7F]], dtype=np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "grey16.png"), np.repeat(expected[..., None], 3, axis=2))

    (tmp_path / "rgb16.png").write_bytes(png_bytes([struct.pack(">3H", 0x1200, 0x34AA, 0xFFFF)], 1, 16, 2))
    np.testing.assert_array_equal(read_image(tmp_path / "rgb16.png"), [[[0x12, 0x34, 0xFF]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = UPRIGHT[orientation](pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)
    assert image_size(tmp_path / "a.png") == (upright.shape[1], upright.shape[0])

    smooth = cv2.resize(pixels, (56, 40), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=exif, quality=95)
    other_reader = cv2.cvtColor(cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - other_reader).mean() < 2


def test_damaged_exif_does_not_cost_the_photograph(tmp_path: Path, pixels: np.ndarray) -> None:
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*")):
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path, exif=exif)
        np.testing.assert_array_equal(read_image(path), pixels)


def test_content_decides_not_the_name(tmp_path: Path, pixels: np.ndarray) -> None:
    for name in ("really_a_png.jpg", "no_suffix", "ünï cödé 図.JPG"):
        Image.fromarray(pixels).save(tmp_path / name, format="PNG")
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), np.full((4, 4, 3), [255, 0, 0]))


def test_truncated_files(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.png", "a.bmp", "a.webp", "a.gif", "a.tif"):
        path = tmp_path / name
        Image.fromarray(noise).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match="damaged or truncated") as error:
            read_image(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty \(0 bytes\).*fetch it again or remove it"),
        (b"hello, I am text", "not an image: it starts with b'hello, I am text'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # must not start Ghostscript
        (b"\xff\xd8\xff\xe0", "damaged or truncated|not an image"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a b.jpg"
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jpg: no such file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


def test_pixel_limit(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    assert read_image(path, max_pixels=35).shape == (5, 7, 3)
    with pytest.raises(DataError, match=r"7 x 5 = 35 pixels, over the limit of 34; .*--max-pixels"):
        read_image(path, max_pixels=34)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bytes([b"\0"], side, 8, 0, height=side))
    assert side * side > DEFAULT_MAX_PIXELS
    with pytest.raises(DataError, match="make the image smaller"):
        read_image(path)


def test_thirty_two_bit_pixels_have_no_range(tmp_path: Path) -> None:
    for mode in ("I", "F"):
        path = tmp_path / f"{mode}.tif"
        Image.new(mode, (2, 2), 70000).save(path)
        with pytest.raises(DataError, match=rf"mode '{mode}' \(32 bit\).*8 or 16 bits"):
            read_image(path)


def test_list_images(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    root = tmp_path / "root"
    for path in (
        root / "b.PNG",
        root / "a b" / "ü.jpeg",
        root / "notes.txt",
        root / ".hidden.jpg",
        root / ".git/x.jpg",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    elsewhere.mkdir()
    (elsewhere / "far.webp").touch()
    (root / "linked").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    assert list_images(root) == [root / "a b" / "ü.jpeg", root / "b.PNG", root / "linked" / "far.webp"]
    with pytest.raises(DataError, match="no such folder"):
        list_images(root / "b.PNG")
