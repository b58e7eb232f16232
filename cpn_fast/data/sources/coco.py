"""COCO 2014 / 2017 instances."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.sources.base import FileSource, Problem, Scan
from cpn_fast.data.sources.coco_file import Id, ImageEntry, Instances, read_categories, read_instances
from cpn_fast.data.sources.coco_shapes import covered_pixels, without_area
from cpn_fast.data.types import VOID, Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, image_size, list_images
from cpn_fast.files.names import quoted
from cpn_fast.files.regular import is_regular

_PREFIX = "instances_"
_loading = threading.Lock()


@dataclass(frozen=True)
class Drawn:
    """What is drawn for one annotation.

    Attributes:
        id: of the annotation, for messages.
        value: 1..K, or 255 for a crowd.
        segmentation: polygons or RLE.
    """

    id: Any
    value: int
    segmentation: Any


class CocoSource(FileSource):
    """`annotations/instances_SPLIT.json` and images in `SPLIT/`, `images/SPLIT/` or `images/` under one root.

    Splits are the files' names (`train2017`), and `train` and `val` where only one begins so. Classes are the
    categories by ascending id. An image without annotation is known to hold none of the classes: labels (). Masks are
    drawn from the annotations when they are read: crowd regions are void, smaller instances lie on larger ones.

    Args:
        root: the folder.
        spec: what `open_source` was given; None = `coco:ROOT`.
        max_pixels: largest image that is read.

    Raises:
        DataError: if there is no instances file, or the first one cannot be read.
    """

    def __init__(self, root: str | Path, spec: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        super().__init__(spec or f"coco:{root}", Path(root), max_pixels)
        files = sorted((self.root / "annotations").glob(f"{_PREFIX}*.json"))
        if not files:
            raise DataError(
                f"{self.root / 'annotations'}: no {_PREFIX}SPLIT.json; expected COCO's layout, e.g. "
                f"annotations/{_PREFIX}train2017.json and images in train2017/"
            )
        self._files = {path.stem.removeprefix(_PREFIX): path for path in files}
        for short in ("train", "val"):
            full = [name for name in self._files if name.startswith(short)]
            if len(full) == 1:
                self._files.setdefault(short, self._files[full[0]])
        self._categories: dict[Id, str] | None = None
        self._file_of: dict[Path, Path] = {}
        self._annotations: dict[Path, dict[str, tuple[ImageEntry, list[Drawn]]]] = {}

    @property
    def description(self) -> str:
        """The layout."""
        return "COCO instances"

    @property
    def classes(self) -> tuple[str, ...]:
        """The categories' names by ascending category id."""
        if self._categories is None:
            # The smallest file: all splits of one set have the same categories, which `_scan` checks.
            smallest = min(self._files.values(), key=lambda path: path.stat().st_size)
            self._categories = read_categories(smallest)
        return tuple(self._categories.values())

    def splits(self) -> tuple[str, ...]:
        """The instances files' names, and `train` and `val` for short."""
        return tuple(self._files)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Annotations and images: what lies beside them is not read."""
        names = ("annotations", "images", *self._files)
        return tuple(self.root / name for name in names)

    def _scan(self, split: str) -> Scan:
        path = self._files[split]
        full_name = path.stem.removeprefix(_PREFIX)
        if split != full_name:
            return self.scan(full_name)  # `train` is short for `train2017`
        found = read_instances(path)
        number_of = self._class_numbers(found.categories, path)
        folder = self._image_folder(path)
        problems = list(found.problems)
        labels: dict[Id, set[int]] = {image_id: set() for image_id in found.images}
        for annotation in found.annotations:
            labels[annotation.image_id].add(number_of[annotation.category_id])
        records: dict[str, Record] = {}
        for image_id, entry in found.images.items():
            if not is_regular(folder / entry.name):
                missing = f"image {image_id} (file_name {entry.name!r}) is not in {folder}; add it or remove the entry"
                problems.append(Problem(path, missing))
            elif entry.record_id in records:
                twice = f"image {image_id}: file_name {entry.name!r} gives the id {entry.record_id!r} twice"
                problems.append(Problem(path, twice))
            else:
                image_path = folder / entry.name
                records[entry.record_id] = Record(entry.record_id, image_path, tuple(sorted(labels[image_id])))
                self._file_of[image_path] = path
        notes = _without_area(found, path) + self._unlisted(folder, path, found)
        return Scan(tuple(records[key] for key in sorted(records)), tuple(problems), notes)

    def _unlisted(self, folder: Path, path: Path, found: Instances) -> tuple[str, ...]:
        """A note on the images of a split's own folder that its JSON leaves out."""
        if folder.name != path.stem.removeprefix(_PREFIX):
            return ()  # a folder that the splits share
        known = {folder / entry.name for entry in found.images.values()}
        others = [image for image in list_images(folder) if image not in known]
        return (
            (f"images in {folder} that {path.name} leaves out: {len(others)}, e.g. {others[0].name}",) if others else ()
        )

    def read_mask(self, record: Record) -> np.ndarray | None:
        """The class mask drawn from the image's annotations, uint8 [H, W].

        Raises:
            DataError: if the record is not of this source or an annotation's segmentation is broken.
        """
        path = self._file_of.get(record.image_path) if isinstance(record.image_path, Path) else None
        if path is None or not isinstance(record.image_path, Path):
            raise DataError(f"{record.image_path}: not among the images of {self.spec}")
        entry, annotations = self._annotations_of(path)[record.id]
        size = _checked_size(entry, record.image_path, self.max_pixels)
        return draw_mask(annotations, size, record.image_path)

    def _annotations_of(self, path: Path) -> dict[str, tuple[ImageEntry, list[Drawn]]]:
        """Record id -> its image entry and what is drawn there; kept only once a mask is asked for."""
        with _loading:
            if path not in self._annotations:
                found = read_instances(path)
                number_of = self._class_numbers(found.categories, path)
                drawn: dict[Id, tuple[ImageEntry, list[Drawn]]] = {
                    key: (entry, []) for key, entry in found.images.items()
                }
                for item in found.annotations:
                    value = VOID if item.crowd else number_of[item.category_id] + 1
                    drawn[item.image_id][1].append(Drawn(item.id, value, item.segmentation))
                self._annotations[path] = {entry.record_id: (entry, items) for entry, items in drawn.values()}
        return self._annotations[path]

    def _class_numbers(self, categories: dict[Id, str], path: Path) -> dict[Id, int]:
        """Category id -> class index 0..K-1."""
        if tuple(categories.values()) != self.classes:
            raise DataError(f"{path}: its categories differ from those of the other splits; give each set its own root")
        return {category: number for number, category in enumerate(categories)}

    def _image_folder(self, path: Path) -> Path:
        name = path.stem.removeprefix(_PREFIX)
        folders = [self.root / name, self.root / "images" / name, self.root / "images"]
        found = next((folder for folder in folders if folder.is_dir()), None)
        if found is None:
            raise DataError(f"{path}: no images for it; looked for {', '.join(str(folder) for folder in folders)}")
        return found


