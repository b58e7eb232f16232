"""Read any image file as uint8 RGB, or say clearly why it cannot be read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    DdsImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PcxImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    PsdImagePlugin,
    QoiImagePlugin,
    SgiImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from cpn_fast.files.errors import DataError
from cpn_fast.files.member import ImageFile, as_image_file
from cpn_fast.files.regular import open_regular

DEFAULT_MAX_PIXELS = 80_000_000
"""Largest image that is read, in pixels (240 MB as RGB); just below the size at which Pillow itself starts to warn."""

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
    + (".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".tga", ".psd", ".qoi", ".pcx", ".dds", ".sgi")
)
"""File name endings, in lower case, by which `list_images` knows an image. A file named directly needs none of them."""

# A closed list: Pillow also opens EPS, for which it would start Ghostscript on a stranger's file. Named through their
# plugins because Pillow knows a format only once its plugin is imported.
_FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    GifImagePlugin.GifImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
    PpmImagePlugin.PpmImageFile.format,
    Jpeg2KImagePlugin.Jpeg2KImageFile.format,
    TgaImagePlugin.TgaImageFile.format,
    PsdImagePlugin.PsdImageFile.format,
    QoiImagePlugin.QoiImageFile.format,
    PcxImagePlugin.PcxImageFile.format,
    DdsImagePlugin.DdsImageFile.format,
    SgiImagePlugin.SgiImageFile.format,
)
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"))
_SHOWN_FORMATS = "JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, HEIC, AVIF and other formats"
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = frozenset({5, 6, 7, 8})
_TIFF_SIZE_TAGS = (256, 257)


def read_image(path: str | ImageFile, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Read an image of any mode as RGB, upright.

    The format is taken from the content, not from the name. EXIF orientation is applied; transparent pixels are laid
    over white; 16-bit values keep their high byte; of an animation the first frame counts.

    Args:
        path: the image file, or a member of a shard.
        max_pixels: largest width x height that is decoded.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous.

    Raises:
        DataError: if the file is missing, empty, truncated, no image, of an unsupported mode or over `max_pixels`.
    """
    with open_image(path, max_pixels) as image:
        return upright_pixels(image, str(path))


def upright_pixels(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of an image that Pillow has opened, by the rules of `read_image`.

    Args:
        image: of any mode.
        name: what to call it in an error.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous.

    Raises:
        DataError: for an unsupported mode.
    """
    turn = remaining_turn(image)
    rgb = _to_rgb(image, name)
    return np.array(rgb if turn is None else rgb.transpose(turn), dtype=np.uint8)


def image_size(path: str | ImageFile) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from its header alone.

    Raises:
        DataError: if the file is missing, empty or no image.
    """
    with open_image(path, None) as image:
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Newer versions of Pillow give the upright size here already; the tags say what is stored.
            width, height = (int(image.tag_v2[tag]) for tag in _TIFF_SIZE_TAGS)
        return (height, width) if _orientation(image) in _SWAPPING else (width, height)


def remaining_turn(image: Image.Image) -> Image.Transpose | None:
    """Decode an opened image and say how it still has to be turned to be upright.

    Pillow turns TIFF files itself as it decodes them, and no other format; their tag is gone afterwards.
    """
    image.load()
    return _ORIENTATIONS.get(_orientation(image))


def list_images(root: str | Path) -> list[Path]:
    """All image files (by suffix) under `root`, recursively and sorted; hidden files and folders are passed over.

    Raises:
        DataError: if `root` is not a folder that can be listed.
    """
    return sorted(Path(root, name) for name in images_below(root))


def images_below(root: str | Path) -> Iterator[str]:
    """What `list_images` lists, one after the other, relative to `root`, in the order of the file system.

    Raises:
        DataError: as `list_images` does.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected a folder of images")
    visited: set[str] = set()  # a link to a folder is followed, since data often lies elsewhere; a loop of links is not
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        folder = f"{root}/{inside}"
        if (real := os.path.realpath(folder)) in visited:
            continue
        visited.add(real)
        subfolders = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        subfolders.append(f"{inside}{entry.name}/")
                    elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                        yield f"{inside}{entry.name}"
        except OSError as error:
            folder = folder.rstrip("/")
            raise DataError(f"{folder}: cannot list the folder ({error.strerror}); check its permissions") from None
        waiting += sorted(subfolders, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


@contextmanager
def open_image(path: str | ImageFile, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Iterator[Image.Image]:
    """Open with Pillow and turn whatever goes wrong, also while decoding in the block, into a `DataError`."""
    path = as_image_file(path)
    try:
        with open_regular(path) as file, Image.open(file, formats=_formats_of(file, path)) as image:
            if max_pixels is not None:
                _check_pixels(image, path, max_pixels)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected an image") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; expected an image file") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it; change its mode or owner") from None
    except UnidentifiedImageError:
        raise DataError(_unidentified(path)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {error}; make the image smaller") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, LookupError, TypeError, ArithmeticError,
            AttributeError, NotImplementedError, RuntimeError, MemoryError) as error:  # fmt: skip
        # Pillow's decoders raise all of these for damaged files.
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot read it ({error.strerror}); expected an image") from None
        raise DataError(
            f"{path}: cannot decode the image ({error}); the file is damaged or truncated, fetch it again or remove it"
        ) from error


def _check_pixels(image: Image.Image, path: ImageFile, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{path}: {width} x {height} = {width * height:,} pixels, over the limit of {max_pixels:,}; "
            "make the image smaller or raise the limit (--max-pixels)"
        )


def _unidentified(path: ImageFile) -> str:
    with open_regular(path) as file:
        start = file.read(16)
    if not start:
        return f"{path}: the file is empty (0 bytes); expected an image, fetch it again or remove it"
    return (
        f"{path}: not an image: it starts with {start!r} and none of {_SHOWN_FORMATS} begins so; "
        "convert it or remove it"
    )


def _formats_of(file: BinaryIO, path: ImageFile) -> tuple[str, ...]:
    """The formats that a file may have: the closed list, or HEIC and AVIF, whose readers are loaded for them alone.

    Raises:
        DataError: where the reader is not installed.
    """
    start = file.read(12)
    file.seek(0)
    if start[4:8] != b"ftyp" or start[8:12] not in _HEIF_BRANDS:
        return _FORMATS
    return _register_heif(str(path), start[8:11] == b"avi")


def _register_heif(path: str, avif: bool) -> tuple[str, ...]:
    if avif and features.check("avif"):
        return ("AVIF",)
    try:
        import pillow_heif
    except ModuleNotFoundError:
        kind, hint = ("AVIF", "a newer Pillow") if avif else ("HEIC", "pillow-heif")
        raise DataError(f"{path}: {kind} needs {hint}: pip install 'cpn-fast[heic]', or save it as JPEG") from None
    pillow_heif.register_heif_opener()
    return ("HEIF", "AVIF") if features.check("avif") else ("HEIF",)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, KeyError, IndexError):
        return 1  # damaged metadata must not cost the photograph
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        # Pillow's own conversion would clip everything above 255 to white.
        high_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if mode in ("I", "F"):
        raise DataError(
            f"{name}: pixels of mode {mode!r} (32 bit) have no stated range; save the image with 8 or 16 bits a channel"
        )
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")  # which would copy the pixels
