"""CVAT's exports: "CVAT for images 1.1" (XML), and "Segmentation mask 1.1" (masks in colours and `labelmap.txt`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.export import Entry, Export, listed_classes
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.mask_values import shapes_of_masks
from cpn_fast.data.sources.regions import Box, Ellipse, Polygons, Region, RowRuns, Shape
from cpn_fast.files.errors import DataError
from cpn_fast.files.labelmap import read_labelmap_file
from cpn_fast.files.masks import check_class_count
from cpn_fast.files.names import quoted
from cpn_fast.files.regular import is_regular, open_regular
from cpn_fast.files.text import read_lines
from cpn_fast.files.xml_file import Node, read_xml

XML = "annotations.xml"
_MASKS, _LABELMAP = "SegmentationClass", "labelmap.txt"
_WHAT = 'CVAT\'s XML ("CVAT for images 1.1")'
_LISTS = "ImageSets/Segmentation"
_HEAD_BYTES = 400
_SIDES = ("xtl", "ytl", "xbr", "ybr")
_UNPLACED = ("tag", "polyline", "points", "skeleton", "cuboid")
"""Of these no pixel is certain: they name a class of the image."""


def recognises(path: Path) -> bool:
    """Whether a folder holds `annotations.xml`, or masks by a `labelmap.txt` and no VOC annotations; or is that XML."""
    if path.is_file():
        return path.suffix.lower() == ".xml"
    masks = (path / _MASKS).is_dir() and (path / _LABELMAP).is_file() and not (path / "Annotations").is_dir()
    return masks or bool(_xml_files(path))


def read(path: Path) -> Export:
    """Read a folder or its XML.

    Raises:
        DataError: if neither form is there, or it cannot be read as a whole.
    """
    if files := [path] if path.is_file() else _xml_files(path):
        return _read_xml(files)
    if (path / _MASKS).is_dir() and (path / _LABELMAP).is_file():
        return _read_masks(path)
    raise DataError(f"{path}: no {XML}, and no {_MASKS}/ with {_LABELMAP}; expected an export of CVAT")


def _xml_files(root: Path) -> list[Path]:
    """`annotations.xml`, else the XML files of annotations, one per subset, as Datumaro writes them for CVAT."""
    if is_regular(root / XML):
        return [root / XML]
    return [path for path in sorted(root.glob("*.xml")) if is_regular(path) and _begins_as_annotations(path)]


def _begins_as_annotations(path: Path) -> bool:
    with open_regular(path) as file:
        return b"<annotations" in file.read(_HEAD_BYTES)


def _read_xml(paths: Sequence[Path]) -> Export:
    files = ImageFiles(paths[0].parent)
    every = [_read_one_xml(path, files) for path in paths]
    export = every[0]
    for path, other in zip(paths[1:], every[1:], strict=True):
        if other.classes != export.classes:
            raise DataError(f"{path}: its labels differ from those of {paths[0]}; give each set its own folder")
    if len(every) > 1:
        entries = [replace(e, split=path.stem) for path, one in zip(paths, every, strict=True) for e in one.entries]
        problems = [problem for one in every for problem in one.problems]
        notes = [note for one in every for note in one.notes]
        export = replace(export, entries=entries, problems=problems, notes=notes)
    return export


def _read_one_xml(path: Path, files: ImageFiles) -> Export:
    tree = read_xml(path, _WHAT)
    if tree.tag != "annotations":
        raise DataError(f"{path}, line {tree.line}: <{tree.tag}> is its root; expected <annotations>, {_WHAT}")
    if tree.find("track") is not None:
        raise DataError(f'{path}: tracks of a video; expected {_WHAT}: export it as "CVAT for images 1.1"')
    labels = [node.findtext("name") or "" for node in tree.iterfind("meta//labels/label")]
    classes = listed_classes(labels, f"{path}: <labels>") if labels else None
    check_class_count(classes or (), str(path))
    export = Export("CVAT for images 1.1", path.parent, classes)
    subsets = {node.get("subset") for node in tree.iterfind("image")} - {None, "", "default", "Default"}
    for node in tree.iterfind("image"):
        assert isinstance(node, Node)
        name, subset = node.get("name"), node.get("subset") or ""
        image = files.find(name, ("", "images", f"images/{subset}", subset))
        if isinstance(image, str):
            export.problems.append(Problem(path, image, node.line))
            continue
        size = _size(node)
        if isinstance(size, str):
            export.problems.append(Problem(path, f"image {quoted(name)}: {size}", node.line))
            continue
        shapes = []
        for child in node:
            assert isinstance(child, Node)
            shape = _shape(child)
            if isinstance(shape, str):
                export.problems.append(Problem(path, f"<{child.tag}> of {quoted(name)}: {shape}", child.line))
            elif shape is not None:
                shapes.append(shape)
        split = subset.lower() if subsets and subset else None
        export.entries.append(Entry(files.id_of(image), image, path, tuple(shapes), split=split, size=size))
    empty = [entry.id for entry in export.entries if not entry.shapes]
    if empty and len(empty) < len(export.entries):
        export.notes.append(
            f"{path}: images without annotation, taken as holding none of the classes: {len(empty)}, e.g. {empty[0]}"
        )
    return export


def _size(node: Node) -> tuple[int, int] | str:
    sides = node.get("width", ""), node.get("height", "")
    if not all(side.isascii() and side.isdecimal() and 0 < len(side) < 8 and int(side) for side in sides):
        return f"width {quoted(sides[0])}, height {quoted(sides[1])}; expected both in pixels"
    return int(sides[0]), int(sides[1])


def _shape(node: Node) -> Shape | str | None:
    """What an element of an image says, what is wrong with it, or None for one that says nothing."""
    name = node.get("label")
    if node.tag not in (*_UNPLACED, "box", "polygon", "ellipse", "mask"):
        return None
    if name is None:
        return "no label; add it or remove the element"
    try:
        region = None if node.tag in _UNPLACED else _region(node.tag, node.attrib)
        order = int(node.get("z_order", "0"))
    except KeyError as error:
        return f"no attribute {error.args[0]!r}; add it or remove the element"
    except ValueError as error:
        return f"{error}; correct or remove it"
    return Shape(name, region, f"line {node.line}", order)


def _region(tag: str, values: Mapping[str, str]) -> Region:
    """Raises KeyError for a missing attribute, ValueError for one that is no number."""
    if tag == "box":
        left, top, right, bottom = (_number(values[side], side) for side in _SIDES)
        return Box(left, top, right, bottom)
    if tag == "ellipse":
        x, y, radius_x, radius_y = (_number(values[name], name) for name in ("cx", "cy", "rx", "ry"))
        return Ellipse(x, y, radius_x, radius_y, _number(values.get("rotation", "0"), "rotation"))
    if tag == "polygon":
        points = [_number(part, "points") for pair in values["points"].split(";") for part in pair.split(",", 1)]
        return Polygons((tuple(points),))
    counts = tuple(int(_number(count, "rle")) for count in values["rle"].split(","))
    left, top, width, height = (int(_number(values[name], name)) for name in ("left", "top", "width", "height"))
    return RowRuns(counts, left, top, width, height)


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise ValueError(f"{name} holds {quoted(text.strip())}, which is no number")
    return value


def _read_masks(root: Path) -> Export:
    labelmap = read_labelmap_file(root / _LABELMAP)
    files = ImageFiles(root, apart=(_MASKS, "SegmentationObject"))
    export = Export("CVAT's segmentation mask 1.1", root, labelmap.classes, labelmap=labelmap)
    split_of = _splits(root, export)
    pairs = []
    used = set()
    for mask in sorted((root / _MASKS).rglob("*.png")):
        name = mask.relative_to(root / _MASKS).with_suffix("").as_posix()
        image = files.stem(name, ("JPEGImages", "images", ""))
        if isinstance(image, str):
            export.problems.append(Problem(mask, image))
        else:
            used.add(image)
            pairs.append((name, image, mask))
    found = shapes_of_masks([mask for _, _, mask in pairs], labelmap.classes, labelmap, export.problems)
    for (name, image, mask), shapes in zip(pairs, found, strict=True):
        if shapes is not None:
            export.entries.append(Entry(name, image, mask, shapes, split=split_of.get(name), mask_path=mask))
    if not pairs and not export.problems:
        raise DataError(f"{root / _MASKS}: no masks; expected NAME.png for every image")
    if others := [image for image in files.all if image not in used]:
        export.notes.append(f"images without a mask, which are left out: {len(others)}, e.g. {others[0]}")
    return export


def _splits(root: Path, export: Export) -> dict[str, str]:
    """Image -> split by CVAT's lists; none where there is one list alone, called default."""
    lists = [path for path in sorted((root / _LISTS).glob("*.txt")) if is_regular(path)]
    if [path.stem for path in lists] in ([], ["default"]):
        return {}
    found: dict[str, str] = {}
    for path in lists:
        for line, name in read_lines(path, "a list of images"):
            if found.setdefault(name, path.stem) != path.stem:
                message = f"image {quoted(name)} is also in {found[name]}.txt; remove one"
                export.problems.append(Problem(path, message, line))
    return found
