"""Masks as a data set of Datumaro's own format, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from cpn_fast.convert.folder import MaskItem
from cpn_fast.convert.instances import regions
from cpn_fast.convert.polygons import fill, polygons
from cpn_fast.convert.writer import Converted, Writer, to_json
from cpn_fast.data.sources.coco_shapes import covered_pixels
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.labelmap import BACKGROUND
from cpn_fast.files.names import quoted

ANNOTATIONS = "annotations"
SUBSET = "default"
_IMAGE = 2
"""Datumaro's number of the medium image."""


class DatumaroWriter(Writer[dict[str, Any]]):
    """`annotations/default.json`, and the images in `images/default`."""

    has_polygons = True
    image_folder = f"images/{SUBSET}"

    def convert(self, item: MaskItem, target: Path) -> Converted[dict[str, Any]]:
        """The entry of an image."""
        mask = item.read()
        annotations: list[dict[str, Any]] = []
        for group, (value, region) in enumerate(regions(mask, self.options.instances), start=1):
            for shape in self._shapes(region):
                common = {"id": len(annotations), "attributes": {}, "group": group, "label_id": value - 1, "z_order": 0}
                annotations.append({**common, **shape})
        self.copy_image(item, target)
        image = {"path": item.image_name, "size": list(mask.shape)}
        entry = {"id": item.name, "annotations": annotations, "image": image}
        return Converted(item, entry, len(annotations), self.lost_void(mask))

    def write(self, target: Path, converted: Iterator[Converted[dict[str, Any]]]) -> None:
        """Write the JSON while the entries come in."""
        labels = [{"name": name, "parent": "", "attributes": []} for name in self.selection.classes]
        colours = [
            {"label_id": number, "r": red, "g": green, "b": blue}
            for number, (red, green, blue) in enumerate(self.selection.palette[1 : len(labels) + 1].tolist())
        ]
        categories = {"label": {"labels": labels, "attributes": []}, "mask": {"colormap": colours}}
        path = target / ANNOTATIONS / f"{SUBSET}.json"
        path.parent.mkdir(parents=True)
        with path.open("xb") as file:
            head = {"dm_format_version": "1.0", "media_type": _IMAGE, "infos": {}, "categories": categories}
            file.write((to_json(head)[:-1] + ', "items": [').encode())
            begin = b"\n"
            for each in converted:
                file.write(begin + to_json(each.content).encode())
                begin = b",\n"
            file.write(b"\n]}\n")

    def _shapes(self, region: NDArray[np.bool_]) -> list[dict[str, Any]]:
        if self.options.shapes == "polygons":
            return [
                {"type": "polygon", "points": part.joined().ravel().tolist()}
                for part in polygons(region, self.options.tolerance)
            ]
        from pycocotools import mask as coco_mask

        code = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
        counts, size = code["counts"].decode("ascii"), [int(side) for side in code["size"]]
        return [{"type": "mask", "rle": {"counts": counts, "size": size}}]


def open_datumaro(path: Path, options: ReadOptions) -> Export:
    """Read the JSON, or the folder `annotations` of them; boxes and labels of whole images are no masks.

    Where two objects overlap, the one of the higher `z_order` lies on top, of equal ones the later.

    Raises:
        DataError: if there is none, or it holds other things.
    """
    files = [path] if path.is_file() else sorted((path / ANNOTATIONS).glob("*.json"))
    if not files:
        raise DataError(f"{path}: no {ANNOTATIONS}/SUBSET.json")
    contents = [(file, _read(file)) for file in files]
    names = _names(contents[0][1], files[0])
    for file, content in contents:
        if _names(content, file) != names:
            raise DataError(f"{file}: other labels than {files[0]}; give every subset the same")
    classes = checked_classes([name for name in names if name != BACKGROUND], str(files[0]))
    values = [0 if name == BACKGROUND else classes.index(name) + 1 for name in names]
    items = [_item(entry, values, options, file) for file, content in contents for entry in content["items"]]
    return Export("datumaro", classes, tuple(items))


def _read(file: Path) -> dict[str, Any]:
    content = read_json(file, "Datumaro's JSON")
    if not isinstance(content, dict) or not isinstance(content.get("items"), list):
        raise DataError(f"{file}: no `items`; expected Datumaro's own JSON")
    return content


def _names(content: Mapping[str, Any], file: Path) -> list[str]:
    try:
        return [label["name"] for label in content["categories"]["label"]["labels"]]
    except (KeyError, TypeError):
        raise DataError(f"{file}: no categories.label.labels with names; expected Datumaro's own JSON") from None


def _item(entry: Any, values: list[int], options: ReadOptions, file: Path) -> ExportItem:
    if not isinstance(entry, dict) or not isinstance(entry.get("annotations"), list):
        raise DataError(f"{file}: an item without annotations: {quoted(entry)}")
    where = f"{file}: item {quoted(entry.get('id'))}"
    item_id = checked_name(f"{entry.get('id')}.x", where)[0]
    stored = entry.get("image")
    image: dict[str, Any] = stored if isinstance(stored, dict) else {}
    name = image.get("path") or f"{item_id}.jpg"

    def read() -> NDArray[np.uint8]:
        size = image.get("size")
        shape = (
            checked_size(size, where) if isinstance(size, list) else size_of_image(options.image_path(item_id), where)
        )
        mask = np.zeros(shape, dtype=np.uint8)
        for each in sorted(entry["annotations"], key=_z_order):
            kind = each.get("type") if isinstance(each, dict) else None
            if kind not in ("mask", "polygon"):
                continue
            label = each.get("label_id")
            if type(label) is not int or not 0 <= label < len(values):
                raise DataError(f"{where}: label_id {quoted(label)}; expected 0..{len(values) - 1}")
            mask[_covered(each, shape, where)] = values[label]
        return mask

    return ExportItem(item_id, str(name), read)


def _z_order(annotation: Any) -> float:
    order = annotation.get("z_order") if isinstance(annotation, dict) else 0
    return order if isinstance(order, int | float) else 0


def _covered(annotation: Mapping[str, Any], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    if annotation["type"] == "polygon":
        points = annotation.get("points")
        if not isinstance(points, list) or len(points) % 2 or len(points) < 6:
            raise DataError(f"{where}: a polygon of {quoted(points)}; expected at least three pairs of numbers")
        pairs = list(zip(points[::2], points[1::2], strict=True))
        return fill([checked_ring(pairs, size[1], size[0], where)], *size)
    try:
        return covered_pixels(annotation.get("rle"), *size)
    except ValueError as error:
        raise DataError(f"{where}: the run lengths of a mask cannot be read: {error}") from None
