"""`open_source`: from what a user types behind --data to a source."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cpn_fast.data.types import Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS
from cpn_fast.files.table import TABLE_SUFFIXES

log = logging.getLogger(__name__)

KINDS = ("voc", "folder", "classes", "coco", "demo")


def open_source(spec: str | Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> Source:
    """Open `voc:PATH`, `folder:PATH`, `classes:PATH`, `coco:PATH`, `demo:[PATH]`, or a bare path by what is in it.

    Args:
        spec: the source.
        max_pixels: largest image that is read.

    Raises:
        DataError: if there is nothing there, or nothing that is recognised; it says what was looked for.
    """
    text = str(spec)
    kind, colon, rest = text.partition(":")
    if not colon or kind not in KINDS:
        kind, rest = _recognise(text), text
    if kind != "demo" and not rest:
        raise DataError(f"{text}: no path behind `{kind}:`; expected `{kind}:PATH`")
    if kind == "demo":
        from cpn_fast.data.sources.demo import DemoSource

        return DemoSource(Path(rest).expanduser() if rest else None)
    path = Path(rest).expanduser()
    if not path.exists():
        raise DataError(f"{text}: no such file or folder: {path}")
    full = f"{kind}:{rest}"
    if kind == "voc":
        from cpn_fast.data.sources.voc import VocSource

        return VocSource(path, full, max_pixels)
    if kind == "coco":
        from cpn_fast.data.sources.coco import CocoSource

        return CocoSource(path, full, max_pixels)
    if kind == "classes":
        from cpn_fast.data.sources.classes import ClassFolderSource

        return ClassFolderSource(path, full, max_pixels)
    from cpn_fast.data.sources.folder import FolderSource

    return FolderSource(path, full, max_pixels)


def open_source_for(spec: str | Path, classes: Sequence[str], max_pixels: int = DEFAULT_MAX_PIXELS) -> Source:
    """Open a source as `open_source` does, for a network that is to label it.

    Photographs are sorted into folders by date or place as well: a bare path whose folders look like classes, but whose
    names the network does not know, holds images without labels.

    Args:
        spec: the source.
        classes: what the network knows.
        max_pixels: largest image that is read.

    Raises:
        DataError: as `open_source`.
    """
    source = open_source(spec, max_pixels)
    named = str(spec).partition(":")[0] in KINDS
    if named or not source.spec.startswith("classes:") or set(source.classes) & set(classes):
        return source
    log.info("%s: its folders' names are no classes of the network; taken as images without labels", spec)
    return open_source(f"folder:{spec}", max_pixels)


def _recognise(text: str) -> str:
    path = Path(text).expanduser()
    if not path.exists():
        raise DataError(
            f"{text}: no such file or folder; expected a path or one of {', '.join(f'{k}:PATH' for k in KINDS)}"
        )
    if path.is_file():
        if path.suffix.lower() in TABLE_SUFFIXES:
            return "folder"
        raise DataError(f"{text}: a file that is no CSV; expected a folder or a CSV of image labels (image,labels)")
    roots = (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012")
    if any((root / "JPEGImages").is_dir() and (root / "ImageSets").is_dir() for root in roots):
        return "voc"
    if any(path.glob("annotations/instances_*.json")):
        return "coco"
    from cpn_fast.data.sources.classes import class_folders
    from cpn_fast.data.sources.folder import find_table
    from cpn_fast.files.images import list_images

    if find_table(path):
        return "folder"
    if class_folders(path):
        return "classes"
    if list_images(path):
        return "folder"
    raise DataError(
        f"{text}: not recognised as a data set: looked for JPEGImages and ImageSets (voc), "
        "annotations/instances_*.json (coco), a CSV with image,labels, folders of images (classes), or any image file "
        "(folder), and found none; "
        "name the kind, e.g. voc:PATH, or give another path"
    )
