"""COCO 2014 / 2017 instances."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cpn_fast.data.sources.base import FileSource, Problem, Scan
from cpn_fast.data.types import VOID, Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, list_images
from cpn_fast.files.masks import check_class_count
from cpn_fast.files.text import read_text

_PREFIX = "instances_"
_loading = threading.Lock()


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
        self._categories: dict[int, str] | None = None
        self._file_of: dict[Path, Path] = {}
        self._annotations: dict[Path, dict[str, list[dict[str, Any]]]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The categories' names by ascending category id."""
        if self._categories is None:
            # The smallest file: all splits of one set have the same categories, which `_scan` checks.
            smallest = min(self._files.values(), key=lambda path: path.stat().st_size)
            self._categories = _categories(_load(smallest), smallest)
        return tuple(self._categories.values())

    def splits(self) -> tuple[str, ...]:
        """The instances files' names, and `train` and `val` for short."""
        return tuple(self._files)

    def _scan(self, split: str) -> Scan:
        path = self._files[split]
        full_name = path.stem.removeprefix(_PREFIX)
        if split != full_name:
            return self.scan(full_name)  # `train` is short for `train2017`
        data = _load(path)
        number_of = self._class_numbers(data, path)
        folder = self._image_folder(path)
        problems: list[Problem] = []
        names = _image_names(data, path, problems)
        labels: dict[Any, set[int]] = {image_id: set() for image_id in names}
        for annotation, message in _checked(data, path, names, number_of):
            if message:
                problems.append(Problem(path, message))
            else:
                labels[annotation["image_id"]].add(number_of[annotation["category_id"]])
        records: dict[str, Record] = {}
        for image_id, name in names.items():
            key = str(Path(name).with_suffix(""))
            if not (folder / name).is_file():
                missing = f"image {image_id} (file_name {name!r}) is not in {folder}; add it or remove the entry"
                problems.append(Problem(path, missing))
            elif key in records:
                problems.append(Problem(path, f"image {image_id}: file_name {name!r} gives the id {key!r} twice"))
            else:
                records[key] = Record(key, folder / name, tuple(sorted(labels[image_id])))
                self._file_of[folder / name] = path
        return Scan(
            tuple(records[key] for key in sorted(records)), tuple(problems), self._unlisted(folder, path, names)
        )

    def _unlisted(self, folder: Path, path: Path, names: dict[Any, str]) -> tuple[str, ...]:
        """A note on the images of a split's own folder that its JSON leaves out."""
        if folder.name != path.stem.removeprefix(_PREFIX):
            return ()  # a folder that the splits share
        known = {folder / name for name in names.values()}
        others = [image for image in list_images(folder) if image not in known]
        return (
            (f"images in {folder} that {path.name} leaves out: {len(others)}, e.g. {others[0].name}",) if others else ()
        )

    def read_mask(self, record: Record) -> np.ndarray | None:
        """The class mask drawn from the image's annotations, uint8 [H, W].

        Raises:
            DataError: if the record is not of this source or an annotation's segmentation is broken.
        """
        path = self._file_of.get(record.image_path)
        if path is None:
            raise DataError(f"{record.image_path}: not among the images of {self.spec}")
        return draw_mask(self._annotations_of(path)[record.id], record.image_path)

    def _annotations_of(self, path: Path) -> dict[str, list[dict[str, Any]]]:
        """Record id -> its image entry's size and annotations; kept only once a mask is asked for."""
        with _loading:
            if path not in self._annotations:
                data = _load(path)
                number_of = self._class_numbers(data, path)
                names = _image_names(data, path, [])
                ids = {image_id: str(Path(name).with_suffix("")) for image_id, name in names.items()}
                sizes = {image["id"]: (image.get("height"), image.get("width")) for image in data["images"]}
                found: dict[str, list[dict[str, Any]]] = {ids[i]: [{"size": sizes[i]}] for i in ids}
                for annotation, message in _checked(data, path, names, number_of):
                    if not message:
                        kept = {key: annotation.get(key) for key in ("id", "segmentation", "iscrowd")}
                        kept["value"] = number_of[annotation["category_id"]] + 1
                        found[ids[annotation["image_id"]]].append(kept)
                self._annotations[path] = found
        return self._annotations[path]

    def _class_numbers(self, data: dict[str, Any], path: Path) -> dict[int, int]:
        """Category id -> class index 0..K-1."""
        categories = _categories(data, path)
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


