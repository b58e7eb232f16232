"""Which kind of data set a path is, by the files in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpn_fast.data.sources import (
    coco_export,
    cvat,
    datumaro,
    imagefolder,
    json_map,
    label_studio,
    roboflow,
    shards,
    voc_files,
    yolo,
)
from cpn_fast.data.sources.classes import class_folders
from cpn_fast.data.sources.export import Export
from cpn_fast.data.sources.folder import find_table
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import list_images
from cpn_fast.files.json_file import read_json
from cpn_fast.files.regular import is_regular
from cpn_fast.files.table import TABLE_SUFFIXES

LOOKED_FOR = (
    "JPEGImages and ImageSets, or an XML for each image (voc), annotations/instances_*.json (coco), a CSV with "
    "image,labels (folder), data.yaml or labels/*.txt (yolo), _classes.csv or _annotations.coco.json (roboflow), "
    "annotations.xml or labelmap.txt with SegmentationClass (cvat), a JSON of labels (label-studio, datumaro, coco, "
    "json), metadata.jsonl or metadata.csv (hf), folders of images (classes), any image file (folder), *.tar (wds), "
    "*.parquet (parquet)"
)

_COCO_KEYS = ("images", "annotations", "categories")
_OTHERS_TABLES = (roboflow.CLASSES, *imagefolder.FILES)


def kinds_of(path: Path) -> dict[str, str]:
    """The kinds that fit a path -> by what; of a folder without any of an export's files at most one."""
    if path.is_file():
        return _kinds_of_file(path)
    found: dict[str, str] = {}
    if cvat.recognises(path):
        found["cvat"] = "annotations.xml, or labelmap.txt and SegmentationClass"
    elif _is_voc(path):
        found["voc"] = "JPEGImages and ImageSets"
    elif voc_files.recognises(path):
        found["voc"] = "XML files of single images"
    if roboflow.recognises(path):
        found["roboflow"] = "_classes.csv or _annotations.coco.json"
    elif yolo.recognises(path):
        found["yolo"] = "data.yaml, obj.names, or classes.txt with labels/"
    if imagefolder.recognises(path):
        found["hf"] = "metadata.jsonl or metadata.csv"
    if any(path.glob("annotations/instances_*.json")):
        found["coco"] = "annotations/instances_*.json"
    else:
        found |= {kind: file.name for file, kind in _json_kinds(path).items()}
    if "voc" not in found and (table := find_table(path)) and table.name not in _OTHERS_TABLES:
        found["folder"] = "a CSV or spreadsheet of labels"
    if found:
        return found
    if class_folders(path):
        return {"classes": "folders of images"}
    return {"folder": "images"} if list_images(path) else shards.bare_pattern(path.rglob("[!.]*"))


def export_path(kind: str, path: Path) -> Path:
    """What a kind reads: of those whose export is one JSON of any name, that file of a folder.

    Raises:
        DataError: if the folder holds none, or several.
    """
    if path.is_file() or kind not in ("label-studio", "json", "coco") or roboflow.recognises(path):
        return path
    known = [file for file, found in _json_kinds(path).items() if found == kind]
    files = known or [file for file in sorted(path.glob("*.json")) if is_regular(file)]
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5]) or "none"
        raise DataError(f"{path}: expected one JSON of labels in it, found {names}; name it, {kind}:FILE.json")
    return files[0]


def coco_elsewhere(path: Path) -> bool:
    """Whether COCO's instances are in one file, or as Roboflow has them, not in `annotations/instances_SPLIT.json`."""
    if path.is_file() or any(path.glob("annotations/instances_*.json")):
        return path.is_file()
    return roboflow.recognises(path) or "coco" in _json_kinds(path).values()


def coco_reader(path: Path) -> Callable[[Path], Export]:
    """What reads COCO's instances where they do not lie in `annotations/`."""
    return roboflow.read if path.is_dir() and roboflow.recognises(path) else coco_export.read


def voc_elsewhere(path: Path) -> bool:
    """Whether VOC's XML lies without VOC's folders and lists."""
    return not _is_voc(path) and voc_files.recognises(path)


def _is_voc(path: Path) -> bool:
    roots = (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012")
    return any((root / "JPEGImages").is_dir() and (root / "ImageSets").is_dir() for root in roots)


def _kinds_of_file(path: Path) -> dict[str, str]:
    if path.name in imagefolder.FILES:
        return {"hf": path.name}
    if path.suffix.lower() in TABLE_SUFFIXES:
        return {"folder": "a CSV or spreadsheet"}
    if found := shards.bare_pattern([path]):
        return found
    if path.suffix.lower() == ".json":
        kind = _json_kind(path)
        return {kind: "its content"} if kind else {}
    if yolo.recognises(path):
        return {"yolo": "YAML"}
    return {"cvat": "XML"} if cvat.recognises(path) else {}


def _json_kinds(root: Path) -> dict[Path, str]:
    """The files of labels in a folder -> their kind; Datumaro's several files count once."""
    found = {path: kind for path in sorted(root.glob("*.json")) if is_regular(path) and (kind := _json_kind(path))}
    first = next(iter(datumaro.json_files(root)), None)
    if first is not None and (kind := _json_kind(first)):
        found[first] = kind
    return found


def _json_kind(path: Path) -> str:
    """The kind of a JSON by its content, "" for another."""
    try:
        data: Any = read_json(path, "labels as JSON")
    except DataError:
        return ""
    if isinstance(data, dict) and all(isinstance(data.get(key), list) for key in _COCO_KEYS):
        return "coco"
    for kind, module in (("label-studio", label_studio), ("datumaro", datumaro), ("json", json_map)):
        if module.looks_like(data):
            return kind
    return ""
