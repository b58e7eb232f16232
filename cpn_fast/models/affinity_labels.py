"""What AffinityNet learns from: labels of the pixels that scores with a strong and a weak background agree on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cpn_fast.models.affinity_net import VOID

LOW_SHARE, HIGH_SHARE = 2 / 3, 4.0
"""Low and high background exponent as shares of the best one: SEAM's 4 and 24 beside its 6."""

_NO_SCORE = 1e-5


def alpha_of_beta(beta: float) -> float:
    """The background exponent whose threshold is `beta`: foreground wins where y > (1 - y) ** alpha, that is y > beta.

    Args:
        beta: background score, in (0, 1).

    Returns:
        log(beta) / log(1 - beta) > 0; 0.276 gives 4.0, 0.123 gives 16.0.

    Raises:
        ValueError: for a beta outside of (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; expected a score in (0, 1)")
    return math.log(beta) / math.log1p(-beta)


def background_exponents(beta: float, low: float = LOW_SHARE, high: float = HIGH_SHARE) -> tuple[float, float]:
    """Low and high background exponent around the best background score of a run.

    The low exponent makes background strong, so what foreground is left is certain; the high one the other way round.

    Args:
        beta: the best background score of the sweep, or the one that was given; in (0, 1).
        low: low exponent as a share of that score's own, in (0, 1).
        high: high exponent as a share of it, above 1.

    Raises:
        ValueError: for values outside of these ranges.
    """
    if not 0 < low < 1 < high:
        raise ValueError(f"low is {low}, high is {high}; expected 0 < low < 1 < high: they bracket the best exponent")
    alpha = alpha_of_beta(beta)
    return low * alpha, high * alpha


def with_background_exponent(foreground: Tensor, alpha: float) -> Tensor:
    """Put the background (1 - max_c Y^c) ** alpha before the foreground maps.

    Args:
        foreground: normalised maps Y, float [B, K, H, W] in [0, 1], K >= 1.
        alpha: background exponent > 0.

    Returns:
        float [B, K + 1, H, W], background at channel 0.
    """
    background = (1 - foreground.amax(dim=1, keepdim=True)) ** alpha
    return torch.cat([background, foreground], dim=1)


def affinity_labels(low: Tensor, high: Tensor, stride: int, void: int = VOID) -> Tensor:
    """Labels on the network's grid from scores with a low and with a high background exponent.

    Scores are averaged over each cell of the grid, of what the image has of it. A cell whose best class is foreground
    by the low exponent gets that class; one that is background by the high exponent is background, whatever the low
    exponent says; the others are void, and so are cells without any score, such as padding of a crop.

    Args:
        low: scores, such as a dense CRF's, float [B, C, H, W] >= 0 with background at channel 0 and class c at
            channel c, made with the low background exponent. 0 in all channels = no score.
        high: the same with the high background exponent.
        stride: side of a grid cell in pixels >= 1.
        void: label of what is not known; not below C.

    Returns:
        int64 [B, ceil(H / stride), ceil(W / stride)].

    Raises:
        ValueError: for shapes that do not match, a stride below 1, or a void label that is a class.
    """
    if low.ndim != 4 or low.shape != high.shape or low.shape[1] < 2:
        raise ValueError(f"low is {tuple(low.shape)}, high is {tuple(high.shape)}; expected both [B, C >= 2, H, W]")
    if stride < 1 or 0 <= void < low.shape[1]:
        raise ValueError(f"stride is {stride}, void is {void}; expected stride >= 1 and no class ({low.shape[1]})")
    pooled_low, pooled_high = (F.avg_pool2d(scores, stride, ceil_mode=True) for scores in (low, high))
    kept, certain = pooled_low.argmax(dim=1), pooled_high.argmax(dim=1)
    labels = torch.where(kept == 0, void, kept)
    labels = torch.where(certain == 0, 0, labels)
    no_score = torch.maximum(pooled_low.amax(dim=1), pooled_high.amax(dim=1)) < _NO_SCORE
    return torch.where(no_score, void, labels)
