"""Folders of masks as they are found: where the PNGs lie, and what their values mean."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import read_labelmap


def find_masks(target: Path) -> Path | None:
    """The folder that holds ID.png: `target/SegmentationClass` or `target`; None where neither holds a PNG."""
    for folder in (target / MASK_FOLDER, target):
        if folder.is_dir() and next(folder.rglob("*.png"), None) is not None:
            return folder
    return None


def classes_of(folder: Path) -> tuple[str, ...] | None:
    """The foreground classes of mask values 1..K by the `labelmap.txt` in or beside a folder of masks.

    Args:
        folder: what `find_masks` gave.

    Returns:
        their names, None without a labelmap.

    Raises:
        DataError: if the labelmap cannot be read.
    """
    places = [folder, folder.parent] if folder.name == MASK_FOLDER else [folder]
    return next((read_labelmap(place / "labelmap.txt") for place in places if (place / "labelmap.txt").is_file()), None)


MASK_FOLDER = "SegmentationClass"


SOFT_FOLDER = "SoftMaps"


def mask_path(output: Path, image_id: str) -> Path:
    """Where the mask of an image lies; an id with slashes makes sub-folders. Raises DataError if it leads out."""
    return _inside(output / MASK_FOLDER, image_id, ".png")


def soft_path(output: Path, image_id: str) -> Path:
    """Where the soft maps of an image lie."""
    return _inside(output / SOFT_FOLDER, image_id, ".npz")


def _inside(folder: Path, image_id: str, suffix: str) -> Path:
    relative = PurePosixPath(image_id)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise DataError(f"image id {image_id!r} leads out of the output folder; rename the image or its list entry")
    return folder / f"{image_id}{suffix}"
