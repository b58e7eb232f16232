"""COCO instances as other tools lay them: one file anywhere, or Roboflow's `_annotations.coco.json` per split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.coco_file import Annotation, Id, ImageEntry, Instances, read_instances
from cpn_fast.data.sources.coco_shapes import without_area
from cpn_fast.data.sources.export import Entry, Export
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.regions import CocoCode, Shape
from cpn_fast.files.errors import DataError
from cpn_fast.files.names import quoted


def read(path: Path) -> Export:
    """Read one file of instances, `coco:FILE.json`; its images are in its folder or, from `annotations/`, beside that.

    Raises:
        DataError: if it is no such file.
    """
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    name = path.stem.removeprefix("instances_")
    found = read_instances(path)
    export = Export(f"COCO instances in {path.name}", root, tuple(found.categories.values()), by_area=True)
    add_entries(export, found, path, ImageFiles(root), ("", "images", name, f"images/{name}"), None)
    return export


def add_entries(
    export: Export, found: Instances, path: Path, files: ImageFiles, bases: Sequence[str], split: str | None
) -> None:
    """Put what a file holds into an export."""
    export.problems += found.problems
    shapes: dict[Id, list[Annotation]] = {image_id: [] for image_id in found.images}
    for annotation in found.annotations:
        shapes[annotation.image_id].append(annotation)
    for image_id, entry in found.images.items():
        image = files.find(entry.name, bases)
        if isinstance(image, str):
            export.problems.append(Problem(path, f"image {image_id}: {image}"))
            continue
        drawn = tuple(_shape(annotation, found) for annotation in shapes[image_id])
        export.entries.append(
            Entry(files.id_of(image), image, path, drawn, split=split, size=checked_size(entry, path, export))
        )
    odd = [annotation.id for annotation in found.annotations if without_area(annotation.segmentation)]
    if odd:
        export.notes.append(
            f"{path}: annotations with a polygon of fewer than three points, which has no area and is skipped: "
            f"{len(odd)}, e.g. annotation {quoted(odd[0])}"
        )


def checked_size(entry: ImageEntry, path: Path, export: Export) -> tuple[int, int] | None:
    """Width and height of an entry; None where it has none. What is no size is a problem."""
    height, width = entry.size
    if height is None or width is None:
        return None
    if all(type(side) in (int, float) and 1 <= side < 2**31 and side == side // 1 for side in (height, width)):
        return int(width), int(height)
    shown = f"height {quoted(height)}, width {quoted(width)}"
    export.problems.append(Problem(path, f"image {quoted(entry.name)} has {shown}; expected both in pixels"))
    return None


def _shape(annotation: Annotation, found: Instances) -> Shape:
    code = annotation.segmentation
    name = found.categories[annotation.category_id]
    where = f"annotation {quoted(annotation.id)}"
    empty = code is None or code == []
    return Shape(name, None if empty else CocoCode(code, not annotation.crowd), where)


def without_parent(found: Instances) -> Instances:
    """Without the class that Roboflow puts before the others to hold them: number 0, in no image."""
    used = {annotation.category_id for annotation in found.annotations}
    if 0 not in found.categories or 0 in used or len(found.categories) < 2:
        return found
    rest = {number: name for number, name in found.categories.items() if number != 0}
    return Instances(rest, found.images, found.annotations, found.problems)


def read_instances_of_one_set(paths: Sequence[Path]) -> list[Instances]:
    """The files of several splits. Raises DataError where their categories differ."""
    every = [without_parent(read_instances(path)) for path in paths]
    names = {tuple(found.categories.values()) for found in every}
    if len(names) > 1:
        raise DataError(f"{paths[-1]}: its categories differ from those of {paths[0]}; give each set its own folder")
    return every
