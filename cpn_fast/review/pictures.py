"""The two small pictures of a mask: the photograph, and the mask as a picture that is laid over it."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cpn_fast.files.disk_space import FILE_BYTES
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import open_image, upright_pixels
from cpn_fast.files.jobs import Entry, ImageJobs, error_entry
from cpn_fast.files.member import ImageFile
from cpn_fast.files.output_folder import raise_io_errors_as
from cpn_fast.files.regular import is_regular
from cpn_fast.files.review_csv import mask_version
from cpn_fast.review.items import ReviewItem

PHOTO, MASK = ".jpg", ".webp"
"""Endings of the pictures. No PNG: a folder of masks is known by these."""

_FILL = 185
_BYTES_PER_PIXEL = 0.5


def photo_bytes(path: ImageFile, side: int) -> bytes:
    """A photograph as a JPEG of which the long side is at most `side` pixels. Raises DataError."""
    with open_image(path) as image:
        image.draft("RGB", (2 * side, 2 * side))  # a JPEG is then decoded at a half, a quarter, ... of its size
        picture = Image.fromarray(upright_pixels(image, str(path)))
    picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return _encoded(picture, "JPEG", quality=82)


def mask_bytes(mask: NDArray[np.uint8], palette: NDArray[np.uint8], side: int) -> bytes:
    """A mask as a WebP that is clear where there is background, with a stronger line along the objects' edges.

    Args:
        mask: uint8 [H, W], 0 background.
        palette: uint8 [256, 3].
        side: long side of the picture at most.
    """
    height, width = mask.shape
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # Drawn at twice the size and then reduced, so that edges are smooth and thin parts stay.
    drawn = np.asarray(Image.fromarray(mask).resize((2 * size[0], 2 * size[1]), Image.Resampling.NEAREST))
    edge = np.zeros(drawn.shape, dtype=bool)
    for shift in (1, 2):
        edge[shift:] |= drawn[shift:] != drawn[:-shift]
        edge[:-shift] |= drawn[:-shift] != drawn[shift:]
        edge[:, shift:] |= drawn[:, shift:] != drawn[:, :-shift]
        edge[:, :-shift] |= drawn[:, :-shift] != drawn[:, shift:]
    alpha = np.where(drawn == 0, 0, np.where(edge, 255, _FILL)).astype(np.uint8)
    picture = Image.fromarray(np.dstack([palette[drawn], alpha])).resize(size, Image.Resampling.BOX)
    return _encoded(picture, "WEBP", quality=85, method=2)


@dataclass(frozen=True, kw_only=True)
class PictureJobs(ImageJobs[ReviewItem, ReviewItem]):
    """Every mask looked at, and its small pictures made.

    Attributes:
        palette: uint8 [256, 3], the colours.
        side: long side of the pictures in pixels.
        with_pictures: make them now; a page that is served makes each when it is asked for.
    """

    palette: NDArray[np.uint8]
    side: int
    with_pictures: bool = True

    verb: ClassVar[str] = "look at"
    participle: ClassVar[str] = "looked at"
    results: ClassVar[str] = "small pictures"

    def id_of(self, item: ReviewItem) -> str:
        """The mask's id."""
        return item.id

    def is_done(self, item: ReviewItem, entry: Mapping[str, Any]) -> bool:
        """Whether mask and image are those of then, and the pictures there where they are to be."""
        if entry.get("files") != _files(item):
            return False
        return not self.with_pictures or all(
            _holds_something(self.output / f"{item.key}{ending}") for ending in endings(item)
        )

    def bytes_needed(self, todo: Sequence[ReviewItem]) -> float:
        """Of pictures of their largest size."""
        pixels = self.side**2 if self.with_pictures else 0
        return len(todo) * (pixels * _BYTES_PER_PIXEL + FILE_BYTES)

    def work(self, item: ReviewItem) -> Entry:
        """Read the mask, and write the pictures."""
        files = _files(item)
        try:
            mask = item.read()
            pictures = self._made(item, mask) if self.with_pictures else {}
        except DataError as error:
            return error_entry(item.id, item.image or item.mask.mask_path, str(error))
        with raise_io_errors_as(self.output, "the small pictures"):
            for ending in (MASK, PHOTO):
                path = self.output / f"{item.key}{ending}"
                if ending in pictures:
                    write_picture(path, pictures[ending])
                else:
                    path.unlink(missing_ok=True)  # of another version
        held = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        return {
            "id": item.id,
            "status": "ok",
            "files": files,
            "version": mask_version(item.mask.mask_path),
            "values": [int(value) for value in held if value > 0],
        }

    def _made(self, item: ReviewItem, mask: NDArray[np.uint8]) -> dict[str, bytes]:
        made = {MASK: mask_bytes(mask, self.palette, self.side)}
        if item.image is not None:
            made[PHOTO] = photo_bytes(item.image, self.side)
        return made


def endings(item: ReviewItem) -> tuple[str, ...]:
    """Which pictures an item has."""
    return (MASK,) if item.image is None else (MASK, PHOTO)


def picture_of(item: ReviewItem, ending: str, palette: NDArray[np.uint8], side: int) -> bytes:
    """One of an item's pictures. Raises DataError where mask or image cannot be read."""
    if ending == MASK:
        return mask_bytes(item.read(), palette, side)
    if item.image is None:
        raise DataError(f"{item.id}: its image was not found; give --data SOURCE")
    return photo_bytes(item.image, side)


def kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of a picture, made and written where it is not there yet. Raises DataError, OSError."""
    if _holds_something(path):
        return path.read_bytes()
    data = make()
    write_picture(path, data)
    return data


def write_picture(path: Path, data: bytes) -> None:
    """Write a picture in one step, without waiting for the disk: one that a power cut empties is made again."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _files(item: ReviewItem) -> list[list[Any] | None]:
    """Of mask and image what tells two versions of a file apart: path, size, time."""
    return [_about(item.mask.mask_path), None if item.image is None else _about(item.image)]


def _about(path: ImageFile) -> list[Any] | None:
    if not isinstance(path, Path):
        return [str(path)]  # in a shard, which nobody changes
    try:
        status = path.stat()
    except OSError:
        return None
    return [str(path), status.st_size, status.st_mtime_ns]


def _holds_something(path: Path) -> bool:
    return is_regular(path) and path.stat().st_size > 0


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    data = io.BytesIO()
    picture.save(data, format=kind, **options)
    return data.getvalue()
