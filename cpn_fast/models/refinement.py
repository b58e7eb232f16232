"""PCM on a backbone's own features: refinement that needs no training."""

from __future__ import annotations

import torch
from torch import Tensor

from cpn_fast.models.pcm import resize
from cpn_kernels.cam_norm import MapNorm, normalise_cam, winner_mask, with_background
from cpn_kernels.ops.pixel_correlation import pixel_correlation

LAYER_NORM_EPS = 1e-5

DISTINCT = 1e-6
"""Least mean square of a position's features about the image's mean, those of a stage having 1 over all positions."""


def layer_normalised(features: Tensor) -> Tensor:
    """Each pixel's features [M, C, h, w] with mean 0 and variance 1 over its channels."""
    features = features.float()
    centred = features - features.mean(dim=1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + LAYER_NORM_EPS)


def raw_features(mid: Tensor, high: Tensor, size: tuple[int, int]) -> Tensor:
    """What "raw" compares pixels by: two backbone stages, layer-normalised over channels, side by side.

    Args:
        mid: float [M, Cm, h', w'].
        high: float [M, Ch, h'', w''].
        size: the CAM grid (h, w).

    Returns:
        float32 [M, Cm + Ch, h, w].
    """
    return torch.cat([resize(layer_normalised(stage), size) for stage in (mid, high)], dim=1)


def winner_maps(
    cam: Tensor,  # [M, K, h, w]
    labels: Tensor,  # [M, K]
    map_norm: MapNorm = "minmax",
    floor: Tensor | None = None,  # [M, K]
) -> Tensor:  # [M, K + 1, h * w]
    """Y * W, what refinement spreads: normalised maps with background, each pixel's losing classes set to 0."""
    maps = with_background(normalise_cam(cam.detach().float(), labels, map_norm=map_norm, floor=floor))
    return (maps * winner_mask(maps)).flatten(2)


def refine_raw(
    cam: Tensor,  # [M, K, h, w]
    features: Tensor,  # [M, E, h, w]
    labels: Tensor,  # [M, K]
    map_norm: MapNorm = "minmax",
    power: float = 1.0,
) -> Tensor:  # [M, K, h, w]
    """PCM without a head: `cam` spread over pixels whose features point the same way about the image's mean.

    Args:
        cam: un-normalised CAM.
        features: from `raw_features`; the image's mean vector is taken out here, since features that share a large
            common part are all alike by their plain cosine.
        labels: 1 where the class is in the image.
        map_norm: normalisation of the CAM before it is spread.
        power: exponent of the affinities.

    Returns:
        The foreground of Y_pcm, before normalisation.
    """
    return spread_raw(winner_maps(cam, labels, map_norm).unflatten(2, cam.shape[2:]), features, power)[:, 1:]


def spread_raw(
    maps: Tensor,  # [M, C, h, w]
    features: Tensor,  # [M, E, h, w]
    power: float = 1.0,
) -> Tensor:  # [M, C, h, w]
    """Each map's mean over all pixels, weighted by how alike their features are about the image's mean.

    Args:
        maps: float >= 0.
        features: from `raw_features`.
        power: exponent of the affinities.
    """
    embedding = features.flatten(2)
    centred = embedding - embedding.mean(dim=2, keepdim=True)
    flat = maps.flatten(2)
    spread = pixel_correlation(centred, flat, power=power)
    # What rounding leaves of features that equal the mean has no direction: such a position keeps its own map.
    distinct = centred.square().mean(dim=1, keepdim=True) > DISTINCT
    return torch.where(distinct, spread, flat).unflatten(2, maps.shape[2:])
