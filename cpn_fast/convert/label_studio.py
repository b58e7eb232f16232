"""Masks as Label Studio's tasks with predictions, and its JSON export back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.export import (
    Export,
    ExportItem,
    ReadOptions,
    checked_classes,
    checked_name,
    checked_ring,
    checked_size,
    size_of_image,
)
from cpn_fast.convert.folder import MaskItem, class_names
from cpn_fast.convert.instances import regions
from cpn_fast.convert.names import ANY_TEXT
from cpn_fast.convert.polygons import fill, polygons
from cpn_fast.convert.rle_pack import pack_region, unpack_region
from cpn_fast.convert.writer import Converted, Writer, to_json
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.names import quoted

BRUSH, POLYGON = "brushlabels", "polygonlabels"
CONFIG_ENDING = ".config.xml"
_ID = "mask_id"
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")


class LabelStudioWriter(Writer[dict[str, Any]]):
    """A list of tasks, each with one prediction, and beside it the labelling setup that it needs."""

    name_rules = ANY_TEXT
    makes_folder = False
    has_polygons = True

    def convert(self, item: MaskItem, target: Path) -> Converted[dict[str, Any]]:
        """The task of an image."""
        mask = item.read()
        results: list[dict[str, Any]] = []
        for value, region in regions(mask, self.options.instances):
            for kind, shape in self._shapes(region):
                shape[kind] = [self.selection.classes[value - 1]]
                results.append(
                    {
                        "id": f"r{len(results) + 1}",
                        "type": kind,
                        "from_name": kind.removesuffix("labels"),
                        "to_name": "image",
                        "original_width": mask.shape[1],
                        "original_height": mask.shape[0],
                        "image_rotation": 0,
                        "value": shape,
                    }
                )
        task = {
            "data": {
                "image": self._address(item.image_name),
                _ID: item.name,
                "width": mask.shape[1],
                "height": mask.shape[0],
            },
            "predictions": [{"model_version": "cpn-fast", "result": results}],
        }
        return Converted(item, task, len(results), self.lost_void(mask))

    def write(self, target: Path, converted: Iterator[Converted[dict[str, Any]]]) -> None:
        """Write the list of tasks while they come in."""
        with target.open("xb") as file:
            begin = b"[\n"
            for each in converted:
                file.write(begin + to_json(each.content).encode())
                begin = b",\n"
            file.write(b"\n]\n")

    def beside(self) -> Mapping[str, str]:
        """The labelling setup, with the classes' colours: a brush and polygons to correct with."""
        labels = "".join(
            f"    <Label value={quoteattr(name)} background={quoteattr(colour)}/>\n"
            for name, colour in zip(self.selection.classes, self.colours(), strict=True)
        )
        tags = "".join(
            f'  <{tag} name="{tag.lower().removesuffix("labels")}" toName="image">\n{labels}  </{tag}>\n'
            for tag in ("BrushLabels", "PolygonLabels")
        )
        return {CONFIG_ENDING: f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n{tags}</View>\n'}

    def _address(self, name: str) -> str:
        """The image's name, quoted where it becomes a part of an address."""
        return self.options.image_prefix + quote(name) if self.options.image_prefix else name

    def _shapes(self, region: NDArray[np.bool_]) -> list[tuple[str, dict[str, Any]]]:
        if self.options.shapes == "masks":
            return [(BRUSH, {"format": "rle", "rle": pack_region(region)})]
        percent = np.array([100 / region.shape[1], 100 / region.shape[0]])
        return [
            (POLYGON, {"points": np.round(part.joined() * percent, 6).tolist(), "closed": True})
            for part in polygons(region, self.options.tolerance)
        ]


def open_label_studio(path: Path, options: ReadOptions) -> Export:
    """Read Label Studio's export "JSON": brushes and polygons of each task.

    Of several annotations of a task the last counts that was not cancelled; without any, its last prediction. Where two
    objects overlap, the later one lies on top. Classes are sorted, for the export has no order of them.

    Raises:
        DataError: if it is no such file.
    """
    tasks = read_json(path, "Label Studio's JSON export")
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks
    ):
        raise DataError(f"{path}: expected a list of tasks with `data`; export as JSON (not JSON-MIN)")
    found = [
        (*_named(task["data"], f"{path}: task {number}"), _results(task), task["data"])
        for number, task in enumerate(tasks, 1)
    ]
    if options.classes is not None:
        classes = class_names(path.parent, options.classes)
    else:
        names = {name for _, _, results, _ in found for result in results for name in _labels(result)}
        classes = checked_classes(sorted(names), str(path))
    value_of = {name: value for value, name in enumerate(classes, start=1)}

    def item(image_id: str, name: str, results: list[Any], data: Mapping[str, Any]) -> ExportItem:
        def read() -> NDArray[np.uint8]:
            where = f"{path}: {name}"
            size = _size([each for each in results if _labels(each)], data, where)
            return _draw(results, value_of, size or size_of_image(options.image_path(image_id), where), where)

        return ExportItem(image_id, name, read)

    return Export("label-studio", classes, tuple(item(*each) for each in found))


