"""Masks as the label files of YOLO's segmentation task, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.data_yaml import class_names_of
from cpn_fast.convert.export import Export, ExportItem, ReadOptions, checked_ring, images_by_name, size_of_image
from cpn_fast.convert.folder import MaskItem, class_names
from cpn_fast.convert.instances import regions
from cpn_fast.convert.names import NameRules, as_path, as_text
from cpn_fast.convert.polygons import fill, polygons
from cpn_fast.convert.writer import Converted, Writer, to_json, write_file
from cpn_fast.files.errors import DataError
from cpn_fast.files.text import read_lines

DATA_NAME = "data.yaml"
LABELS, IMAGES = "labels", "images"
SPLIT = "train"


def _as_yolo_path(name: str) -> str:
    """Without folders called images: the labels' path is the image's with the last `/images/` replaced."""
    return "/".join("_images" if part == IMAGES else part for part in as_path(name).split("/"))


class YoloWriter(Writer[None]):
    """`labels/train/ID.txt`: a line per outline, its class from 0 and its points as shares of width and height.

    Holes are joined to their outline by a line of no width, for the format has none.
    """

    name_rules = NameRules(_as_yolo_path, as_text, True)
    has_masks = False
    has_polygons = True
    image_folder = f"{IMAGES}/{SPLIT}"

    def convert(self, item: MaskItem, target: Path) -> Converted[None]:
        """Write the label file of an image."""
        mask = item.read()
        height, width = mask.shape
        lines = []
        for value, region in regions(mask, "class"):
            for polygon in polygons(region, self.options.tolerance):
                shares = (polygon.joined() / (width, height)).ravel()
                lines.append(f"{value - 1} {' '.join(f'{share:.7g}' for share in shares)}\n")
        write_file(target / LABELS / SPLIT / f"{item.name}.txt", "".join(lines))
        self.copy_image(item, target)
        return Converted(item, None, len(lines), self.lost_void(mask))

    def write(self, target: Path, converted: Iterator[Converted[None]]) -> None:
        """Write `data.yaml`; its names are in JSON's quotes, which are YAML's."""
        for _ in converted:
            pass
        (target / IMAGES / SPLIT).mkdir(parents=True, exist_ok=True)
        names = "".join(f"  {number}: {to_json(name)}\n" for number, name in enumerate(self.selection.classes))
        colours = "".join(f"  {number}: {to_json(colour)}\n" for number, colour in enumerate(self.colours()))
        text = f"train: {IMAGES}/{SPLIT}\nval: {IMAGES}/{SPLIT}\nnames:\n{names}colors:\n{colours}"
        write_file(target / DATA_NAME, text)


def open_yolo(path: Path, options: ReadOptions) -> Export:
    """Read a folder of YOLO's segmentation labels. Where two objects overlap, the later line lies on top.

    Raises:
        DataError: if there are no labels or no classes.
    """
    classes = class_names(path, options.classes) if options.classes is not None else class_names_of(path / DATA_NAME)
    labels = {}
    for file in sorted(path.rglob("*.txt")):
        place = _below(file.relative_to(path), LABELS)
        if place is not None:
            labels[place.with_suffix("").as_posix()] = file
    if not labels:
        raise DataError(f"{path}: no label files; expected {LABELS}/.../ID.txt beside {DATA_NAME}")
    images = _images(path)
    splits = {name.split("/")[0] for name in labels if "/" in name} & {"train", "val", "valid", "test", "Train"}

    def item(name: str, file: Path) -> ExportItem:
        first, _, rest = name.partition("/")
        short = rest if first in splits else name
        image = images.get(name) or options.image_path(short) or options.image_path(name)

        def read() -> NDArray[np.uint8]:
            return _draw(file, len(classes), size_of_image(image, str(file)))

        return ExportItem(short, image.name if image else f"{short}.jpg", read)

    return Export("yolo-seg", classes, tuple(item(*pair) for pair in labels.items()))


def _draw(file: Path, num_classes: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size
    mask = np.zeros(size, dtype=np.uint8)
    for number, line in read_lines(file, "YOLO labels"):
        where = f"{file}, line {number}"
        words = line.split()
        if not words[0].isdecimal() or int(words[0][:9]) >= num_classes:
            raise DataError(f"{where}: class {words[0][:40]!r}; expected a number from 0 to {num_classes - 1}")
        if len(words) < 7 or len(words) % 2 == 0:
            raise DataError(
                f"{where}: {len(words) - 1} numbers; expected a polygon of at least three points x y (labels of boxes "
                "have four, and hold no mask)"
            )
        try:
            shares = [float(word) for word in words[1:]]
        except ValueError:
            raise DataError(f"{where}: a coordinate is no number; expected shares of the image's sides") from None
        ring = checked_ring(np.reshape(shares, (-1, 2)), 1, 1, where) * (width, height)
        mask[fill([ring], height, width)] = int(words[0]) + 1
    return mask


def _images(path: Path) -> dict[str, Path]:
    """The images by the name that their labels have."""
    found: dict[str, Path] = {}
    for file in images_by_name(path).values():
        place = _below(file.relative_to(path), IMAGES)
        if place is not None:
            found.setdefault(place.with_suffix("").as_posix(), file)
    return found


def _below(path: Path, folder: str) -> Path | None:
    """The path with the last folder of a name taken out of it: `train/labels/a` and `labels/train/a` are `train/a`."""
    parts = path.parts[:-1]
    if folder not in parts:
        return None
    place = len(parts) - 1 - parts[::-1].index(folder)
    return Path(*parts[:place], *path.parts[place + 1 :])
