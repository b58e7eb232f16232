"""The pixel-region correlation module (PRCM)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

REGION_TEMPERATURE = 0.1
COSINE_SCALE = 10.0

PrcmForm = Literal["softmax", "released"]


def region_features(winners: Tensor, features: Tensor) -> Tensor:
    """Z: one feature vector per class, the softmax-weighted mean of the pixel features over the class's map.

    Args:
        winners: float [M, C, N], the winner-masked class maps Y * W in [0, 1].
        features: float [M, D, N], the pixel features X.

    Returns:
        float [M, C, D].
    """
    weights = torch.softmax(winners / REGION_TEMPERATURE, dim=2)
    return weights @ features.transpose(1, 2)


def pixel_region_correlation(
    winners: Tensor,  # [M, C, N]
    features: Tensor,  # [M, D, N]
    embedding: Tensor,  # [M, E, N]
    phi: Tensor,  # [E, D]
    present: Tensor,  # bool [M, C]
    form: PrcmForm = "softmax",
    num_channels: int | None = None,
) -> Tensor:  # [M, C, N]
    """Refine class maps by how well each pixel fits each class's region (paper section 3.3).

    Args:
        winners: Y * W, in [0, 1].
        features: X, the pixel features.
        embedding: f9(X), before any normalisation.
        phi: the linear map of the region features.
        present: which classes (background included) are in the image; the others are masked out of the softmax.
        num_channels: class maps of the whole data set, by whose square root "released" divides; None = C. It differs
            where maps of absent classes were left out.
        form: "softmax" over classes of 10 * cosine, or "released": ReLU embeddings, dot product over the square root
            of the class count, softmax over pixels.

    Returns:
        Y_prcm; rows of absent classes are zero.
    """
    regions = region_features(winners, features) @ phi.t()
    if form == "released":
        correlation = F.relu(regions) @ F.relu(embedding) / (num_channels or winners.shape[1]) ** 0.5
        attention = torch.softmax(correlation, dim=2)
    else:
        cosine = F.normalize(regions, dim=2) @ F.normalize(embedding, dim=1)
        absent = ~present[:, :, None]
        attention = torch.softmax((COSINE_SCALE * cosine).masked_fill(absent, -1e4), dim=1)
    return winners * attention * present[:, :, None].to(winners.dtype)
