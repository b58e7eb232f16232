"""Which masks of a folder are to be converted, and what is known about their images."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.names import NameRules, Renamed, changed, written_names
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.images import IMAGE_SUFFIXES, list_images
from cpn_fast.files.labelmap import BACKGROUND, VOID, VOID_COLOUR, Labelmap, labelmap_of
from cpn_fast.files.mask_folder import MASK_FOLDER, read_fitting_mask, seen_instead
from cpn_fast.files.masks import check_class_count, read_classes, read_labelmap
from cpn_fast.files.member import ImageFile
from cpn_fast.files.palette import voc_palette
from cpn_fast.files.text import read_lines

VOID_CLASS = "void"
"""The class that void becomes with `--void label`, and comes back from."""


@dataclass(frozen=True)
class MaskItem:
    """One mask to convert.

    Attributes:
        id: the mask's path below its folder, with slashes, without suffix.
        mask_path: the palette PNG.
        suffix: of the image's file name.
        name: what the id is called in the output.
        num_classes: number K of foreground classes.
        image_path: the image, to compare sizes with; None where no folder of images was given.
        labelmap: the folder's own, by which masks may also be in colours; None where it has none.
        void_value: what void is read as.
    """

    id: str
    mask_path: ImageFile
    suffix: str
    name: str
    num_classes: int
    image_path: Path | None = None
    labelmap: Labelmap | None = None
    void_value: int = VOID

    @property
    def image_name(self) -> str:
        """The image's file name in the output, with the folders of the name."""
        return self.name + self.suffix

    def read(self) -> NDArray[np.uint8]:
        """The mask, uint8 [H, W]: 0 background, 1..num_classes, `void_value` void.

        Raises:
            DataError: for a mask that cannot be read, has other values, or another size than its image.
        """
        mask = read_fitting_mask(self.mask_path, self.num_classes, self.image_path, self.labelmap)
        return mask if self.void_value == VOID else np.where(mask == VOID, np.uint8(self.void_value), mask)


@dataclass(frozen=True)
class MaskSelection:
    """The masks of a folder that are to be converted, sorted by id.

    Attributes:
        items: one per mask.
        classes: the K foreground classes; mask value k + 1 is classes[k].
        palette: uint8 [256, 3], the colour of each mask value: the labelmap's, all different.
        left_out: masks and images that are there, but not done by the manifest or not in the split.
        folder: of the masks.
        renamed: names that had to be changed.
    """

    items: tuple[MaskItem, ...]
    classes: tuple[str, ...]
    palette: NDArray[np.uint8]
    left_out: int
    folder: Path
    renamed: tuple[Renamed, ...] = ()

    def only(self, names: Collection[str]) -> MaskSelection:
        """The same of these masks alone."""
        items = tuple(item for item in self.items if item.id in names)
        return replace(self, items=items, left_out=self.left_out + len(self.items) - len(items))

    def with_void_class(self) -> MaskSelection:
        """The same with void as one more class, called void.

        Raises:
            DataError: where a class has that name already, or there is no room for one more.
        """
        if VOID_CLASS in self.classes:
            raise DataError(f"--void label: there is a class called {VOID_CLASS!r} already; rename it")
        check_class_count((*self.classes, VOID_CLASS), "--void label")
        value = len(self.classes) + 1
        palette = self.palette.copy()
        palette[value] = VOID_COLOUR
        items = tuple(replace(item, void_value=value) for item in self.items)
        return replace(self, items=items, classes=(*self.classes, VOID_CLASS), palette=palette)

    def named(self, rules: NameRules) -> MaskSelection:
        """The same with names that a format can hold; see `written_names`."""
        images = written_names([item.id for item in self.items], rules.image, rules.apart)
        classes = written_names(self.classes, rules.label, False)
        return replace(
            self,
            items=tuple(replace(item, name=images[item.id]) for item in self.items),
            classes=tuple(classes[name] for name in self.classes),
            renamed=(*changed("image", images), *changed("class", classes)),
        )


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
        DataError: if there is no mask or no list of classes, or if a mask or image that is named is missing.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one with {MASK_FOLDER}/ID.png, as `cpn label` writes it")
    folder = find_masks(root)
    if folder is None:
        where = root / MASK_FOLDER if (root / MASK_FOLDER).is_dir() else root
        raise DataError(
            f"{where}: no masks; expected {MASK_FOLDER}/ID.png, as `cpn label` writes them{seen_instead(root)}"
        )
    folder.warn_if_half_done()
    names = class_names(folder.root, classes)
    paths = folder.paths()
    entries = folder.manifest().entries()
    done = {name for name, entry in entries.items() if entry.get("status") == "ok"}
    available = done if entries else paths.keys()
    if entries and not available:
        raise DataError(f"{folder.manifest().path}: none of its {len(entries)} images is done; label them first")
    wanted = split_ids(split, available, entries.keys() | paths.keys()) if split else sorted(available)
    missing = [name for name in wanted if name not in paths]
    if missing:
        raise DataError(
            f"{folder.masks}: no mask for {len(missing)} of {len(wanted)} images, the first {missing[0]}.png; label "
            "them again, or leave them out with --split"
        )
    found = _images_by_id(images) if images else None
    labelmap = labelmap_of(folder.root / "labelmap.txt") if classes is None else None
    items = []
    for name in wanted:
        image = _image_of(name, found, images) if found is not None and images is not None else None
        known = str(image or entries.get(name, {}).get("image") or f"{name}.jpg")
        items.append(MaskItem(name, paths[name], PurePosixPath(known).suffix, name, len(names), image, labelmap))
    palette = palette_of(names, labelmap_of(folder.root / "labelmap.txt"))
    return MaskSelection(tuple(items), names, palette, len(entries.keys() | paths.keys()) - len(items), folder.masks)


def palette_of(classes: Sequence[str], labelmap: Labelmap | None) -> NDArray[np.uint8]:
    """The labelmap's colours for these classes, uint8 [256, 3]; VOC's where it has none or two would be equal."""
    palette = voc_palette().copy()
    if labelmap is not None:
        for colour, value in labelmap.colour_values.items():
            names = (BACKGROUND, *labelmap.classes)
            if names[value] in (BACKGROUND, *classes):
                palette[(BACKGROUND, *classes).index(names[value])] = colour
    used = {tuple(colour) for colour in palette[: len(classes) + 1].tolist()}
    return palette if len(used | {VOID_COLOUR}) == len(classes) + 2 else voc_palette()


def class_names(root: Path, given: Path | None) -> tuple[str, ...]:
    """The foreground classes of a folder: those of a given list, else of its `labelmap.txt`.

    Raises:
        DataError: where there is no list, or a name comes twice.
    """
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


def split_ids(split: Path, available: Iterable[str], known: Iterable[str]) -> list[str]:
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
