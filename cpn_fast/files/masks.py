"""Palette PNG masks as PASCAL VOC has them: 0 background, 1..K classes, 255 void."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cpn_fast.files.atomic import atomic_write_bytes, atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, open_image, remaining_turn
from cpn_fast.files.labelmap import Labelmap, read_labelmap_file
from cpn_fast.files.member import ImageFile, as_image_file
from cpn_fast.files.palette import voc_palette
from cpn_fast.files.stored_values import stored_values
from cpn_fast.files.text import read_lines

VOID = 255
"""Pixels of this value are neither scored nor trained on."""

MAX_CLASSES = 254
"""Most foreground classes that an 8-bit mask can hold: 256 values less background (0) and void (255)."""


def read_mask(
    path: str | ImageFile,
    num_classes: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    labelmap: Labelmap | None = None,
) -> np.ndarray:
    """Read a mask's values (not its colours), upright: the numbers that the file holds, whatever its bits per pixel.

    Args:
        path: palette or grey image.
        num_classes: number K of foreground classes; values other than 0..K and 255 are an error. None: no check.
        max_pixels: largest width x height that is decoded.
        labelmap: what numbers and colours of the folder's masks mean; then the image may be in these colours. None:
            numbers are classes.

    Returns:
        uint8 [H, W].

    Raises:
        DataError: if the file cannot be read, is a JPEG, is no palette or grey image, or holds an unknown value or
            colour.
    """
    path = as_image_file(path)
    with open_image(path, max_pixels) as image:
        if image.format == "JPEG":
            raise DataError(f"{path}: a mask as JPEG, which changes the class numbers; export it again as PNG")
        mask = stored_values(image, str(path))
        if mask is not None:
            mask = mask if labelmap is None else labelmap.class_values(mask, image)
        elif labelmap is not None:
            mask = labelmap.values_of_colours(image, str(path))
        else:
            raise DataError(
                f"{path}: a mask of mode {image.mode!r}; expected a palette or 8-bit grey PNG whose values are class "
                "indices (0 background, 255 void); convert colours to indices"
            )
        turn = remaining_turn(image)
        if turn is not None:
            mask = np.array(Image.fromarray(mask).transpose(turn))
    if num_classes is not None:
        check_mask_values(mask, num_classes, str(path))
    return mask


def check_mask_values(mask: np.ndarray, num_classes: int, where: str) -> None:
    """Raise DataError, beginning with `where`, if a value of `mask` is not 0..num_classes or 255."""
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = [int(value) for value in values if num_classes < value < VOID]
    if unknown:
        raise DataError(
            f"{where}: mask values {unknown[:8]} are no class; expected 0 (background), 1..{num_classes} or 255 "
            "(void); is the list of classes complete?"
        )


def write_mask(path: str | Path, mask: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write a palette PNG in one step; a power cut right after it may leave the file that was there before.

    Args:
        path: where to.
        mask: uint8 [H, W].
        palette: uint8 [256, 3]; None = VOC's.

    Raises:
        ValueError: if mask or palette has another type or shape.
    """
    atomic_write_bytes(path, encode_mask(mask, palette, str(path)), lasting=False)


def encode_mask(mask: np.ndarray, palette: np.ndarray | None = None, where: str = "mask") -> bytes:
    """The bytes of a palette PNG. Arguments and errors, which begin with `where`, are those of `write_mask`."""
    palette = voc_palette() if palette is None else palette
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"{where}: expected a uint8 [H, W] mask, got {mask.dtype} {list(mask.shape)}")
    if palette.dtype != np.uint8 or palette.shape != (256, 3):
        raise ValueError(f"{where}: expected a uint8 [256, 3] palette, got {palette.dtype} {list(palette.shape)}")
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(palette.tobytes())
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def write_labelmap(path: str | Path, classes: Sequence[str], palette: np.ndarray | None = None) -> None:
    """Write `labelmap.txt`: `name:r,g,b::` a line, background first, so that the line number gives the mask value.

    Args:
        path: where to.
        classes: the K foreground class names.
        palette: uint8 [256, 3]; None = VOC's.

    Raises:
        DataError: for more than 254 classes.
    """
    check_class_count(classes, str(path))
    atomic_write_text(path, labelmap_text(classes, palette))


def labelmap_text(classes: Sequence[str], palette: np.ndarray | None = None) -> str:
    """What `write_labelmap` writes."""
    palette = voc_palette() if palette is None else palette
    rows = [f"{name}:{','.join(map(str, palette[value]))}::" for value, name in enumerate(("background", *classes))]
    return "\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n"


def read_labelmap(path: str | Path) -> tuple[str, ...]:
    """The foreground class names of a `labelmap.txt`, in the order of its lines. Raises as `read_labelmap_file`."""
    return read_labelmap_file(path).classes


def read_classes(path: str | Path) -> tuple[str, ...]:
    """The foreground class names of a `classes.txt`, one a line in the order of mask values 1..K.

    Raises:
        DataError: if the file is missing or empty, a name comes twice or is background, or there are more than 254.
    """
    lines = read_lines(Path(path), "a list of class names")
    first_line: dict[str, int] = {}
    for number, name in lines:
        if name in first_line:
            raise DataError(f"{path}, line {number}: class {name!r} is already on line {first_line[name]}; remove one")
        if name == "background":
            raise DataError(f"{path}, line {number}: background is mask value 0 without being listed; remove the line")
        first_line[name] = number
    if not first_line:
        raise DataError(f"{path}: no class names; expected one a line")
    check_class_count(tuple(first_line), str(path))
    return tuple(first_line)


def check_class_count(classes: Sequence[str], where: str) -> None:
    """Raise DataError, beginning with `where`, if there are more classes than a mask can hold."""
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{where}: {len(classes)} classes, at most {MAX_CLASSES} fit in an 8-bit mask (0 is background, 255 void); "
            "merge or drop classes"
        )
