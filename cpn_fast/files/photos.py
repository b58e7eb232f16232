"""Bare photographs: image files and folders of them, as a user names them on a command line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.images import list_images
from cpn_fast.files.label_rows import LabelRow
from cpn_fast.files.labels_csv import LabelTable, read_label_table
from cpn_fast.files.member import ImageFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photo:
    """One image.

    Attributes:
        id: path relative to the folder, or file name, without suffix; the mask is `SegmentationClass/ID.png`.
        path: the image file, or the member of a shard.
        names: under which a label file may list it, the most exact first.
        labels: class indices 0..K-1; None where no label is known.
    """

    id: str
    path: ImageFile
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None


def find_photos(paths: Sequence[Path]) -> list[Photo]:
    """All images of the given folders (recursively, by suffix) and files (whatever their suffix), sorted by id.

    Hidden files and folders do not count, as nowhere in this project: their masks would be hidden too.

    Raises:
        DataError: if a path does not exist, nothing is found, or two images would have one id.
    """
    photos: dict[str, Photo] = {}
    for path in paths:
        for photo in _photos_of(path):
            other = photos.setdefault(photo.id, photo)
            if other.path != photo.path:
                raise DataError(
                    f"{photo.path} and {other.path} would both be written as {photo.id}.png; rename one, or label them "
                    "into two folders"
                )
    if not photos:
        raise DataError(f"{', '.join(map(str, paths))}: no images (by suffix, hidden files do not count) found")
    return [photos[key] for key in sorted(photos)]


def count_other_files(paths: Sequence[Path]) -> int:
    """How many of the files that were given, or are in the given folders at any depth, are hidden or no images."""
    folders = [path for path in paths if path.is_dir()]
    every = sum(sum(file.is_file() for file in folder.rglob("*")) for folder in folders)
    hidden = sum(path.name.startswith(".") for path in paths if not path.is_dir())
    return max(0, every - sum(len(list_images(folder)) for folder in folders)) + hidden


def default_output(paths: Sequence[Path]) -> Path:
    """Where masks go when nobody says: `NAME-masks` in the current folder, by the first of the images or folders."""
    first = paths[0].resolve()
    return Path(f"{first.name if first.is_dir() else first.stem}-masks")


def _photos_of(path: Path) -> list[Photo]:
    if path.is_dir():
        found = []
        for image in list_images(path):
            relative = image.relative_to(path)
            names = (relative.as_posix(), f"{path.resolve().name}/{relative.as_posix()}")
            found.append(Photo(relative.with_suffix("").as_posix(), image, names))
        return found
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected images")
    return [] if path.name.startswith(".") else [Photo(path.stem, path, (path.as_posix(), path.name))]


def with_labels(photos: Sequence[Photo], path: Path, classes: Sequence[str]) -> list[Photo]:
    """Give every image its labels from a CSV `image,labels`; images that it does not list keep None.

    Rows without an image are named in a warning: a shard or a part of a data set may well leave rows over.

    Args:
        photos: the images.
        path: the CSV; images by path relative to the folder, or by file name, with or without suffix.
        classes: the K class names of the model.

    Raises:
        DataError: with file and line, for a line that cannot be used, e.g. an unknown class; or if no row at all
            names one of the images.
    """
    table = read_label_table(path, classes)
    if table.errors:
        line, message = table.errors[0]
        more = f" ({len(table.errors) - 1} more lines cannot be used)" if len(table.errors) > 1 else ""
        raise DataError(f"{path}, line {line}: {message}{more}")
    rows = [_row_of(photo, table) for photo in photos]
    used = {row.line for row in rows if row is not None}
    if not used:
        raise DataError(
            f"{path}: none of its {len(table.rows)} rows names one of the {len(photos)} images; expected paths "
            f"relative to the folder, such as {photos[0].names[0]!r}"
        )
    unused = [row for row in table.rows if row.line not in used]
    if unused:
        examples = ", ".join(f"{row.image!r} (line {row.line})" for row in unused[:3])
        log.warning("%s: %d rows name no image that was given: %s ...", path, len(unused), examples)
    return [
        photo if row is None else replace(photo, labels=row.labels) for photo, row in zip(photos, rows, strict=True)
    ]


def _row_of(photo: Photo, table: LabelTable) -> LabelRow | None:
    return next((row for row in map(table.find, photo.names) if row is not None), None)
