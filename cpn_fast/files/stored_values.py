"""The numbers that a one-channel image file holds, where Pillow scales or inverts them for the eye."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpn_fast.files.errors import DataError

_GREY = re.compile(r"(?P<kind>1|L)(;(?P<bits>\d?)(?P<inverted>I?)R?)?")
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_BMP_BITS_OFFSET = 28


def stored_values(image: Image.Image, where: str) -> NDArray[np.uint8] | None:
    """The numbers in the file, before anything is done to them that makes a picture of them.

    Pillow stretches grey of 2 and 4 bits, and PGM of any maximum, to 0..255, and inverts TIFF and PBM that store white
    as 0. A mask's values are indices: 3 has to stay 3.

    Args:
        image: opened, not loaded yet.
        where: begins the errors.

    Returns:
        uint8 [H, W] as stored (not turned upright); None for an image of several channels.

    Raises:
        DataError: for numbers that are no integers in 0..255, or that the file does not keep exactly (JPEG).
    """
    if image.format in ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF"):
        kind = image.format.replace("MPO", "JPEG")
        raise DataError(f"{where}: a {kind} does not keep the values of a mask exactly; save the mask as PNG")
    if image.mode not in ("P", "L", "1", *_WIDE):
        return None
    undo = _undo(image, where)
    image.load()
    values = undo(np.asarray(image))
    if values.dtype != np.uint8:
        outside = values[~((values >= 0) & (values <= 255) & (values == np.floor(values)))]
        if outside.size:
            raise DataError(f"{where}: a mask with the value {outside.flat[0]}; expected class indices 0..255")
    return values.astype(np.uint8)


def _undo(image: Image.Image, where: str) -> Any:
    """What takes the decoded array back to the stored numbers; looks at the decoder's arguments, gone after loading."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    raw = arguments if isinstance(arguments, str) else arguments[0]
    if image.format in ("BMP", "DIB"):
        _check_bmp(image, where)
    if image.format == "PPM" and image.mode in ("L", "I") and not isinstance(arguments, str) and len(arguments) == 2:
        maximum, stretched = int(arguments[1]), 255 if image.mode == "L" else 65535
        return lambda values: np.rint(values.astype(np.float64) * maximum / stretched).astype(np.int64)
    grey = _GREY.fullmatch(raw) if image.mode in ("1", "L") and isinstance(raw, str) else None
    bits = 1 if image.mode == "1" else int((grey and grey["bits"]) or 8)
    top = 2**bits - 1
    step = 1 if image.mode == "1" else 255 // top
    inverted = bool(grey and grey["inverted"])

    def undo(values: NDArray[Any]) -> NDArray[Any]:
        plain = values.astype(np.uint8) // np.uint8(step) if image.mode in ("1", "L") else values
        return np.uint8(top) - plain if inverted else plain

    return undo


def _check_bmp(image: Any, where: str) -> None:
    """Refuse what Pillow decodes wrongly: a grey palette of 16 colours, whose half bytes it takes for bytes."""
    if image.mode not in ("1", "L") or image.tile[0][0] != "raw":
        return
    file = image.fp
    place = file.tell()
    file.seek(_BMP_BITS_OFFSET)
    bits = int.from_bytes(file.read(2), "little")
    file.seek(place)
    if bits != (1 if image.mode == "1" else 8):
        raise DataError(f"{where}: a BMP of {bits} bits with a grey palette cannot be read; save the mask as PNG")
