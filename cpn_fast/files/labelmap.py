"""`labelmap.txt` as CVAT and we write it: the classes of a folder of masks, and their colours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpn_fast.files.errors import DataError
from cpn_fast.files.names import class_fault, quoted
from cpn_fast.files.palette import voc_palette
from cpn_fast.files.text import read_lines

BACKGROUND = "background"
VOID, VOID_COLOUR = 255, (224, 224, 192)

_COLOUR = re.compile(r"(\d{1,3}),(\d{1,3}),(\d{1,3})")


@dataclass(frozen=True)
class Labelmap:
    """What the masks of a folder mean.

    Attributes:
        classes: the K foreground class names, in the order of the lines.
        line_values: the mask value of each line: 0 for background, wherever it stands, 255 for a line of VOC's colour
            for void, and 1..K for the others.
        colour_values: colour -> mask value; colours of several lines are missing.
    """

    classes: tuple[str, ...]
    line_values: tuple[int, ...]
    colour_values: Mapping[tuple[int, ...], int]

    def class_values(self, stored: NDArray[np.uint8], image: Image.Image) -> NDArray[np.uint8]:
        """The values of a one-channel mask, which may number the lines, or have colours of its own.

        Args:
            stored: uint8 [H, W], the numbers in the file.
            image: the file as Pillow opened it.

        Returns:
            uint8 [H, W], 0 background, 1..K classes, 255 void. Of a palette image whose colours in use are all the
            labelmap's the colours decide; of any other the numbers are those of the lines, counted from 0.
        """
        used = np.flatnonzero(np.bincount(stored.ravel(), minlength=256)).tolist()
        table = np.arange(256, dtype=np.uint8)
        table[: len(self.line_values)] = self.line_values
        palette = image.getpalette("RGB") if image.mode == "P" else None
        if palette is not None:
            found = [self._value(tuple(palette[3 * index : 3 * index + 3])) for index in used]
            known = [value for value in found if value is not None]
            if len(known) == len(used):
                table[used] = known
        return table[stored]

    def _value(self, colour: tuple[int, ...]) -> int | None:
        """The mask value of a colour, None where it is no class's alone."""
        return VOID if colour == VOID_COLOUR else self.colour_values.get(colour)

    def values_of_colours(self, image: Image.Image, where: str) -> NDArray[np.uint8]:
        """The values of a mask in colours, as CVAT exports it; VOC's colour for void is void.

        Args:
            image: RGB, or RGBA without transparency.
            where: begins the error.

        Returns:
            uint8 [H, W], 0 background, 1..K classes, 255 void.

        Raises:
            DataError: for a colour that is no class's, or an image that is neither.
        """
        pixels = np.asarray(image)
        if image.mode not in ("RGB", "RGBA") or (pixels.shape[2] == 4 and not (pixels[..., 3] == 255).all()):
            raise DataError(f"{where}: a mask of mode {image.mode!r}; expected the colours of labelmap.txt as RGB")
        packed = pixels[..., :3].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        colours, inverse = np.unique(packed, return_inverse=True)
        values = np.zeros(len(colours), np.uint8)
        for index, number in enumerate(colours.tolist()):
            colour = (number >> 16, number >> 8 & 255, number & 255)
            value = self._value(colour)
            if value is None:
                known = ", ".join(f"{name} {each}" for each, name in self._names()[:10])
                raise DataError(
                    f"{where}: the colour {colour} is no class's alone in labelmap.txt; expected one of {known}, or "
                    f"{VOID_COLOUR} for void; masks must not be blended or resized smoothly"
                )
            values[index] = value
        return values[inverse.reshape(packed.shape)]

    def _names(self) -> list[tuple[tuple[int, ...], str]]:
        names = (BACKGROUND, *self.classes)
        return [(colour, names[value]) for colour, value in self.colour_values.items()]


def read_labelmap_file(path: str | Path) -> Labelmap:
    """Read a `labelmap.txt`: `name:r,g,b::` a line, in any order, background among them.

    A line in VOC's colour for void, (224, 224, 192), is void and no class. Where no line has a colour, they are VOC's.

    Raises:
        DataError: if the file is missing, a line is not of that form, a name comes twice or cannot be a class, or there
            is no background.
    """
    path = Path(path)
    names: list[str] = []
    colours: list[tuple[int, ...] | None] = []
    for number, line in read_lines(path, "a labelmap"):
        if line.startswith("#"):
            continue
        parts = line.rsplit(":", 3)  # from the right: a class name may hold a colon
        colour = _COLOUR.fullmatch(parts[1].replace(" ", "")) if len(parts) == 4 and parts[1] else None
        if len(parts) != 4 or (parts[1] and (colour is None or max(map(int, colour.groups())) > 255)):
            raise DataError(f"{path}, line {number}: found {quoted(line)}, expected `name:r,g,b::`")
        if fault := class_fault(parts[0]):
            raise DataError(f"{path}, line {number}: the name {quoted(parts[0])} {fault}")
        if parts[0] in names:
            raise DataError(f"{path}, line {number}: {quoted(parts[0])} comes twice; remove one line")
        names.append(parts[0])
        colours.append((int(colour[1]), int(colour[2]), int(colour[3])) if colour else None)
    if not any(colours):  # Datumaro leaves them out, and colours the masks as VOC does
        colours = [tuple(map(int, colour)) for colour in voc_palette()[: len(names)]]
    if BACKGROUND not in names:
        raise DataError(f"{path}: none of its {len(names)} labels is called background (mask value 0); add one")
    if len(names) > 255:
        raise DataError(f"{path}: {len(names)} labels, at most 255 fit in an 8-bit mask")
    void = {name for name, colour in zip(names, colours, strict=True) if colour == VOID_COLOUR} - {BACKGROUND}
    classes = [name for name in names if name != BACKGROUND and name not in void]
    value_of = (
        {name: value for value, name in enumerate(classes, start=1)} | dict.fromkeys(void, VOID) | {BACKGROUND: 0}
    )
    values = [value_of[name] for name in names]
    alone = {colour: value for colour, value in zip(colours, values, strict=True) if colour and value != VOID}
    known = {colour: value for colour, value in alone.items() if colours.count(colour) == 1}
    return Labelmap(tuple(classes), tuple(values), known)


def labelmap_of(path: Path) -> Labelmap | None:
    """The labelmap at a path, None without; read again where it has changed. Raises DataError for a bad one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _remembered(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=16)
def _remembered(path: Path, changed: int, size: int, inode: int) -> Labelmap:
    del changed, size, inode
    return read_labelmap_file(path)
