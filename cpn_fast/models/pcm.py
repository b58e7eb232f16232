"""Pixel features for refinement and the pixel correlation module (PCM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MID_CHANNELS, HIGH_CHANNELS, IMAGE_CHANNELS = 64, 128, 3
FEATURE_CHANNELS = IMAGE_CHANNELS + MID_CHANNELS + HIGH_CHANNELS
EMBEDDING_CHANNELS = 192


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize inside the network (corners aligned).

    Args:
        maps: float [M, C, h, w].
        size: target (h, w) in pixels.

    Returns:
        float [M, C, *size].
    """
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def pixel_features(
    view: Tensor,  # [M, 3, H, W]
    mid: Tensor,  # [M, Cm, h', w']
    high: Tensor,  # [M, Ch, h'', w'']
    f_mid: nn.Conv2d,
    f_high: nn.Conv2d,
    size: tuple[int, int],
) -> Tensor:  # [M, 195, h, w]
    """X: the view's colours beside embeddings of two backbone stages, on the CAM grid (paper section 3.3).

    No gradient reaches the backbone from here: `mid` and `high` are detached.
    """
    parts = (
        resize(view, size),
        resize(F.relu(f_mid(mid.detach())), size),
        resize(F.relu(f_high(high.detach())), size),
    )
    return torch.cat(parts, dim=1)


def feature_heads(mid_channels: int, high_channels: int) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    """f_mid (to 64) and f_high (to 128), Kaiming; f9 (195 to 192), Xavier with gain 4; none has a bias."""
    f_mid = nn.Conv2d(mid_channels, MID_CHANNELS, 1, bias=False)
    f_high = nn.Conv2d(high_channels, HIGH_CHANNELS, 1, bias=False)
    f9 = nn.Conv2d(FEATURE_CHANNELS, EMBEDDING_CHANNELS, 1, bias=False)
    nn.init.kaiming_normal_(f_mid.weight)
    nn.init.kaiming_normal_(f_high.weight)
    nn.init.xavier_uniform_(f9.weight, gain=4)
    return f_mid, f_high, f9
