"""Reference implementation of the CP triplet, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpn_kernels.philox import first_word

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _constant(values: Sequence[float], device: torch.device) -> Tensor:
    """float32 [n] on the device; a GPU fills it itself, since a copy from the host would make the host wait."""
    if device.type == "cuda":
        return torch.stack([torch.full((), value, dtype=torch.float32, device=device) for value in values])
    return torch.tensor(values, dtype=torch.float32, device=device)


def normalise_images(images: Tensor, mean: Sequence[float] | Tensor | None = None) -> Tensor:
    """(x / 255 - mean) / std of uint8 [B, H, W, 3] as float32 [B, 3, H, W]; see the public function."""
    if isinstance(mean, Tensor):
        centre = mean.to(dtype=torch.float32, device=images.device)
    else:
        centre = _constant(IMAGENET_MEAN if mean is None else mean, images.device)
    spread = _constant(IMAGENET_STD, images.device)
    return ((images / 255 - centre) / spread).permute(0, 3, 1, 2)


def grid_patches(sides: Tensor, height: int, width: int) -> Tensor:
    """Patches of the grids with these sides, [B], row by row from the upper left corner; int [B, height, width]."""
    sides = sides[:, None, None]
    rows = torch.arange(height, device=sides.device)[None, :, None] // sides
    columns = torch.arange(width, device=sides.device)[None, None] // sides
    return rows * ((width + sides - 1) // sides) + columns


def hidden_pixels(patches: Tensor, keys: Tensor, p_hidden: float) -> Tensor:
    """Pixels whose patch is hidden in I_h, padding excluded; bool [B, H, W]."""
    threshold = math.floor(p_hidden * 2**32)
    padding = patches < 0
    patch = patches.long().clamp(min=0)
    if torch.compiler.is_compiling() or patches.numel() == 0:
        # The number of patches is data; a traced graph draws for each pixel instead of reading it on the host.
        hidden = first_word(keys[:, None, None], patch) < threshold
    else:
        ids = torch.arange(int(patch.max()) + 1, device=patches.device)
        hidden_patches = first_word(keys[:, None], ids[None]) < threshold
        hidden = hidden_patches.gather(1, patch.flatten(1)).view_as(patch)
    return hidden & ~padding


def cp_triplet(
    images: Tensor, patches: Tensor, keys: Tensor, p_hidden: float, mean: Sequence[float] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Triplet [3B, 3, H, W] and visible fraction [B]; see the public function."""
    if patches.ndim == 1:
        patches = grid_patches(patches, images.shape[1], images.shape[2])
    inside = patches >= 0
    hidden = hidden_pixels(patches, keys, p_hidden)
    visible = inside & ~hidden
    normalised = normalise_images(images, mean)
    zero = torch.zeros((), dtype=normalised.dtype, device=normalised.device)
    views = [torch.where(shown[:, None], normalised, zero) for shown in (inside, visible, hidden)]
    image_pixels = inside.sum(dim=(1, 2)).clamp(min=1)
    visible_fraction = visible.sum(dim=(1, 2)).float() / image_pixels.float()
    return torch.cat(views), visible_fraction
