"""Bare photographs, named one by one or by folder, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpn_fast.data.sources.base import FileSource, Scan
from cpn_fast.data.types import Record
from cpn_fast.files.images import DEFAULT_MAX_PIXELS
from cpn_fast.files.photos import find_photos

ALL = "all"


class PhotoSource(FileSource):
    """Image files and folders of them. No classes, no labels, one split `all`; ids as `files.photos.Photo` has them.

    Args:
        paths: files and folders.
        max_pixels: largest image that is read.

    Raises:
        DataError: if a path does not exist, there is no image, or two images would have one id.
    """

    def __init__(self, paths: Sequence[Path], max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        shown = ", ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")
        super().__init__(shown, Path(), max_pixels)
        self._paths = tuple(paths)
        self._records = tuple(Record(photo.id, photo.path, None) for photo in find_photos(paths))

    @property
    def classes(self) -> tuple[str, ...]:
        """None are known."""
        return ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """What was given."""
        return self._paths

    def splits(self) -> tuple[str, ...]:
        """`all`."""
        return (ALL,)

    def _scan(self, split: str) -> Scan:
        del split
        return Scan(self._records)
