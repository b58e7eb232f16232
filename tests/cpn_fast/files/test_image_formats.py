"""Formats beside JPEG and PNG: what Pillow writes is read back; HEIC and AVIF stand upright as the JPEG does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from cpn_fast.files.errors import DataError
from cpn_fast.files.images import IMAGE_SUFFIXES, image_size, list_images, read_image
from cpn_fast.files.masks import read_mask

PIXELS = np.zeros((24, 40, 3), dtype=np.uint8)
PIXELS[:12, :20] = (255, 255, 255)
PIXELS[12:, 20:] = (200, 30, 60)

EXACT: dict[str, dict[str, bool]] = {
    **{suffix: {} for suffix in (".bmp", ".gif", ".tga", ".pcx", ".sgi", ".dds", ".ppm", ".qoi", ".tif")},
    **{suffix: {"irreversible": False} for suffix in (".jp2", ".j2k")},
    ".webp": {"lossless": True},
}
CLOSE = [".heic", ".heif", ".avif"]


def saved(path: Path, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if path.suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    if path.suffix in (".heic", ".heif"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.fromarray(PIXELS).save(path, exif=exif.tobytes(), quality=95)
    return path


@pytest.mark.parametrize("suffix", EXACT)
def test_exact_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    image = Image.fromarray(PIXELS)
    if suffix == ".qoi" and "QOI" not in Image.SAVE:
        pytest.skip("this Pillow writes no QOI")
    image.save(path, **EXACT[suffix])
    np.testing.assert_array_equal(read_image(path), PIXELS)
    assert image_size(path) == (40, 24) and list_images(tmp_path) == [path] and suffix in IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", CLOSE)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_of_phones_stand_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, jpeg = saved(tmp_path / f"a{suffix}", orientation), saved(tmp_path / "a.jpg", orientation)
    found, expected = read_image(path), read_image(jpeg)
    assert found.shape == expected.shape and image_size(path) == image_size(jpeg)
    assert np.abs(found.astype(int) - expected).mean() < 6
    assert path in list_images(tmp_path)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_without_the_reader_the_extra_is_named(tmp_path: Path, brand: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(features, "check", lambda name: False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x1cftyp" + brand + bytes(40))
    with pytest.raises(DataError, match=r"a\.heic: (HEIC|AVIF) needs .*pip install 'cpn-fast\[heic\]'"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".jp2", ".tga", ".sgi", ".pcx", ".dds"])
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in CLOSE:
        saved(path)
    else:
        Image.fromarray(PIXELS).save(path)
    data = path.read_bytes()
    refused = 0
    for end in range(0, len(data), max(1, len(data) // 30)):
        path.write_bytes(data[:end])
        try:
            read_image(path, max_pixels=10_000)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


@pytest.mark.parametrize("suffix", [".jp2", ".avif", ".heic"])
def test_formats_that_may_lose_values_hold_no_masks(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match="does not keep the values of a mask exactly"):
        read_mask(path)


def test_postscript_is_not_opened(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for it."""
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(DataError, match="not an image"):
        read_image(tmp_path / "a.eps")
