"""Pixel labels for the training of a CAM network: a folder of masks, in which void says nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.sources.base import check_same_size
from cpn_fast.data.types import VOID, Record
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.mask_folder import MASK_FOLDER, MaskFolder, seen_instead
from cpn_fast.inference.class_mapping import ClassMapping

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PixelMasks:
    """Masks by record.

    Attributes:
        folder: the masks.
        mapping: the folder's classes in the training's order.
    """

    folder: MaskFolder
    mapping: ClassMapping

    def read(self, record: Record, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The record's mask uint8 [H, W]; all void where the folder has none.

        Raises:
            DataError: for a mask that cannot be read, or does not fit the image [H, W, 3] or the classes.
        """
        if not self.folder.has(record.id):
            return np.full(image.shape[:2], VOID, np.uint8)
        mask = self.folder.read(record.id, len(self.mapping.labels))
        check_same_size(dataclasses.replace(record, mask_path=self.folder.mask_path(record.id)), image, mask)
        return self.mapping.mask(mask)


def open_pixel_masks(path: Path, classes: Sequence[str], records: Sequence[Record]) -> PixelMasks:
    """Find the masks that `--pixel-masks` names.

    Args:
        path: the folder that `cpn label` wrote, or one of masks ID.png.
        classes: the K foreground classes of the training.
        records: the images that are trained on.

    Raises:
        DataError: for a folder without masks, with a class that the training does not know, or without a mask of any of
            the images.
    """
    folder = find_masks(path)
    if folder is None:
        hint = seen_instead(path)
        raise DataError(
            f"--pixel-masks {path}: no masks found ({MASK_FOLDER}/ID.png or ID.png); give the folder that `cpn label "
            "--void-band` wrote"
            f"{hint}"
        )
    folder.warn_if_half_done()
    named = folder.classes() or tuple(classes)
    unknown = [name for name in named if name not in classes]
    if unknown:
        raise DataError(
            f"--pixel-masks {path}: labelmap.txt names {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}, "
            f"expected classes among {', '.join(classes)}; label with a run of these classes"
        )
    without = sum(not folder.has(record.id) for record in records)
    if without == len(records):
        raise DataError(
            f"--pixel-masks {path}: none of the {without} images has a mask there, the first expected at "
            f"{folder.mask_path(records[0].id)}; label the split that is trained on"
        )
    if without:
        log.warning("%s: %d of %d images have no mask; image labels alone teach them", path, without, len(records))
    return PixelMasks(folder, ClassMapping.between(named, classes))
