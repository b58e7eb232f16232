"""The losses of the complementary pair in plain torch: one image at a time, `topk` for the hardest elements.

Written from the equations, without a line of cpn_kernels: minima and maxima per class, background as one more map, the
winner masks by `argmax`, the hardest fifth of the present classes' elements by `topk`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS, LEAST_PEAK, HARDEST = 1e-5, 1e-2, 0.2


def normalised(raw: Tensor, label: Tensor) -> Tensor:
    """Min-max normalised foreground maps [K, h, w] of one view; absent and empty classes are zero."""
    positive = F.relu(raw)
    flat = positive.flatten(1)
    lowest, highest = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    scaled = F.relu(positive - lowest - EPS) / (highest - lowest + EPS)
    alive = (label[:, None, None] > 0) & (highest >= LEAST_PEAK)
    return scaled * alive


def add_background(maps: Tensor) -> Tensor:
    return torch.cat([1 - maps.amax(0, keepdim=True), maps])


def rest_of_winner(full: Tensor, part: Tensor, share: Tensor) -> Tensor:
    """What a view that shows `share` leaves of the winning classes of I, [K + 1, h, w]."""
    mask = torch.zeros_like(full)
    mask[0] = 1
    mask[1:].scatter_(0, full[1:].argmax(0, keepdim=True), 1)
    return torch.minimum((full * mask - share * part * mask).clamp(min=0), 1 - share)


def hardest_mean(errors: Tensor, label: Tensor) -> Tensor:
    """Mean of the largest fifth of the elements of the background and of the classes that are there."""
    present = torch.cat([label.new_ones(1), label]) > 0
    pool = errors[present].flatten()
    return pool.topk(max(1, int(HARDEST * pool.numel()))).values.mean()


def cp_loss(
    cam_triplet: Tensor,  # [3B, K, h, w]
    rcam_triplet: Tensor,  # [3B, K, h, w]
    labels: Tensor,  # [B, K]
    visible: Tensor,  # [B]
    tcp_target: str,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(L_tcp, L_cpcr) with the defaults of `cpn_kernels.ops.cp_loss`, image by image.

    Args:
        cam_triplet: raw maps of (I.., I_h.., I_hbar..).
        rcam_triplet: raw refined maps, in the same order.
        labels: 1 where the class is in the image.
        visible: share of the image that I_h shows.
        tcp_target: side of the first term that stands still, "pair" or "image".
        size: (H, W) to which maps are upsampled first.
    """
    if size is not None:
        cam_triplet = F.interpolate(cam_triplet, size, mode="bilinear", align_corners=True)
        rcam_triplet = F.interpolate(rcam_triplet, size, mode="bilinear", align_corners=True)
    images = len(labels)
    tcp, cpcr = [], []
    for image, (label, share) in enumerate(zip(labels, visible, strict=True)):
        full, hidden, rest = (normalised(cam_triplet[image + view * images], label) for view in range(3))
        full_r, hidden_r, rest_r = (normalised(rcam_triplet[image + view * images], label) for view in range(3))
        pair = share * hidden + (1 - share) * rest
        first = (pair - full.detach()).abs() if tcp_target == "image" else (pair.detach() - full).abs()
        pair_r = (share * hidden_r + (1 - share) * rest_r).detach()
        tcp.append(first.mean() + (pair_r - full_r).abs().mean())

        with torch.no_grad():
            full_b, hidden_b, rest_b = add_background(full), add_background(hidden), add_background(rest)
            wanted_rest = rest_of_winner(full_b, hidden_b, share)
            wanted_hidden = rest_of_winner(full_b, rest_b, 1 - share)
        errors = (wanted_rest - (1 - share) * add_background(rest_r)).abs()
        other = (wanted_hidden - share * add_background(hidden_r)).abs()
        cpcr.append(hardest_mean(errors, label) + hardest_mean(other, label))
    return torch.stack(tcp).mean(), torch.stack(cpcr).mean()