def draw_mask(entries: list[dict[str, Any]], image_path: Path) -> np.ndarray:
    """Draw annotations into one mask.

    Args:
        entries: first {"size": (height, width)}, then per annotation id, segmentation (polygons or RLE, compressed or
            not), iscrowd and value (1..K).
        image_path: the image, for messages.

    Returns:
        uint8 [H, W]; 0 background, crowd 255 unless an instance covers it, of two instances the smaller on top.

    Raises:
        DataError: if a size is missing or a segmentation cannot be drawn.
    """
    height, width = entries[0]["size"]
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise DataError(f"{image_path}: its COCO entry has height {height!r}, width {width!r}; expected both in pixels")
    areas = [(annotation, _covered(annotation, height, width, image_path)) for annotation in entries[1:]]
    mask = np.zeros((height, width), dtype=np.uint8)
    for annotation, covered in sorted(areas, key=lambda item: (not item[0]["iscrowd"], -int(item[1].sum()))):
        mask[covered] = VOID if annotation["iscrowd"] else annotation["value"]
    return mask


def _covered(annotation: dict[str, Any], height: int, width: int, image_path: Path) -> np.ndarray:
    """The pixels of one annotation, bool [H, W]."""
    from pycocotools import mask as coco_mask

    shape = annotation["segmentation"]
    try:
        if isinstance(shape, list):
            codes = coco_mask.frPyObjects(shape, height, width) if shape else []
        else:
            codes = [coco_mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape]
        if not codes:
            return np.zeros((height, width), dtype=bool)  # a box without outline
        covered = coco_mask.decode(coco_mask.merge(codes)).astype(bool)
        if covered.shape != (height, width):
            raise ValueError(f"it is for {covered.shape[0]} x {covered.shape[1]} pixels")
        return covered
    except Exception as error:  # pycocotools raises bare Exception, TypeError, IndexError, KeyError ...
        raise DataError(
            f"{image_path}: annotation {annotation['id']}: cannot draw its segmentation ({error}); expected polygons "
            f"[[x, y, ...], ...] or RLE of {height} x {width} (height x width) pixels"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path, "COCO instances JSON"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON at column {error.colno} ({error.msg}); is the file complete?"
        ) from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(
                f"{path}: no list under the key {key!r}; expected COCO instances JSON (not captions or results)"
            )
    return data


def _categories(data: dict[str, Any], path: Path) -> dict[int, str]:
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in sorted(data["categories"], key=lambda e: e["id"])}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an entry of 'categories' lacks {error}; expected id and name") from None
    names = list(categories.values())
    if len(names) != len(data["categories"]) or len(set(names)) != len(names):
        raise DataError(f"{path}: an id or a name comes twice in 'categories'; give each class one of its own")
    check_class_count(names, str(path))
    return categories


def _image_names(data: dict[str, Any], path: Path, problems: list[Problem]) -> dict[Any, str]:
    """Image id -> file name. Entries without them, or with an id that has come before, are problems."""
    names: dict[Any, str] = {}
    for position, image in enumerate(data["images"]):
        where = f"images[{position}]"
        missing = [key for key in ("id", "file_name") if not isinstance(image, dict) or key not in image]
        if missing:
            problems.append(Problem(path, f"{where} has no {' and no '.join(missing)}; add it or remove the entry"))
        elif Path(str(image["file_name"])).is_absolute() or ".." in Path(str(image["file_name"])).parts:
            problems.append(Problem(path, f"{where}: file_name {image['file_name']!r} is outside the image folder"))
        elif image["id"] in names:
            problems.append(Problem(path, f"{where}: image id {image['id']} comes twice; remove one entry"))
        else:
            names[image["id"]] = str(image["file_name"])
    return names


def _checked(
    data: dict[str, Any], path: Path, names: dict[Any, str], number_of: dict[int, int]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Every annotation with what is wrong with it ("" if nothing)."""
    for position, annotation in enumerate(data["annotations"]):
        where = f"annotations[{position}]"
        missing = [
            key for key in ("image_id", "category_id") if not isinstance(annotation, dict) or key not in annotation
        ]
        if missing:
            yield annotation, f"{where} has no {' and no '.join(missing)}; add it or remove the entry"
        elif annotation["image_id"] not in names:
            yield (
                annotation,
                f"{where}: image_id {annotation['image_id']} is not in 'images'; add the image or remove it",
            )
        elif annotation["category_id"] not in number_of:
            yield annotation, f"{where}: category_id {annotation['category_id']} is not in 'categories'; correct it"
        else:
            yield annotation, ""
