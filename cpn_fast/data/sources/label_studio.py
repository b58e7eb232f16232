"""Label Studio's JSON and JSON-MIN: choices, boxes, polygons, ellipses and the brush."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cpn_fast.data.sources.base import Problem
from cpn_fast.data.sources.export import Entry, Export
from cpn_fast.data.sources.image_files import ImageFiles
from cpn_fast.data.sources.regions import Box, Brush, Ellipse, Polygons, Region, Shape, numbers
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.names import path_fault, quoted

_WHAT = "Label Studio's JSON or JSON-MIN"
_PERCENT = 100
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
_KINDS = {
    "choices": "choices", "rectanglelabels": "rectangle", "polygonlabels": "polygon", "ellipselabels": "ellipse",
    "brushlabels": "brush", "keypointlabels": "point", "labels": "region", "taxonomy": "choices",
}  # fmt: skip
"""Key that holds the names of a result -> what it is."""


def looks_like(data: Any) -> bool:
    """Whether a JSON's content is Label Studio's, by its first task."""
    if not isinstance(data, list) or not data or not isinstance(data[0], dict):
        return False
    first = data[0]
    full = isinstance(first.get("data"), dict) and ("annotations" in first or "completions" in first)
    return full or ("annotation_id" in first and "annotator" in first)


def read(path: Path) -> Export:
    """Read an export; its images lie anywhere in its folder.

    Raises:
        DataError: if it is no such JSON.
    """
    data = read_json(path, _WHAT)
    if not isinstance(data, list) or not data or not all(isinstance(task, dict) for task in data):
        raise DataError(f"{path}: {type(data).__name__} without tasks; expected {_WHAT}, a list of tasks")
    files = ImageFiles(path.parent)
    export = Export("Label Studio JSON", path.parent)
    several = []
    for number, task in enumerate(data):
        where = f"task {task.get('id', number)!s:.40}"
        image = _image(task, files)
        results, count = _results(task)
        if count > 1:
            several.append(where)
        if isinstance(image, str):
            export.problems.append(Problem(path, f"{where}: {image}"))
            continue
        found = list(_shapes(results or (), where))
        faults = [shape for shape in found if isinstance(shape, str)]
        export.problems += [Problem(path, f"{where}: {fault}") for fault in faults]
        shapes = tuple(shape for shape in found if isinstance(shape, Shape))
        export.entries.append(Entry(files.id_of(image), image, path, shapes, results is not None))
    if several:
        export.notes.append(
            f"{path}: tasks with several annotations, of which the last one (or the ground truth) counts: "
            f"{len(several)}, e.g. {several[0]}"
        )
    return export


def _image(task: dict[str, Any], files: ImageFiles) -> Path | str:
    """The image of a task, or what is wrong: its data is a path, an upload, local storage, or an address."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    value = next((data[key] for key in ("image", "img", "photo", "picture", "url") if key in data), None)
    if value is None:
        value = next((text for text in data.values() if isinstance(text, str) and re.search(r"\.\w{3,5}$", text)), None)
    if not isinstance(value, str):
        return "no image in its data; expected a path or an address under 'image'"
    parts = urlsplit(value) if len(value) < 4000 and "\0" not in value else None
    if parts is None:
        return f"image {quoted(value)} is no path"
    local = parse_qs(parts.query).get("d", [""])[0] if parts.query else ""
    name = local or (unquote(parts.path) if parts.scheme or value.startswith("/data/") else value)
    relative = name.replace("\\", "/").lstrip("/") if not Path(name).is_relative_to(files.root) else name
    if fault := path_fault(relative):
        if "outside" in fault:
            return f"image {quoted(value)} {fault}; write its path relative to the folder"
        return f"image {quoted(value)} {fault}"
    last = PurePosixPath(relative).name
    found = files.find(relative)
    if isinstance(found, str) and _UPLOAD.match(last):
        renamed = files.called(last.partition("-")[2])
        return found if isinstance(renamed, str) else renamed
    return found


def _results(task: dict[str, Any]) -> tuple[list[Any] | None, int]:
    """The results of a task (None where nobody has annotated it), and how many annotations it has."""
    if "annotation_id" in task and not isinstance(task.get("data"), dict):
        return _results_of_min(task), 1
    annotations = task.get("annotations", task.get("completions"))
    every = [item for item in annotations if isinstance(item, dict)] if isinstance(annotations, list) else []
    done = [item for item in every if not item.get("was_cancelled") and isinstance(item.get("result"), list)]
    if not done:
        return None, 0
    chosen = next((item for item in done if item.get("ground_truth")), done[-1])
    return chosen["result"], len(done)


def _results_of_min(task: dict[str, Any]) -> list[Any]:
    """JSON-MIN's task as results: what is not its own key is the answer of a control."""
    results: list[Any] = []
    for key, value in task.items():
        if key == "choice" or (isinstance(value, dict) and "choices" in value):
            names = value["choices"] if isinstance(value, dict) else value
            results.append({"value": {"choices": [names] if isinstance(names, str) else names}})
        elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
            results += [{"value": item, **item} for item in value]
    return results


def _shapes(results: Any, where: str) -> Iterator[Shape | str]:
    """The shapes of an annotation, and what is wrong with the others."""
    for order, result in enumerate(results):
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            continue  # a relation between regions
        key = next((key for key in _KINDS if isinstance(value.get(key), list)), None)
        if key is None:
            continue
        place = f"{where}, result {order}"
        names = [name[-1] if key == "taxonomy" and isinstance(name, list) and name else name for name in value[key]]
        region = _region(_KINDS[key], value, result)
        if isinstance(region, str):
            yield f"result {order}: {region}"
        elif not all(isinstance(name, str) for name in names):
            yield f"result {order}: {key} {quoted(value[key])}; expected a list of names"
        else:
            yield from (Shape(name, region, place, order) for name in names)


def _region(kind: str, value: dict[str, Any], result: dict[str, Any]) -> Region | str | None:
    """Where it is: None for no place, a text for what is wrong."""
    if kind == "rectangle":
        sides = numbers([value.get(name) for name in ("x", "y", "width", "height")])
        if sides is None:
            return "a rectangle without x, y, width and height as numbers"
        if value.get("rotation"):
            return None  # a turned box: where it is, is not said by its sides
        return Box(sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3], _PERCENT)
    if kind == "ellipse":
        found = numbers([value.get(name) for name in ("x", "y", "radiusX", "radiusY")])
        angle = numbers([value.get("rotation", 0)])
        if found is None or angle is None:
            return "an ellipse without x, y, radiusX and radiusY as numbers"
        return Ellipse(found[0], found[1], found[2], found[3], angle[0], _PERCENT)
    if kind == "polygon":
        points = value.get("points")
        flat = [numbers(point) for point in points] if isinstance(points, list) else [None]
        if not all(point is not None and len(point) == 2 for point in flat):
            return f"points {quoted(points)}; expected [[x, y], ...] in percent"
        return Polygons((tuple(number for point in flat if point for number in point),), _PERCENT)
    if kind == "brush":
        return _brush(value, result)
    return None


def _brush(value: dict[str, Any], result: dict[str, Any]) -> Region | str:
    code = value.get("rle")
    if not isinstance(code, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in code):
        return "a brush whose rle is no list of bytes (0 to 255)"
    width, height = (result.get(f"original_{side}") for side in ("width", "height"))
    if type(width) is not int or type(height) is not int or not (0 < width < 2**20 and 0 < height < 2**20):
        return f"original_width {quoted(width)}, original_height {quoted(height)}; expected both in pixels"
    return Brush(bytes(code), width, height)
