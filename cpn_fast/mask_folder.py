"""Folders of masks as they are found: where the PNGs lie, and what their values mean."""

from __future__ import annotations

from pathlib import Path

from cpn_fast.files.masks import read_labelmap
from cpn_fast.mask_writer import MASK_FOLDER


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
