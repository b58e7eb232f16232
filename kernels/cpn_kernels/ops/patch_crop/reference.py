"""Reference implementation of patch crops, in plain torch: some forty kernels on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = 12
"""Columns of a row that describes a crop; see the public function."""


def patch_crop(maps: Tensor, crops: Tensor, side: int) -> Tensor:
    """Patches int32 [B, side, side]; see the public function."""
    begin, flip = crops[:, 0], crops[:, 5]
    size, scaled, source, target, extent = (crops[:, at : at + 2] for at in (1, 3, 6, 8, 10))
    along = torch.arange(side, device=maps.device)
    places, seen = [], []
    for axis in range(2):
        offset = along - target[:, axis, None]
        seen.append((offset >= 0) & (offset < extent[:, axis, None]))
        place = source[:, axis, None] + offset
        if axis == 1:
            place = torch.where(flip[:, None] > 0, scaled[:, 1, None] - 1 - place, place)
        nearest = (2 * place + 1) * size[:, axis, None] // (2 * scaled[:, axis, None])
        places.append(torch.where(seen[axis], nearest, 0))
    at = begin[:, None, None] + places[0][:, :, None] * size[:, 1, None, None] + places[1][:, None, :]
    patches = maps[at].to(torch.int32)
    if maps.dtype == torch.int16:
        patches &= 0xFFFF
    return torch.where(seen[0][:, :, None] & seen[1][:, None, :], patches, -1)
