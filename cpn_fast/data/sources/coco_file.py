"""A COCO instances file, checked entry by entry before anything is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cpn_fast.data.sources.base import Problem
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.masks import check_class_count
from cpn_fast.files.names import class_fault, path_fault, quoted

Id = int | str
"""An id; a string of digits is the number, since tools write both."""

_MAX_ID = 2**63


@dataclass(frozen=True)
class ImageEntry:
    """One entry of `images`.

    Attributes:
        name: `file_name`, with forward slashes.
        record_id: the name without suffix.
        size: `height` and `width` as they stand there, None where one is missing.
    """

    name: str
    record_id: str
    size: tuple[Any, Any]


@dataclass(frozen=True)
class Annotation:
    """One entry of `annotations`.

    Attributes:
        id: as it stands there, for messages.
        image_id: key of `Instances.images`.
        category_id: key of `Instances.categories`.
        crowd: a region of many objects.
        segmentation: polygons or RLE, not checked yet.
    """

    id: Any
    image_id: Id
    category_id: Id
    crowd: bool
    segmentation: Any


@dataclass(frozen=True)
class Instances:
    """What can be used of a file.

    Attributes:
        categories: category id -> name, by ascending id.
        images: by image id.
        annotations: of these images and categories.
        problems: what is wrong with the other entries.
    """

    categories: dict[Id, str]
    images: dict[Id, ImageEntry]
    annotations: list[Annotation] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_instances(path: Path) -> Instances:
    """Read an instances file.

    Raises:
        DataError: if it is no such file, or its categories cannot be used.
    """
    data = _load(path)
    problems: list[Problem] = []
    found = Instances(_categories(data["categories"], path), _images(data["images"], path, problems), [], problems)
    for position, entry in enumerate(data["annotations"]):
        annotation = _annotation(entry, found)
        if isinstance(annotation, Annotation):
            found.annotations.append(annotation)
        else:
            problems.append(Problem(path, f"annotations[{position}]{annotation}"))
    return found


def read_categories(path: Path) -> dict[Id, str]:
    """The categories of an instances file alone. Raises DataError as `read_instances`."""
    return _categories(_load(path)["categories"], path)


def _load(path: Path) -> dict[str, Any]:
    data = read_json(path, "COCO instances JSON")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(
                f"{path}: no list under the key {key!r}; expected COCO instances JSON (not captions or results)"
            )
    return data


def _id(value: Any) -> Id | None:
    """An id as a key, None for what cannot be one."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    if isinstance(value, str):
        return value if 0 < len(value) <= 200 else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_ID else None


def _lacks(entry: Any, *keys: str) -> str:
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    return f" has no {' and no '.join(missing)}; add it or remove the entry" if missing else ""


def _categories(entries: list[Any], path: Path) -> dict[Id, str]:
    categories: dict[Id, str] = {}
    for position, entry in enumerate(entries):
        where = f"{path}: categories[{position}]"
        if lacks := _lacks(entry, "id", "name"):
            raise DataError(f"{where}{lacks}")
        number, name = _id(entry["id"]), entry["name"]
        if number is None:
            raise DataError(f"{where}: id {quoted(entry['id'])}; expected a number")
        if fault := class_fault(name):
            raise DataError(f"{where}: name {quoted(name)} {fault}")
        if name == "background":
            raise DataError(
                f"{where}: a category called background; pixels without annotation are background already: remove "
                "the category and its annotations"
            )
        if number in categories or name in categories.values():
            raise DataError(f"{where}: an id or a name comes twice in 'categories'; give each class one of its own")
        categories[number] = name
    check_class_count(tuple(categories.values()), str(path))
    return dict(sorted(categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _images(entries: list[Any], path: Path, problems: list[Problem]) -> dict[Id, ImageEntry]:
    """Entries without id or name, or with an id that has come before, are problems."""
    images: dict[Id, ImageEntry] = {}
    for position, entry in enumerate(entries):
        found = _image(entry, images)
        if isinstance(found, str):
            problems.append(Problem(path, f"images[{position}]{found}"))
        else:
            images[found[0]] = found[1]
    return images


def _image(entry: Any, known: dict[Id, ImageEntry]) -> tuple[Id, ImageEntry] | str:
    """The id and the entry, or what is wrong with it."""
    if lacks := _lacks(entry, "id", "file_name"):
        return lacks
    number, name = _id(entry["id"]), entry["file_name"]
    if number is None:
        return f": id {quoted(entry['id'])}; expected a number"
    if isinstance(name, str):
        name = name.replace("\\", "/").removeprefix("./")
    if fault := path_fault(name):
        what = "is outside the image folder" if "outside" in fault else fault
        return f": file_name {quoted(entry['file_name'])} {what}"
    record_id = str(PurePosixPath(name).with_suffix(""))
    if not PurePosixPath(record_id).parts:
        return f": file_name {quoted(name)} is a suffix alone"
    if number in known:
        return f": image id {number} comes twice; remove one entry"
    return number, ImageEntry(name, record_id, (entry.get("height"), entry.get("width")))


def _annotation(entry: Any, found: Instances) -> Annotation | str:
    """The annotation, or what is wrong with it."""
    if lacks := _lacks(entry, "image_id", "category_id"):
        return lacks
    image_id, category_id = _id(entry["image_id"]), _id(entry["category_id"])
    if image_id not in found.images or image_id is None:
        return f": image_id {quoted(entry['image_id'])} is not in 'images'; add the image or remove it"
    if category_id not in found.categories or category_id is None:
        return f": category_id {quoted(entry['category_id'])} is not in 'categories'; correct it"
    crowd = entry.get("iscrowd")
    if crowd is not None and (not isinstance(crowd, int) or crowd not in (0, 1)):
        return f": iscrowd {quoted(crowd)}; expected 0 or 1"
    return Annotation(entry.get("id"), image_id, category_id, bool(crowd), entry.get("segmentation"))
