"""What else lies where images without labels were found: the labels are often there, in a form that is not read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cpn_fast.data.sources.base import FileSource
from cpn_fast.data.sources.classes import class_folders
from cpn_fast.data.types import Record, Source
from cpn_fast.files.images import IMAGE_SUFFIXES
from cpn_fast.files.table import TABLE_SUFFIXES

_EXPECTED = {
    "wds": "KEY.cls, KEY.json or KEY.txt beside each image KEY.jpg in the tars",
    "parquet": "a column `label` or `labels`",
}
"""Where the labels of a kind of source stand."""
_ELSEWHERE = "labels.csv with the columns image,labels, or a folder per class (classes:PATH)"

_MAX_FOLDERS = 200
_MAX_DEPTH = 3


def none_labelled(source: Source, records: Sequence[Record]) -> str:
    """The message for images of which none has a label: how many, and what was seen beside them."""
    seen = what_was_seen(source.root) if isinstance(source, FileSource) else ""
    empty = sum(record.labels is not None for record in records)
    background = f" ({empty} are labelled as background alone)" if empty else ""
    return (
        f"{source.spec}: none of {len(records)} images has labels{background}; "
        + (f"seen there: {seen}; " if seen else "")
        + f"expected {_EXPECTED.get(source.spec.partition(':')[0], _ELSEWHERE)}"
    )


def what_was_seen(root: Path) -> str:
    """Labels in forms that a folder of images is not read with, and what to do about each; "" where there are none."""
    files = _files(root)
    seen = [*_tables(root, files), *_exports(files)]
    names = class_folders(root)
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        seen.insert(0, f"{len(names)} folders of images ({shown}): did you mean `classes:{root}`?")
    elif alone := _only_folder(root, files):
        seen.insert(0, f"one folder of images ({alone}): if that is a class, did you mean `classes:{root}`?")
    return "; ".join(seen)


def _files(root: Path) -> list[Path]:
    """The files that are no images, of the first folders and levels."""
    found: list[Path] = []
    for count, (folder, subfolders, names) in enumerate(os.walk(root)):
        depth = len(Path(folder).relative_to(root).parts)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".")) if depth < _MAX_DEPTH else []
        plain = (name for name in sorted(names) if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES)
        found += [Path(folder, name) for name in plain]
        if count >= _MAX_FOLDERS:
            break
    return found


def _tables(root: Path, files: Sequence[Path]) -> list[str]:
    seen = []
    tables = [path for path in files if path.suffix.lower() in TABLE_SUFFIXES]
    roboflow = [path for path in tables if path.name == "_classes.csv"]
    if roboflow:
        seen.append(f"{roboflow[0]} (Roboflow, a column per class), read by roboflow:PATH")
    deeper = [path for path in tables if path not in roboflow and path.parent != root]
    if deeper:
        seen.append(f"{deeper[0]}: move it to {root}, or give folder:{deeper[0].parent}")
    if here := [path for path in tables if path not in roboflow and path.parent == root]:
        seen.append(f"{here[0]}, whose labels are empty or of other images")
    return seen


def _exports(files: Sequence[Path]) -> list[str]:
    """Files that annotation tools write."""
    seen = []
    if yolo := next((path for path in files if path.name in ("data.yaml", "data.yml")), None):
        seen.append(f"{yolo} (YOLO), read by yolo:{yolo.parent}")
    if texts := [path for path in files if path.suffix == ".txt" and path.parent.name == "labels"]:
        seen.append(f"{len(texts)} files like {texts[0]} (YOLO)")
    annotations = [path for path in files if path.suffix.lower() == ".xml"]
    if annotations:
        kind = "CVAT" if annotations[0].name == "annotations.xml" else "VOC or CVAT"
        seen.append(
            f"{len(annotations)} XML files like {annotations[0]} ({kind}): cvat:PATH reads annotations.xml, voc:PATH "
            "JPEGImages, Annotations and ImageSets"
        )
    texts = [path for path in files if path.suffix.lower() in (".json", ".jsonl")]
    if texts:
        seen.append(
            f"{texts[0]} (JSON): coco:, label-studio:, datumaro:, hf: and json: read such files, e.g. coco:{texts[0]}"
        )
    return seen


def _only_folder(root: Path, files: Sequence[Path]) -> str:
    """The name of the one folder in which all images lie, where nothing else is beside it."""
    entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")] if root.is_dir() else []
    alone = len(entries) == 1 and entries[0].is_dir() and entries[0].name.lower() not in ("images", "masks")
    return entries[0].name if alone and not files else ""