def _named(data: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The id and the image's name of a task: ours where it came from us, else from the image's address."""
    address = data.get("image", next((value for value in data.values() if isinstance(value, str)), None))
    if not isinstance(address, str):
        raise DataError(f"{where}: no `image` in its data")
    image_id, name = checked_name(_path_of(address), where)
    if isinstance(data.get(_ID), str):
        return checked_name(f"{data[_ID]}.x", where)[0], name
    if "/upload/" in address:
        name = _UPLOADED.sub("", name.split("/")[-1])
        return checked_name(name, where)
    return (image_id.split("/")[-1], name.split("/")[-1]) if "://" in address else (image_id, name)


def _path_of(address: str) -> str:
    """The path of a file in an address of Label Studio: a URL, a local file behind `?d=`, or the path itself."""
    if "?d=" in address:
        return unquote(address.split("?d=", 1)[1]).lstrip("/")
    if "://" in address or address.startswith("/data/"):
        return unquote(urlsplit(address).path).lstrip("/")
    return address.lstrip("/")


def _results(task: Mapping[str, Any]) -> list[Any]:
    for key in ("annotations", "completions", "predictions"):
        made = [each for each in task.get(key) or () if isinstance(each, dict) and not each.get("was_cancelled")]
        if made:
            results = made[-1].get("result")
            return [each for each in results if isinstance(each, dict)] if isinstance(results, list) else []
    return []


def _labels(result: Mapping[str, Any]) -> list[Any]:
    """The class names of a region; none of a result that is no region."""
    value = result.get("value")
    if result.get("type") not in (BRUSH, POLYGON) or not isinstance(value, dict):
        return []
    labels = value.get(result["type"])
    return labels[:1] if isinstance(labels, list) else []


def _size(results: list[Any], data: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """Height and width by the regions, else by our own task; None where neither says it."""
    sizes = {(each.get("original_height"), each.get("original_width")) for each in results}
    if not sizes and "height" in data:
        sizes = {(data["height"], data.get("width"))}
    if len(sizes) > 1:
        raise DataError(f"{where}: its regions are of different sizes {sorted(map(str, sizes))}; expected one")
    return checked_size(sizes.pop(), where) if sizes else None


def _draw(results: list[Any], value_of: Mapping[str, int], size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    height, width = size
    mask = np.zeros(size, dtype=np.uint8)
    for each in results:
        if not _labels(each):
            continue
        name, value = _labels(each)[0], each["value"]
        if name not in value_of:
            raise DataError(f"{where}: the class {quoted(name)} is not in the list of classes")
        if each.get("image_rotation"):
            raise DataError(
                f"{where}: the image was rotated by {each['image_rotation']} in Label Studio; turn the file"
            )
        if each["type"] == POLYGON:
            ring = checked_ring(value.get("points"), 100, 100, where) * (width / 100, height / 100)
            covered = fill([ring], height, width)
        else:
            try:
                covered = unpack_region(value.get("rle"), height, width)
            except ValueError as error:
                raise DataError(f"{where}: the run lengths of a brush cannot be read: {error}") from None
        mask[covered] = value_of[name]
    return mask