def draw_mask(items: Sequence[Drawn], size: tuple[int, int], image_path: Path) -> NDArray[np.uint8]:
    """Draw annotations into one mask.

    Args:
        items: what is drawn.
        size: height, width of the image in pixels.
        image_path: the image, for messages.

    Returns:
        uint8 [H, W]; 0 background, crowd 255 unless an instance covers it, of two instances the smaller on top.

    Raises:
        DataError: if a segmentation cannot be drawn.
    """
    areas = [int(_covered(item, size, image_path).sum()) for item in items]
    order = sorted(range(len(items)), key=lambda index: (items[index].value != VOID, -areas[index]))
    mask = np.zeros(size, dtype=np.uint8)
    for index in order:  # drawn again one by one: all at once, they would take as many times the image's memory
        mask[_covered(items[index], size, image_path)] = items[index].value
    return mask


def _covered(item: Drawn, size: tuple[int, int], image_path: Path) -> NDArray[np.bool_]:
    """The pixels of one annotation, bool [H, W]."""
    try:
        return covered_pixels(item.segmentation, *size)
    except ValueError as error:
        raise DataError(
            f"{image_path}: annotation {quoted(item.id)}: cannot draw its segmentation ({error}); expected polygons "
            f"[[x, y, ...], ...] or RLE of {size[0]} x {size[1]} (height x width) pixels"
        ) from error


def _checked_size(entry: ImageEntry, image_path: Path, max_pixels: int) -> tuple[int, int]:
    """Height and width of an entry, which are those of the image, before anything of that size is made."""
    if not all(type(side) in (int, float) and 1 <= side < 2**31 and side == side // 1 for side in entry.size):
        shown = "height {}, width {}".format(*map(quoted, entry.size))
        raise DataError(f"{image_path}: its COCO entry has {shown}; expected both in pixels")
    height, width = map(int, entry.size)
    found = image_size(image_path)
    if (width, height) != found:
        raise DataError(
            f"{image_path}: the mask is {width} x {height} pixels by its COCO entry, its image {image_path} "
            f"{found[0]} x {found[1]} (after EXIF rotation); make them equal"
        )
    if width * height > max_pixels:
        raise DataError(f"{image_path}: {width} x {height} pixels, over the limit of {max_pixels:,}; make it smaller")
    return height, width


def _without_area(found: Instances, path: Path) -> tuple[str, ...]:
    """A note on polygons of one or two points, which no pixel belongs to."""
    odd = [annotation.id for annotation in found.annotations if without_area(annotation.segmentation)]
    if not odd:
        return ()
    return (
        f"{path}: annotations with a polygon of fewer than three points, which has no area and is skipped: {len(odd)}, "
        f"e.g. annotation {quoted(odd[0])}",
    )
