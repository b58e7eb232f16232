"""Names of splits: which ones commands take by themselves, and what other names are likely to mean."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
"""A split by its name in lower case."""

TAKEN = ("train", "val", "test")
"""Names that commands take unasked (train, val), or that are held back by custom (test)."""


def unusual_splits(images: Mapping[str, int], table: Path) -> tuple[str, ...]:
    """Notes on the values of a split column that no command takes unless it is named, with the likely meaning.

    Args:
        images: number of images by value.
        table: the file with the column.
    """
    notes = []
    for name, count in sorted(images.items()):
        if name in TAKEN:
            continue
        near = get_close_matches(name.lower(), SPLIT_NAMES, n=1, cutoff=0.7)
        hint = f"did you mean {SPLIT_NAMES[near[0]]!r}?" if near else "expected train, val or test"
        notes.append(f"{table}: {count} images are of split {name!r}, which is used only by --split {name}; {hint}")
    if images and "train" not in images:
        notes.append(f"{table}: no image is of split 'train', which trainings take unless --split names another")
    return tuple(notes)
