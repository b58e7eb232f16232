"""`open_source`: from what a user types behind --data to a source."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cpn_fast.data.sources import cvat, datumaro, imagefolder, json_map, label_studio, roboflow, shards, voc_files, yolo
from cpn_fast.data.sources.classes import ClassFolderSource
from cpn_fast.data.sources.coco import CocoSource
from cpn_fast.data.sources.export import Export, ExportSource
from cpn_fast.data.sources.folder import FolderSource
from cpn_fast.data.sources.recognise import (
    LOOKED_FOR,
    coco_elsewhere,
    coco_reader,
    export_path,
    kinds_of,
    voc_elsewhere,
)
from cpn_fast.data.sources.voc import VocSource
from cpn_fast.data.types import Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS

log = logging.getLogger(__name__)

SOURCES: dict[str, Callable[[Path, str, int], Source]] = {
    "voc": VocSource, "folder": FolderSource, "classes": ClassFolderSource, "coco": CocoSource,
}  # fmt: skip
"""Kind -> what opens a path; the text that a user typed; the largest image in pixels."""

EXPORTS: dict[str, Callable[[Path], Export]] = {
    "yolo": yolo.read, "roboflow": roboflow.read, "cvat": cvat.read, "label-studio": label_studio.read,
    "datumaro": datumaro.read, "json": json_map.read, "hf": imagefolder.read,
}  # fmt: skip
"""Kind -> what reads the export of a path."""

KINDS = (*SOURCES, *EXPORTS, *shards.SUFFIXES, "demo")


def open_source(spec: str | Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> Source:
    """Open `KIND:PATH` (of shards `KIND:PATTERN`) for one of `KINDS`, or a bare path by what is in it.

    Args:
        spec: the source.
        max_pixels: largest image that is read.

    Raises:
        DataError: if there is nothing there, nothing that is recognised, or several kinds fit; it says what was looked
            for.
    """
    text = str(spec)
    if not text.strip():
        kinds = ", ".join(f"{kind}:PATH" for kind in KINDS)
        raise DataError(f"data {text!r}: names nothing; expected a path or one of {kinds}")
    kind, colon, rest = text.partition(":")
    if not colon or kind not in KINDS:
        kind, rest = _recognised(text), text
    if kind != "demo" and not rest:
        raise DataError(f"{text}: no path behind `{kind}:`; expected `{kind}:PATH`")
    if kind == "demo":
        from cpn_fast.data.sources.demo import DemoSource

        return DemoSource(Path(rest).expanduser() if rest else None)
    if kind in shards.SUFFIXES:
        return shards.ShardSource(kind, rest, f"{kind}:{rest}", max_pixels)
    path = Path(rest).expanduser()
    if not path.exists():
        raise DataError(f"{text}: no such file or folder: {path}")
    return _open(kind, path, f"{kind}:{rest}", max_pixels)


def _open(kind: str, path: Path, spec: str, max_pixels: int) -> Source:
    if kind in EXPORTS or (kind == "coco" and coco_elsewhere(path)):
        read = EXPORTS.get(kind) or coco_reader(path)
        return ExportSource(export_path(kind, path), read, spec, max_pixels)
    if kind == "voc" and voc_elsewhere(path):
        return ExportSource(path, voc_files.read, spec, max_pixels)
    return SOURCES[kind](path, spec, max_pixels)


def _recognised(text: str) -> str:
    """The only kind that fits a bare path.

    Raises:
        DataError: if there is nothing there, or none or several fit.
    """
    path = Path(text).expanduser()
    if not path.exists():
        known = ", ".join(f"{kind}:PATH" for kind in KINDS)
        raise DataError(f"{text}: no such file or folder; expected a path or one of {known}")
    found = kinds_of(path)
    if len(found) > 1:
        named = " or ".join(f"{kind}:{text} ({why})" for kind, why in found.items())
        raise DataError(f"{text}: could be of several kinds; name the one that is meant: {named}")
    if not found and path.is_file():
        raise DataError(
            f"{text}: a file that is no CSV, spreadsheet, or export of a known tool; expected a folder, a CSV of image "
            "labels (image,labels), or KIND:PATH"
        )
    if not found:
        raise DataError(
            f"{text}: not recognised as a data set: looked for {LOOKED_FOR}, and found none; name the kind, e.g. "
            "voc:PATH, or give another path"
        )
    return next(iter(found))


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
