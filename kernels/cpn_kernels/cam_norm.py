"""Normalised class activation maps: the one rule that losses, refinement and labelling share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MapNorm = Literal["minmax", "max"]

EPS = 1e-5
MIN_PEAK = 1e-2
"""A channel whose maximum is below this holds no object: it is all zero, so nothing is ever divided by about eps."""


def channel_peak(raw: Tensor) -> Tensor:
    """Maximum of each rectified map, the `floor` of another view under the shared pair norm.

    Args:
        raw: logit maps A, float [B, K, h, w].

    Returns:
        float [B, K], >= 0.
    """
    return raw.relu().amax(dim=(2, 3))


def normalise_cam(
    raw: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, K]
    map_norm: MapNorm = "minmax",
    floor: Tensor | None = None,  # [B, K]
) -> Tensor:
    """Normalise logit maps A to Y in [0, 1] per image and class (eq. 16 of the paper; min-max is its ancestors').

    With R = relu(A): `minmax` is relu(R - min - eps) / (max - min + eps), `max` is R / (max + eps). The gradient flows
    through maximum and minimum as `amax` and `amin` define it: ties share.

    Args:
        raw: logit maps A, float [B, K, h, w].
        labels: 1 where the class is in the image, else 0; [B, K].
        map_norm: "minmax" or "max".
        floor: least maximum to divide by, [B, K], e.g. `channel_peak` of the full image for its hidden views. Where it
            exceeds the channel's own maximum, the channel is scaled by it.

    Returns:
        Foreground maps Y, [B, K, h, w]. A channel of an absent class, or one whose own maximum is below 1e-2, is
        exactly 0.

    Raises:
        ValueError: for an unknown `map_norm`.
    """
    rectified = raw.relu()
    own_peak = rectified.amax(dim=(2, 3), keepdim=True)
    peak = own_peak
    if floor is not None:
        floor = floor[:, :, None, None]
        peak = torch.where(own_peak >= floor, own_peak, floor)
    return _normalised(rectified, rectified.amin(dim=(2, 3), keepdim=True), peak, own_peak, labels, map_norm)


def normalise_on_scale_of(
    raw: Tensor,  # [B, K, h, w]
    scale: Tensor,  # [B, K, h, w]
    labels: Tensor,  # [B, K]
    map_norm: MapNorm = "minmax",
) -> Tensor:
    """Normalise logit maps by minimum and maximum of other ones, e.g. a hidden view's by those of the full image.

    Both are constants, so no map gains by a change of its peak alone: a gradient at a position stays there.

    Args:
        raw: logit maps A, float [B, K, h, w].
        scale: logit maps of the same classes whose minimum and maximum count.
        labels: 1 where the class is in the image, else 0; [B, K].
        map_norm: "minmax" or "max".

    Returns:
        Foreground maps, [B, K, h, w], 0 or more; above 1 where `raw` exceeds the maximum of `scale`. A channel of an
        absent class, or one whose `scale` has a maximum below 1e-2, is exactly 0.

    Raises:
        ValueError: for an unknown `map_norm`.
    """
    bounds = scale.detach().relu()
    lowest, peak = bounds.amin(dim=(2, 3), keepdim=True), bounds.amax(dim=(2, 3), keepdim=True)
    return _normalised(raw.relu(), lowest, peak, peak, labels, map_norm)


def _normalised(
    rectified: Tensor, lowest: Tensor, peak: Tensor, judged: Tensor, labels: Tensor, map_norm: MapNorm
) -> Tensor:
    """Rectified maps divided by `peak`; zero where the class is absent or the maximum `judged` too small."""
    if map_norm not in ("minmax", "max"):
        raise ValueError(f"map_norm is {map_norm!r}; expected 'minmax' or 'max'")
    if map_norm == "minmax":
        normalised = (rectified - lowest - EPS).relu() / (peak - lowest + EPS)
    else:
        normalised = rectified / (peak + EPS)
    kept = (labels > 0)[:, :, None, None] & ~(judged < MIN_PEAK)  # a NaN is kept: it must show
    return torch.where(kept, normalised, torch.zeros_like(normalised))


def with_background(foreground: Tensor) -> Tensor:
    """Put the background Y^0 = 1 - max_c Y^c before the foreground maps.

    Args:
        foreground: normalised maps Y, [B, K, h, w] in [0, 1].

    Returns:
        [B, K + 1, h, w], background at channel 0.
    """
    background = 1 - foreground.amax(dim=1, keepdim=True)
    return torch.cat([background, foreground], dim=1)


def winner_mask(maps: Tensor) -> Tensor:
    """The mask W: 1 for the background and for each pixel's strongest foreground class, 0 for the other classes.

    Args:
        maps: normalised maps with background, [B, K + 1, h, w].

    Returns:
        [B, K + 1, h, w] of the same dtype, without gradient. Equal classes: the first one wins.
    """
    winner = maps[:, 1:].argmax(dim=1, keepdim=True)
    classes = torch.arange(maps.shape[1] - 1, device=maps.device)[None, :, None, None]
    background = torch.ones_like(maps[:, :1])
    return torch.cat([background, (winner == classes).to(maps.dtype)], dim=1).detach()
