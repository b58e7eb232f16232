"""The masks that are looked at, and where their images lie."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_fast.convert.folder import MaskItem, select_masks
from cpn_fast.data.sources.base import FileSource, folders_of
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.labelmap import VOID, VOID_COLOUR
from cpn_fast.files.mask_folder import MaskFolder, read_fitting_mask
from cpn_fast.files.member import ImageFile
from cpn_fast.files.palette import page_palette, voc_palette
from cpn_fast.files.regular import is_regular

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReviewItem:
    """One mask.

    Attributes:
        mask: where it is, and how it is read.
        confidence: 0..1, by the manifest; None where it says none.
        image: its image; None where that was not found.
    """

    mask: MaskItem
    confidence: float | None
    image: ImageFile | None = None

    @property
    def id(self) -> str:
        """The mask's id."""
        return self.mask.id

    @property
    def key(self) -> str:
        """The name of its small pictures, which any file system and address can hold."""
        return hashlib.sha256(self.id.encode("utf-8")).hexdigest()[:24]

    def read(self) -> NDArray[np.uint8]:
        """The mask, uint8 [H, W]. Raises DataError where it cannot be read, or has another size than its image."""
        mask = self.mask
        return read_fitting_mask(mask.mask_path, mask.num_classes, self.image, mask.labelmap)


@dataclass(frozen=True)
class ReviewSet:
    """The masks of a folder, least confident first, those without a confidence last.

    Attributes:
        folder: where they are.
        items: one per mask.
        classes: names of mask values 1..K.
        palette: uint8 [256, 3], the colours of the page.
        reads: folders of images, among which nothing is written.
    """

    folder: MaskFolder
    items: tuple[ReviewItem, ...]
    classes: tuple[str, ...]
    palette: NDArray[np.uint8]
    reads: tuple[Path, ...] = ()

    @property
    def paths(self) -> dict[str, ImageFile]:
        """The PNG of each mask by its id."""
        return {item.id: item.mask.mask_path for item in self.items}


def open_masks(masks: Path, data: str | None = None, classes: Path | None = None) -> ReviewSet:
    """Look through a folder of masks and find their images, without opening any.

    Args:
        masks: the folder.
        data: source in which images are found by their ids; None = where the manifest says.
        classes: class names, one a line; None = the folder's `labelmap.txt`.

    Raises:
        DataError: for a folder without masks or classes, or a source that cannot be opened or has none of the images.
    """
    selection = select_masks(masks, classes)
    folder = find_masks(masks)
    assert folder is not None
    source = open_source(data) if data else None
    entries = folder.manifest().entries()
    images = _known_images(entries, folder.root) if source is None else _images_of(source)
    items = []
    for mask in selection.items:
        if not _is_text(mask.id):
            log.warning("%s: a name that is no text, left out; rename it and its image", ascii(str(mask.mask_path)))
            continue
        confidence = entries.get(mask.id, {}).get("confidence")
        items.append(ReviewItem(mask, confidence, images.get(mask.id)))
    items.sort(key=lambda item: (item.confidence is None, item.confidence, item.id))
    _check_images(items, data, folder)
    palette = selection.palette
    if np.array_equal(palette[1 : len(selection.classes) + 1], voc_palette()[1 : len(selection.classes) + 1]):
        palette = page_palette().copy()
        palette[VOID] = VOID_COLOUR
    return ReviewSet(folder, tuple(items), selection.classes, palette, folders_of(source) if source else ())


def _images_of(source: Source) -> dict[str, ImageFile]:
    """Image path by id, over all splits; what cannot be used of a split does not matter here."""
    found: dict[str, ImageFile] = {}
    for split in source.splits():
        records = source.scan(split).records if isinstance(source, FileSource) else source.records(split)
        for record in records:
            found.setdefault(record.id, record.image_path)
    return found


def _known_images(entries: Mapping[str, Mapping[str, Any]], root: Path) -> dict[str, ImageFile]:
    """The images that the manifest names and that are there.

    A relative path is one of the folder where the masks were made: the present one, else one around the masks.
    """
    found: dict[str, ImageFile] = {}
    places = [Path(), *root.resolve().parents[:3]]
    for name, entry in entries.items():
        image = Path(entry.get("image", ""))
        for number, place in enumerate(places[:1] if image.is_absolute() else places):
            if is_regular(place / image):
                found[name] = place / image
                places.insert(0, places.pop(number))  # the others lie there too
                break
    return found


def _check_images(items: list[ReviewItem], data: str | None, folder: MaskFolder) -> None:
    without = [item.id for item in items if item.image is None]
    if data is not None and len(without) == len(items):
        raise DataError(
            f"--data {data}: has no image of an id like {items[0].id!r}; give the source that the masks of "
            f"{folder.root} were made of"
        )
    if without:
        log.warning(
            "%s: the images of %d of %d masks were not found, that of %s for instance; these are shown without: give "
            "--data SOURCE, where they are found by their ids",
            folder.root, len(without), len(items), without[0],
        )  # fmt: skip


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
