"""The pixel-region correlation module (PRCM)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

REGION_TEMPERATURE = 0.1
"""Maps lie in [0, 1]: at temperature 1 the regions of all classes would nearly coincide."""
RELEASED_TEMPERATURE = 1.0
COSINE_SCALE = 10.0

PrcmForm = Literal["softmax", "released"]


def region_features(winners: Tensor, features: Tensor, temperature: float = REGION_TEMPERATURE) -> Tensor:
    """Z: one feature vector per class, the softmax-weighted mean of the pixel features over the class's map.

    Args:
        winners: float [M, C, N], the winner-masked class maps Y * W in [0, 1].
        features: float [M, D, N], the pixel features X.
        temperature: of the softmax over the pixels; the lower, the more the strongest pixels count.

    Returns:
        float [M, C, D].
    """
    weights = torch.softmax(winners / temperature, dim=2)
    return weights @ features.transpose(1, 2)


def released_attention(regions: Tensor, embedding: Tensor, phi: Tensor) -> Tensor:
    """The attention of the released code, with the mistake that its figures came with.

    There the embedded regions lie as [E, C] in memory and are read as [C, E] without a transpose, so a row mixes
    channels and classes; with the softmax over pixels a row is at first a spike on one pixel.

    Args:
        regions: float [M, C, D], the region features of all classes of the data set and the background.
        embedding: float [M, E, N], f9(X).
        phi: float [E, D], the linear map of the region features.

    Returns:
        float [M, C, N], each row a distribution over the pixels.
    """
    keys = F.relu(regions @ phi.t())
    misread = keys.transpose(1, 2).reshape(keys.shape)
    return torch.softmax(misread @ F.relu(embedding) / keys.shape[1] ** 0.5, dim=2)


def pixel_region_correlation(
    winners: Tensor,  # [M, C, N]
    features: Tensor,  # [M, D, N]
    embedding: Tensor,  # [M, E, N]
    phi: Tensor,  # [E, D]
    present: Tensor,  # bool [M, C]
    form: PrcmForm = "softmax",
) -> Tensor:  # [M, C, N]
    """Refine class maps by how well each pixel fits each class's region (paper section 3.3).

    Args:
        winners: Y * W, in [0, 1].
        features: X, the pixel features.
        embedding: f9(X), before any normalisation.
        phi: the linear map of the region features.
        present: which classes (background included) are in the image; the others are masked out of the softmax.
        form: "softmax" over classes of 10 * cosine, or "released" (`released_attention`; C is then the number of all
            classes and the background: maps of absent classes must not be left out).

    Returns:
        Y_prcm; rows of absent classes are zero.
    """
    if form == "released":
        attention = released_attention(region_features(winners, features, RELEASED_TEMPERATURE), embedding, phi)
    else:
        regions = region_features(winners, features) @ phi.t()
        cosine = F.normalize(regions, dim=2) @ F.normalize(embedding, dim=1)
        absent = ~present[:, :, None]
        attention = torch.softmax((COSINE_SCALE * cosine).masked_fill(absent, -1e4), dim=1)
    return winners * attention * present[:, :, None].to(winners.dtype)
