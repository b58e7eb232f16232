"""PASCAL VOC 2012 and everything in its folder layout."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from cpn_fast.data.sources.base import FileSource, Problem, Scan, canonical, unknown_class, unread_masks
from cpn_fast.data.sources.voc_main import MAIN, MainLabels, read_main_labels, split_lists
from cpn_fast.data.types import Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES
from cpn_fast.files.labelmap import read_labelmap_file
from cpn_fast.files.masks import read_classes, read_mask
from cpn_fast.files.regular import read_regular
from cpn_fast.files.text import read_lines

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 20 foreground classes in the order of VOC's mask values 1..20."""

SEGMENTATION = "ImageSets/Segmentation"
TRAIN_AUG = "train_aug"
_TRAIN_AUG_LISTS = ("train_aug", "trainaug", "train_augmented")
_SBD_FOLDERS = ("SBD", "sbd", "benchmark_RELEASE/dataset", "SBD/benchmark_RELEASE/dataset", "SBD/dataset")
_PATH_LINE = re.compile(r"^/?JPEGImages/(?P<id>.+?)\.\w+(\s+/?\w+/.+)?$")


class VocSource(FileSource):
    """`JPEGImages`, `Annotations`, `SegmentationClass` and `ImageSets/Segmentation/SPLIT.txt` under one root.

    Image labels are the distinct `<name>` of the top-level `<object>`s; those of an image without an annotation are
    what `ImageSets/Main/CLASS_SPLIT.txt` say, or None. Without `ImageSets/Segmentation` splits are those of `Main`.
    An optional `classes.txt` in the root, or CVAT's `labelmap.txt` with the colours of the masks, names other classes
    than VOC's 20. The split `train_aug` is its list file, or SBD's train and val lists plus VOC's train without VOC's
    val (SBD is looked for in and beside the root).

    Args:
        root: the folder, or one that holds `VOCdevkit/VOC2012` or `VOC2012`.
        spec: what `open_source` was given; None = `voc:ROOT`.
        max_pixels: largest image that is read.

    Raises:
        DataError: if the layout is not there.
    """

    def __init__(self, root: str | Path, spec: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        super().__init__(spec or f"voc:{root}", find_voc_root(Path(root)), max_pixels)
        named = self.root / "classes.txt"
        labelmap = self.root / "labelmap.txt"
        self._labelmap = read_labelmap_file(labelmap) if labelmap.exists() and not named.exists() else None
        listed = self._labelmap.classes if self._labelmap else VOC_CLASSES
        self._classes = read_classes(named) if named.exists() else listed
        self._lists = self._find_lists()
        if not self._lists:
            raise DataError(f"{self.root / 'ImageSets/Segmentation'}: no lists; expected train.txt, val.txt, ...")

    @cached_property
    def _main_labels(self) -> MainLabels:
        """Read for the first image that has no annotation."""
        return read_main_labels(self.root, self._classes)

    @property
    def description(self) -> str:
        """The layout."""
        return "PASCAL VOC layout"

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground classes: those of `classes.txt`, of `labelmap.txt`, else VOC's 20."""
        return self._classes

    def splits(self) -> tuple[str, ...]:
        """The list files' names, and `train_aug` where it can be put together."""
        return tuple(self._lists)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those of the layout: what lies beside them is not read."""
        names = ("JPEGImages", "Annotations", "ImageSets", "SegmentationClass", "SegmentationClassAug")
        return tuple(self.root / name for name in names)

    def _find_lists(self) -> dict[str, tuple[Path, ...]]:
        """Split name -> list files; several are joined."""
        folder = self.root / "ImageSets" / "Segmentation"
        lists: dict[str, tuple[Path, ...]] = {path.stem: (path,) for path in sorted(folder.glob("*.txt"))}
        lists = lists or split_lists(self.root, self._classes)
        for name in _TRAIN_AUG_LISTS:
            if name in lists:
                lists.setdefault(TRAIN_AUG, lists[name])
        sbd = self._sbd_folder()
        if sbd and TRAIN_AUG not in lists and {"train", "val"} <= lists.keys():
            lists[TRAIN_AUG] = (sbd / "train.txt", sbd / "val.txt", *lists["train"])
        return lists

    def _sbd_folder(self) -> Path | None:
        places = (base / name for base in (self.root, *self.root.parents[:3]) for name in _SBD_FOLDERS)
        return next((p for p in places if (p / "train.txt").exists() and (p / "val.txt").exists()), None)

    def _ids(self, split: str, problems: list[Problem]) -> list[tuple[str, Path, int]]:
        """(id, list file, line) of a split. A name twice in one list is a problem; in two joined lists it is not."""
        files = self._lists[split]
        left_out: set[str] = set()
        if len(files) > 1:
            left_out = {_line_id(line) for _, line in read_lines(self._lists["val"][0], "a list of image names")}
        seen: dict[str, tuple[Path, int]] = {}
        for path in files:
            for number, line in read_lines(path, "a list of image names"):
                name = _line_id(line)
                if name in left_out:
                    continue
                if name in seen and seen[name][0] == path:
                    message = f"image {name!r} is already on line {seen[name][1]}; remove one"
                    problems.append(Problem(path, message, number))
                seen.setdefault(name, (path, number))
        ids = sorted(seen) if len(files) > 1 else list(seen)
        return [(name, *seen[name]) for name in ids]

    def _scan(self, split: str) -> Scan:
        problems: list[Problem] = []
        images = _index(self.root / "JPEGImages", IMAGE_SUFFIXES, problems)
        annotations = _index(self.root / "Annotations", (".xml",), problems)
        masks = _index(self.root / "SegmentationClass", (".png",), problems)
        if split == TRAIN_AUG:
            masks |= _index(self.root / "SegmentationClassAug", (".png",), problems)
        records = []
        for name, path, number in self._ids(split, problems):
            key = canonical(name)
            if key not in images:
                missing = f"image {name!r} is not in {self.root / 'JPEGImages'}; add it or remove the line"
                problems.append(Problem(path, missing, number))
                continue
            labels = (
                self._labels(annotations[key], problems) if key in annotations else self._main_labels.labels.get(key)
            )
            records.append(Record(name, images[key], labels, masks.get(key)))
        if any(canonical(record.id) not in annotations for record in records):
            problems += self._main_labels.problems
        return Scan(tuple(records), tuple(problems), warnings=unread_masks(self.root / "SegmentationClass", records))

    def read_mask(self, record: Record) -> np.ndarray | None:
        """The ground truth, uint8 [H, W], or None where there is none. Raises DataError if it cannot be read."""
        if record.mask_path is None or self._labelmap is None:
            return super().read_mask(record)
        return read_mask(record.mask_path, len(self._classes), self.max_pixels, self._labelmap)

    def _labels(self, path: Path, problems: list[Problem]) -> tuple[int, ...]:
        try:
            tree = ElementTree.fromstring(read_regular(path))
        except ElementTree.ParseError as error:
            line, column = error.position
            hint = "correct it, or name its encoding in the first line where that is not UTF-8"
            problems.append(Problem(path, f"not well-formed XML at column {column} ({error}); {hint}", line))
            return ()
        except DataError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))
            return ()
        except (LookupError, ValueError) as error:
            problems.append(Problem(path, f"its encoding cannot be read ({error}); save it as UTF-8", 1))
            return ()
        except OSError as error:
            problems.append(Problem(path, f"cannot read it ({error.strerror})"))
            return ()
        labels = set()
        for position, item in enumerate(tree.findall("{*}object"), start=1):  # of any namespace or none
            name = (item.findtext("{*}name") or "").strip()
            if name in self._classes:
                labels.add(self._classes.index(name))
            else:
                message = f"object {position}: {unknown_class(name, self._classes)}"
                problems.append(Problem(path, message, _line_of(path, name)))
        return tuple(sorted(labels))


def find_voc_root(path: Path) -> Path:
    """The folder with `JPEGImages` and lists in `ImageSets`: `path`, or inside it as the VOC archive unpacks.

    Raises:
        DataError: if neither is there, saying what was looked for.
    """
    for root in (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012"):
        if (root / "JPEGImages").is_dir() and any((root / lists).is_dir() for lists in (SEGMENTATION, MAIN)):
            return root
    missing = [n for n in ("JPEGImages", "ImageSets/Segmentation") if not (path / n).is_dir()]
    raise DataError(
        f"{path}: not in VOC layout: no folder {' and '.join(missing)}; expected JPEGImages/ID.jpg, "
        "Annotations/ID.xml, ImageSets/Segmentation/SPLIT.txt and, for scoring, SegmentationClass/ID.png"
    )


def _line_id(line: str) -> str:
    """The image name on a line: the line itself, or its stem in the `/JPEGImages/ID.jpg /Masks/ID.png` form."""
    match = _PATH_LINE.match(line)
    return match["id"] if match else line


def _index(folder: Path, suffixes: Iterable[str], problems: list[Problem]) -> dict[str, Path]:
    """Canonical stem -> file, from one listing of the folder (a stat per file is slow on network disks)."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes or name.startswith("."):
            continue
        key = canonical(stem)
        if key in found:
            problems.append(Problem(folder / name, f"the same id as {found[key].name}; rename or remove one"))
        else:
            found[key] = folder / name
    return found


def _line_of(path: Path, name: str) -> int | None:
    """The line of a class name in an annotation, whose encoding may be any; None where it is not found as it is."""
    lines = read_regular(path).splitlines()
    encoded = [f">{name}<".replace(" ", "").encode(encoding, "replace") for encoding in ("utf-8", "latin-1")]
    found = (
        number for number, line in enumerate(lines, start=1) for text in encoded if text in line.replace(b" ", b"")
    )
    return next(found, None)
