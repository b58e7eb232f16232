"""Which masks of a folder are to be converted, and what is known about their images."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from cpn_fast.files.errors import DataError
from cpn_fast.files.images import IMAGE_SUFFIXES, list_images
from cpn_fast.files.labelmap import Labelmap, labelmap_of
from cpn_fast.files.mask_folder import MASK_FOLDER, MaskFolder, read_fitting_mask
from cpn_fast.files.masks import read_classes, read_labelmap
from cpn_fast.files.text import read_lines


@dataclass(frozen=True)
class MaskItem:
    """One mask to convert.

    Attributes:
        id: the mask's path below its folder, with slashes, without suffix.
        mask_path: the palette PNG.
        image_name: the image's file name; its folders are those of the id.
        image_path: the image, to compare sizes with; None where no folder of images was given.
        labelmap: the folder's own, by which masks may also be in colours; None where it has none.
    """

    id: str
    mask_path: Path
    image_name: str
    image_path: Path | None = None
    labelmap: Labelmap | None = None

    def read(self, num_classes: int) -> np.ndarray:
        """The mask, uint8 [H, W]: 0 background, 1..num_classes, 255 void.

        Raises:
            DataError: for a mask that cannot be read, has other values, or another size than its image.
        """
        return read_fitting_mask(self.mask_path, num_classes, self.image_path, self.labelmap)


@dataclass(frozen=True)
class MaskSelection:
    """The masks of a folder that are to be converted, sorted by id.

    Attributes:
        items: one per mask.
        classes: the K foreground classes; mask value k + 1 is classes[k].
        left_out: masks and images that are there, but not done by the manifest or not in the split.
    """

    items: tuple[MaskItem, ...]
    classes: tuple[str, ...]
    left_out: int


def select_masks(
    root: Path, classes: Path | None = None, split: Path | None = None, images: Path | None = None
) -> MaskSelection:
    """Look through a folder of masks without opening any.

    Args:
        root: has `SegmentationClass/ID.png`, or is that folder. Where it has a `manifest.jsonl`, only the images that
            are done there count.
        classes: class names, one a line, or a `labelmap.txt`; None = the folder's own `labelmap.txt`.
        split: list of ids, one a line; None = all.
        images: folder of the images; None = their names are the manifest's, else ID.jpg.

    Returns:
        the masks and their classes.

    Raises:
        DataError: if there is no mask or no list of classes, if a mask or image that is named is missing, or two names
            clash.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one with {MASK_FOLDER}/ID.png, as `cpn label` writes it")
    folder = MaskFolder.find(root)
    if folder is None:
        where = root / MASK_FOLDER if (root / MASK_FOLDER).is_dir() else root
        raise DataError(f"{where}: no masks; expected {MASK_FOLDER}/ID.png, as `cpn label` writes them")
    names = _class_names(folder.root, classes)
    paths = folder.paths()
    entries = folder.manifest().entries()
    done = {name for name, entry in entries.items() if entry.get("status") == "ok"}
    available = done if entries else paths.keys()
    if entries and not available:
        raise DataError(f"{folder.manifest().path}: none of its {len(entries)} images is done; label them first")
    wanted = _split_ids(split, available, entries.keys() | paths.keys()) if split else sorted(available)
    missing = [name for name in wanted if name not in paths]
    if missing:
        raise DataError(
            f"{folder.masks}: no mask for {len(missing)} of {len(wanted)} images, the first {missing[0]}.png; label "
            "them again, or leave them out with --split"
        )
    _check_clashes(wanted)
    found = _images_by_id(images) if images else None
    labelmap = labelmap_of(folder.root / "labelmap.txt") if classes is None else None
    items = []
    for name in wanted:
        image = _image_of(name, found, images) if found is not None and images is not None else None
        known = str(image or entries.get(name, {}).get("image") or f"{name}.jpg")
        items.append(MaskItem(name, paths[name], name + PurePosixPath(known).suffix, image, labelmap))
    return MaskSelection(tuple(items), names, len(entries.keys() | paths.keys()) - len(items))


def _class_names(root: Path, given: Path | None) -> tuple[str, ...]:
    path = given or root / "labelmap.txt"
    if given is None and not path.is_file():
        raise DataError(f"{path}: no such file; give the class names, one a line, with --classes FILE")
    names = read_classes(path) if given is not None and given.name != "labelmap.txt" else read_labelmap(path)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "background" in names:
        raise DataError(f"{path}: the class {(twice or ['background'])[0]!r} comes twice; give each a name of its own")
    if not names:
        raise DataError(f"{path}: no class but background; expected one line for each")
    return names


def _split_ids(split: Path, available: Iterable[str], known: Iterable[str]) -> list[str]:
    """The ids of a list, sorted; a name with an image's suffix is the id without it, unless it is an id itself."""
    available, known = set(available), set(known)
    line_of: dict[str, int] = {}
    for number, line in read_lines(split, "a list of image ids"):
        name = line
        if name not in known and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
            name = _without_suffix(name)
        if name in line_of:
            raise DataError(f"{split}, line {number}: {name!r} is already on line {line_of[name]}; remove one")
        if name not in available:
            state = "is not done by the manifest" if name in known else "has no mask in the folder"
            raise DataError(f"{split}, line {number}: {name!r} {state}; label it first or remove the line")
        line_of[name] = number
    if not line_of:
        raise DataError(f"{split}: no ids; expected one a line")
    return sorted(line_of)


def _check_clashes(names: Sequence[str]) -> None:
    """Refuse ids that become one file where a tool flattens folders, or a file system ignores case."""
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold().replace("/", "_")
        if key in seen:
            raise DataError(
                f"{name}.png and {seen[key]}.png: one name where folders are flattened or upper and lower case are the "
                "same, as in many tools; rename one, or convert them apart with --split"
            )
        seen[key] = name


def _images_by_id(images: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in list_images(images):
        found.setdefault(_without_suffix(path.relative_to(images).as_posix()), []).append(path)
    return found


def _image_of(name: str, found: dict[str, list[Path]], images: Path) -> Path:
    candidates = found.get(name, [])
    if len(candidates) != 1:
        what = f"{len(candidates)} images {', '.join(path.name for path in candidates)}" if candidates else "no image"
        raise DataError(f"{images}: {what} for the mask {name}.png; expected one, of the same name but for the suffix")
    return candidates[0]


def _without_suffix(name: str) -> str:
    return os.path.splitext(name)[0]
