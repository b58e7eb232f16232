"""Masks as one COCO instances JSON, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.export import Export, ExportItem, ReadOptions, checked_size
from cpn_fast.convert.folder import MaskItem
from cpn_fast.convert.instances import regions
from cpn_fast.convert.names import ANY_TEXT
from cpn_fast.convert.polygons import polygons
from cpn_fast.convert.writer import Converted, Writer, to_json
from cpn_fast.data.sources.coco import Drawn, draw_mask
from cpn_fast.data.sources.coco_file import Id, ImageEntry, read_instances
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import VOID

Content = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image entry and its annotations, both still without the ids that depend on the others."""


class CocoWriter(Writer[Content]):
    """One JSON. Ids count from 1: images in the order of their names, categories as mask values."""

    name_rules = ANY_TEXT
    makes_folder = False
    has_polygons = True

    def convert(self, item: MaskItem, target: Path) -> Converted[Content]:
        """The entries of an image."""
        mask = item.read()
        annotations = [
            {"category_id": value, **self._shape(region), "iscrowd": 0}
            for value, region in regions(mask, self.options.instances)
        ]
        image = {"file_name": item.image_name, "width": mask.shape[1], "height": mask.shape[0]}
        return Converted(item, (image, annotations), len(annotations), self.lost_void(mask))

    def write(self, target: Path, converted: Iterator[Converted[Content]]) -> None:
        """Annotations at once, and the short image entries at the end."""
        categories = [
            {"id": value, "name": name, "color": self.selection.palette[value].tolist()}
            for value, name in enumerate(self.selection.classes, start=1)
        ]
        with target.open("xb") as file:
            about = to_json({"description": "pseudo masks"})
            file.write(f'{{"info": {about},\n"categories": {to_json(categories)},\n"annotations": ['.encode())
            images, count = [], 0
            for image_id, each in enumerate(converted, start=1):
                image, annotations = each.content
                images.append({"id": image_id, **image})
                for annotation in annotations:
                    file.write(b",\n" if count else b"\n")
                    count += 1
                    file.write(to_json({"id": count, "image_id": image_id, **annotation}).encode())
            file.write(b'],\n"images": [\n')
            file.write(",\n".join(map(to_json, images)).encode())
            file.write(b"]}\n")

    def _shape(self, region: NDArray[np.bool_]) -> dict[str, Any]:
        """Segmentation, area and box. Never a crowd, though COCO's own RLE are: readers ignore crowds."""
        if self.options.shapes == "polygons":
            rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
            left, top = int(columns[0]), int(rows[0])
            return {
                "segmentation": [part.joined().ravel().tolist() for part in polygons(region, self.options.tolerance)],
                "area": int(region.sum()),
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            }
        from pycocotools import mask as coco_mask

        code = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
        return {
            "segmentation": {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")},
            "area": int(coco_mask.area(code)),
            "bbox": [float(side) for side in coco_mask.toBbox(code)],
        }


def open_coco(path: Path, options: ReadOptions) -> Export:
    """Read an instances JSON. Crowds are void; of two objects the smaller lies on top, as the source `coco:` has it.

    Raises:
        DataError: if it is no such file, or an entry of it is wrong.
    """
    found = read_instances(path)
    if found.problems:
        raise DataError(str(found.problems[0]))
    value_of = {key: value for value, key in enumerate(found.categories, start=1)}
    drawn: dict[Id, list[Drawn]] = {key: [] for key in found.images}
    for each in found.annotations:
        value = VOID if each.crowd else value_of[each.category_id]
        drawn[each.image_id].append(Drawn(each.id, value, each.segmentation))

    def item(key: Id, entry: ImageEntry) -> ExportItem:
        def read() -> NDArray[np.uint8]:
            size = checked_size(entry.size, f"{path}: image {entry.name!r}")
            return draw_mask(drawn[key], size, Path(entry.name))

        return ExportItem(entry.record_id, entry.name, read)

    return Export("coco", tuple(found.categories.values()), tuple(item(*pair) for pair in found.images.items()))
