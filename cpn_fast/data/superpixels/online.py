"""Superpixels of the crops themselves (`--superpixels online`), one crop on the host or a batch on a device."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from cpn_fast.config.training import PatchOptions
from cpn_fast.data.loading.augment import Geometry
from cpn_kernels.ops.superpixels import superpixels


def online_patches(crop: np.ndarray, geometry: Geometry, patch: PatchOptions) -> np.ndarray:
    """Superpixels of the part of a crop that shows the image.

    Args:
        crop: uint8 [crop, crop, 3] RGB.
        geometry: of the crop.
        patch: S_N, compactness and backend.

    Returns:
        int32 [crop, crop], segments from 0, -1 = padding.
    """
    (row, column), (rows, columns) = geometry.target, geometry.extent
    shown = np.ascontiguousarray(crop[row : row + rows, column : column + columns])
    labels = superpixels(torch.from_numpy(shown)[None], patch.segments, patch.compactness, patch.backend)[0]
    out = np.full(crop.shape[:2], -1, np.int32)
    out[row : row + rows, column : column + columns] = labels.numpy()
    return out


def online_patches_of_batch(
    images: Tensor,  # [B, crop, crop, 3]
    geometries: Tensor,  # [B, GEOMETRY_NUMBERS]
    patch: PatchOptions,
) -> Tensor:
    """The same of a batch on its device. Work is only queued there: the host knows every size and waits for nothing.

    Args:
        images: uint8, RGB crops.
        geometries: int64 on the CPU, rows of `device_maps.geometry_numbers`.
        patch: S_N, compactness and a backend that runs on the images' device.

    Returns:
        int32 [B, crop, crop] on the device, segments from 0, -1 = padding.
    """
    # Crops that show equally large parts go together; most show all of themselves.
    groups: dict[tuple[int, int], list[tuple[int, slice, slice]]] = defaultdict(list)
    for number, values in enumerate(geometries.tolist()):
        (row, column), (rows, columns) = values[7:9], values[9:11]
        groups[rows, columns].append((number, slice(row, row + rows), slice(column, column + columns)))
    out = torch.full(images.shape[:3], -1, dtype=torch.int32, device=images.device)
    for places in groups.values():
        shown = torch.stack([images[number, down, across] for number, down, across in places])
        labels = superpixels(shown, patch.segments, patch.compactness, patch.backend)
        for (number, down, across), of_crop in zip(places, labels, strict=True):
            out[number, down, across] = of_crop
    return out
