"""What the validations of all trainings share: resized samples, pictures side by side, the training mode kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from cpn_fast.data.types import VOID, Sample
from cpn_fast.files.errors import NonFiniteError
from cpn_fast.files.palette import voc_palette

log = logging.getLogger(__name__)

NUM_IMAGES = 4


PICTURE_SIDE = 320


def check_finite_maps(what: str, *arrays: NDArray[np.floating]) -> None:
    """Raise NonFiniteError, naming `what` they are, if arrays that a network gave hold NaN or infinity."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise NonFiniteError(f"not finite: the network's {what} in the validation")


def never() -> bool:
    """Nobody asks to stop."""
    return False


def warn_without_foreground(masks: Iterable[NDArray[np.uint8] | None]) -> None:
    """Warn where validation masks uint8 [H, W] hold no class: all background would be perfect, so no mIoU is given."""
    known = [mask for mask in masks if mask is not None]
    if known and not any(((mask > 0) & (mask < VOID)).any() for mask in known):
        log.warning(
            "no pixel of any class in the %d masks of the validation: no mIoU is given. Is 255, which means "
            "void, meant as foreground?", len(known),
        )  # fmt: skip


@contextmanager
def training_mode_kept(net: nn.Module) -> Iterator[None]:
    """Give every module its training mode back after the block, however that ends."""
    was_training = [module for module in net.modules() if module.training]
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def resized(sample: Sample, long_side: int) -> Sample:
    """Image and mask at another size, `long_side` in pixels; the mask by nearest neighbour."""
    height, width = sample.image.shape[:2]
    factor = long_side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    image = cv2.resize(sample.image, size, interpolation=interpolation)
    mask = sample.mask if sample.mask is None else cv2.resize(sample.mask, size, interpolation=cv2.INTER_NEAREST)
    return Sample(sample.record, np.ascontiguousarray(image), sample.labels, mask)


def side_by_side(tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of one size in a row: uint8 [H, W, 3] each -> uint8 [h, n w, 3] with max(h, w) at most 320."""
    height, width = tiles[0].shape[:2]
    factor = min(1.0, PICTURE_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.concatenate([cv2.resize(tile, size, interpolation=cv2.INTER_AREA) for tile in tiles], axis=1)


def masks_beside(image: NDArray[np.uint8], *masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Image uint8 [H, W, 3] and masks [H, W], each in its colours over it, side by side: uint8 [h, n w, 3]."""
    shown = [cv2.addWeighted(image, 0.3, voc_palette()[mask], 0.7, 0).astype(np.uint8) for mask in masks]
    return side_by_side([image, *shown])
