"""The crop of an image as a loading process gives it: made there, or packed, to be made where the network trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cpn_fast.config.training import AugmentOptions
from cpn_fast.data.loading.augment import Geometry, augment, draw_geometry, draw_jitter
from cpn_fast.files.errors import DataError
from cpn_kernels.ops.augmented_crop import Packed, augmented_crop, pack

JOINED = frozenset({"pixels", "weights"})
"""Tensors of a packed crop that have a length of their own: a batch has them one behind the other."""


def crop_tensors(
    image: np.ndarray, options: AugmentOptions, rng: np.random.Generator, fill: tuple[int, int, int], packed: bool
) -> tuple[dict[str, Tensor], Geometry]:
    """Augment one image, or pack it with what it takes; the random numbers are the same.

    Args:
        image: uint8 [H, W, 3] RGB.
        options: see `AugmentOptions`.
        rng: generator of (seed, epoch, sample id).
        fill: colour of the padding, uint8 RGB.
        packed: leave the crop to `made_crops`.

    Returns:
        "images", uint8 [crop, crop, 3], or the fields of `Packed`; and the geometry to transform maps with.

    Raises:
        DataError: for an image too large to be packed.
    """
    if not packed:
        crop, geometry = augment(image, options, rng, fill)
        return {"images": torch.from_numpy(crop)}, geometry
    geometry = draw_geometry(image.shape[0], image.shape[1], options, rng)
    try:
        parts = pack(image, geometry.place, draw_jitter(options.jitter, rng))
    except ValueError as error:
        raise DataError(f"{error}; use --augment-on host") from error
    return {name: torch.from_numpy(part) for name, part in parts._asdict().items()}, geometry


def made_crops(tensors: dict[str, Tensor], side: int, fill: tuple[int, int, int], device: torch.device) -> Tensor:
    """Make the crops of a batch of packed ones, whose tensors are taken out of `tensors`.

    Args:
        tensors: of the batch, on the CPU; pinned by the loader where there is a GPU, so that nothing waits.
        side: of the crops in pixels.
        fill: colour of the padding, uint8 RGB.
        device: where they are made.

    Returns:
        uint8 [B, side, side, 3] on the device.
    """
    packed = {name: tensors.pop(name) for name in Packed._fields}
    there = {name: part.to(device, non_blocking=True) for name, part in packed.items() if name != "numbers"}
    return augmented_crop(**there, numbers=packed["numbers"], side=side, fill=fill)
