"""The table of formats: what writes and what reads each, and how an export is recognised."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cpn_fast.convert.coco import CocoWriter, open_coco
from cpn_fast.convert.cvat import CvatWriter
from cpn_fast.convert.datumaro import ANNOTATIONS, DatumaroWriter, open_datumaro
from cpn_fast.convert.export import Export, ReadOptions
from cpn_fast.convert.geojson import SUFFIX, GeoJsonWriter, open_geojson
from cpn_fast.convert.hf import METADATA, HfWriter, open_hf
from cpn_fast.convert.label_studio import LabelStudioWriter, open_label_studio
from cpn_fast.convert.voc import RgbWriter, VocWriter, open_voc
from cpn_fast.convert.writer import Writer
from cpn_fast.convert.yolo_seg import DATA_NAME, YoloWriter, open_yolo
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.json_file import read_json
from cpn_fast.files.mask_folder import LABELMAP_NAME, MASK_FOLDER

FormatName = Literal["coco", "cvat", "yolo-seg", "label-studio", "voc", "png-rgb", "geojson", "datumaro", "hf"]


@dataclass(frozen=True)
class Format:
    """How a format is written and read.

    Attributes:
        writer: writes it.
        open: reads it.
    """

    writer: type[Writer[Any]]
    open: Callable[[Path, ReadOptions], Export]


FORMATS: dict[FormatName, Format] = {
    "coco": Format(CocoWriter, open_coco),
    "cvat": Format(CvatWriter, open_voc),
    "yolo-seg": Format(YoloWriter, open_yolo),
    "label-studio": Format(LabelStudioWriter, open_label_studio),
    "voc": Format(VocWriter, open_voc),
    "png-rgb": Format(RgbWriter, open_voc),
    "geojson": Format(GeoJsonWriter, open_geojson),
    "datumaro": Format(DatumaroWriter, open_datumaro),
    "hf": Format(HfWriter, open_hf),
}


def open_export(path: Path, name: FormatName | None, options: ReadOptions) -> Export:
    """Read what a tool exported.

    Args:
        path: a file, or a folder (an unpacked zip).
        name: the format; None = recognised by its files.
        options: what is known beside it.

    Raises:
        DataError: if it is of no format that is known, or not what its format says.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected what a tool exported")
    if path.is_dir() and not any(path.iterdir()):
        raise DataError(f"{path}: an empty folder; expected what a tool exported")
    name = name or (_of_folder(path) if path.is_dir() else _of_file(path))
    if name == "coco" and path.is_dir():
        path = _only_json(path)
    return FORMATS[name].open(path, options)


def _of_folder(path: Path) -> FormatName:
    if (path / DATA_NAME).is_file():
        return "yolo-seg"
    if (path / MASK_FOLDER).is_dir() or (path / LABELMAP_NAME).is_file():
        return "voc"
    if next(path.rglob(METADATA), None) is not None:
        return "hf"
    if next(path.rglob(f"*{SUFFIX}"), None) is not None:
        return "geojson"
    files = sorted((path / ANNOTATIONS).glob("*.json")) or sorted(path.glob("*.json"))
    if files:
        return _of_file(files[0])
    if find_masks(path) is not None:
        return "voc"
    if (path / "annotations.xml").is_file():
        raise DataError(f'{path}: "CVAT for images", which is not read as masks; export as "Segmentation mask 1.1"')
    raise DataError(
        f"{path}: not known as an export; expected one of {', '.join(FORMATS)}: say which with --format, or give the "
        "folder that holds its files"
    )


def _of_file(path: Path) -> FormatName:
    content = read_json(path, "an export in JSON, or a zip")
    if isinstance(content, list):
        return "geojson" if content and isinstance(content[0], dict) and "geometry" in content[0] else "label-studio"
    keys: set[str] = set(content) if isinstance(content, dict) else set()
    if {"images", "annotations", "categories"} <= keys:
        return "coco"
    if {"categories", "items"} <= keys:
        return "datumaro"
    if "features" in keys:
        return "geojson"
    raise DataError(f"{path}: JSON with the keys {json.dumps(sorted(keys))[:100]}; expected an export of masks")


def _only_json(path: Path) -> Path:
    files = sorted((path / ANNOTATIONS).glob("*.json")) or sorted(path.glob("*.json"))
    if len(files) != 1:
        raise DataError(f"{path}: {len(files)} JSON files; give the one to convert")
    return files[0]
