"""VOC's XML without VOC's folders: a file for each image, beside it or in a folder of its own.

So LabelImg and labelme's converters leave it, Roboflow exports it (`train/a.jpg`, `train/a.xml`), and many sets come,
with `JPEGImages` and `Annotations` but no lists. Names of objects give the image's labels; boxes give no masks.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.export import Entry, Export
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.regions import Shape
from cpn_fast.data.sources.split_names import SPLIT_NAMES
from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import is_regular, open_regular
from cpn_fast.files.xml_file import Node, read_xml

_WHAT = "an annotation in VOC's XML"
_HEAD_BYTES = 400
_LOOKED_AT = 3
_XML = "*.[xX][mM][lL]"
_MASKS = ("SegmentationClass", "SegmentationObject", "SegmentationClassAug")


def recognises(path: Path) -> bool:
    """Whether one of the first XML files of a folder, down to SPLIT/annotations, is an annotation of VOC's kind."""
    patterns = ("", "*/", "*/*/")
    found = (file for pattern in patterns for file in path.glob(f"{pattern}{_XML}") if _is_seen(path, file))
    return path.is_dir() and any(map(_is_annotation, islice(found, _LOOKED_AT)))


def read(path: Path) -> Export:
    """Read the XML files below a folder.

    Raises:
        DataError: if there is none.
    """
    files = ImageFiles(path, _MASKS)
    export = Export("VOC's XML, a file for each image", path)
    bases = ("", "images", "JPEGImages")
    annotated: set[Path] = set()
    annotations = _xml_files(path)
    if not annotations:
        raise DataError(f"{path}: no XML below it; expected {_WHAT} for each image, beside it or in Annotations/")
    for file in annotations:
        relative = file.relative_to(path)
        try:
            tree = read_xml(file, _WHAT)
        except DataError as error:
            export.problems.append(_problem(file, str(error)))
            continue
        if tree.tag != "annotation":
            export.notes.append(f"{file}: <{tree.tag}> is its root, not <annotation>; not read")
            continue
        image = _image(files, relative, tree, bases)
        if isinstance(image, str):
            export.problems.append(Problem(file, image))
            continue
        annotated.add(image)
        shapes = tuple(
            Shape((node.findtext("name") or "").strip(), None, f"line {node.line}")
            for node in tree.findall("object")
            if isinstance(node, Node)
        )
        export.entries.append(Entry(files.id_of(image), image, file, shapes, split=_split(relative)))
    for image in files.all:
        if image not in annotated:
            split = _split(image.relative_to(path))
            export.entries.append(Entry(files.id_of(image), image, image, (), labelled=False, split=split))
    return export


def _image(files: ImageFiles, relative: Path, tree: Node, bases: tuple[str, ...]) -> Path | str:
    """The image of an XML file: that of its own name beside it or in the usual folders, else the one that it names."""
    around = relative.parent.as_posix()
    outer = relative.parent.parent
    places = (around, *(str(outer / base) for base in bases), *bases)
    image = files.stem(relative.stem, places)
    if isinstance(image, Path):
        return image
    return files.find((tree.findtext("filename") or "").strip() or f"{relative.stem}.jpg", places)


def _problem(file: Path, message: str) -> Problem:
    """Of an error that begins with the file and perhaps a line."""
    rest = message.removeprefix(str(file))
    found = re.match(r", line (\d+)", rest)
    line = int(found[1]) if found else None
    return Problem(file, rest[found.end() if found else 0 :].lstrip(":, "), line)


def _split(relative: Path) -> str | None:
    return next((SPLIT_NAMES[part.lower()] for part in relative.parts[:-1] if part.lower() in SPLIT_NAMES), None)


def _xml_files(root: Path) -> list[Path]:
    return sorted(file for file in root.rglob(_XML) if _is_seen(root, file))


def _is_seen(root: Path, file: Path) -> bool:
    """Whether a file is one, and neither it nor a folder around it is hidden."""
    return is_regular(file) and not any(part.startswith(".") for part in file.relative_to(root).parts)


def _is_annotation(path: Path) -> bool:
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    return b"<annotation>" in head or b"<annotation " in head or b":annotation" in head
