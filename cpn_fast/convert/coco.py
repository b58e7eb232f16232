"""Masks as one COCO instances JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from cpn_fast.convert.folder import MaskItem, MaskSelection
from cpn_fast.convert.instances import Instances, regions


def convert_item(item: MaskItem, num_classes: int, instances: Instances) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image entry and its annotations, both still without the ids that depend on the others.

    Raises:
        DataError: see `MaskItem.read`.
    """
    from pycocotools import mask as coco_mask

    mask = item.read(num_classes)
    annotations = []
    for value, region in regions(mask, instances):
        code = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
        annotations.append(
            {
                "category_id": value,
                "segmentation": {
                    "size": [int(side) for side in code["size"]],
                    "counts": code["counts"].decode("ascii"),
                },
                "area": int(coco_mask.area(code)),
                "bbox": [float(side) for side in coco_mask.toBbox(code)],
                # Never a crowd, though COCO's own RLE are: readers ignore crowds (`coco:` draws them as void).
                "iscrowd": 0,
            }
        )
    image = {"file_name": item.image_name, "width": mask.shape[1], "height": mask.shape[0]}
    return image, annotations


def write_coco(
    file: BinaryIO, folder: MaskSelection, converted: Iterator[tuple[dict[str, Any], Sequence[dict[str, Any]]]]
) -> int:
    """Write the JSON while the images come in: annotations at once, and the short image entries at the end.

    Ids count from 1: images in the order of their names, annotations through all images, categories as mask values.

    Args:
        file: where to.
        folder: gives the categories.
        converted: what `convert_item` returned, in the order of `folder.items`.

    Returns:
        number of annotations.
    """
    categories = [{"id": value, "name": name} for value, name in enumerate(folder.classes, start=1)]
    file.write(f'{{"info": {_json({"description": "pseudo masks"})},\n"categories": {_json(categories)},\n'.encode())
    file.write(b'"annotations": [')
    images, count = [], 0
    for image_id, (image, objects) in enumerate(converted, start=1):
        images.append({"id": image_id, **image})
        for annotation in objects:
            file.write(b",\n" if count else b"\n")
            count += 1
            file.write(_json({"id": count, "image_id": image_id, **annotation}).encode())
    file.write(b'],\n"images": [\n')
    file.write(",\n".join(map(_json, images)).encode())
    file.write(b"]}\n")
    return count


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
