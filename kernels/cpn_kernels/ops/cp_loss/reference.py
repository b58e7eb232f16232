"""Reference implementation of the complementary-pair losses, in plain torch. It never waits for the host."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cpn_kernels.cam_norm import channel_peak, normalise_cam, normalise_on_scale_of, winner_mask
from cpn_kernels.ops.cp_loss.options import CpLossOptions

Triplet = tuple[Tensor, Tensor, Tensor]


def ohem_mean(errors: Tensor, pool_mask: Tensor | None, fraction: float) -> Tensor:
    """Online hard example mining: per image the mean of its largest errors, then the mean over images.

    Per image, the k largest of the n elements in the pool count, k = max(1, floor(fraction * n)).

    Args:
        errors: >= 0, float [B, C, h, w].
        pool_mask: channels that belong to the pool, [B, C], nonzero = in; None = all of them. At least one per image.
        fraction: share of the pool that counts, in (0, 1].

    Returns:
        Scalar.
    """
    channels, height, width = errors.shape[1:]
    if pool_mask is None:
        if fraction == 1:
            return errors.mean()
        kept = max(1, math.floor(fraction * channels * height * width))
        return errors.flatten(1).topk(kept, dim=1, sorted=False).values.mean()
    pool = pool_mask > 0
    pool_elements = pool.sum(dim=1) * (height * width)
    pooled = pool[:, :, None, None]
    if fraction == 1:
        sums = torch.where(pooled, errors, torch.zeros_like(errors)).sum(dim=(1, 2, 3))
        return (sums / pool_elements).mean()
    # Pools differ in size from image to image: sort as many as the largest could need, and weigh by rank.
    most = max(1, math.floor(fraction * channels * height * width))
    hardest = torch.where(pooled, errors, torch.full_like(errors, -1)).flatten(1).topk(most, dim=1).values
    kept_elements = (pool_elements.double() * fraction).floor().clamp(min=1)
    counts = torch.arange(most, device=errors.device) < kept_elements[:, None]
    sums = torch.where(counts, hardest, torch.zeros_like(hardest)).sum(dim=1)
    return (sums / kept_elements.to(errors.dtype)).mean()


def raw_views(raw_triplet: Tensor, size: tuple[int, int] | None) -> Triplet:
    """Raw maps of I, I_h and I_hbar, each [B, K, H, W], at the losses' resolution and in at least single precision."""
    raw_triplet = raw_triplet if raw_triplet.dtype == torch.float64 else raw_triplet.float()
    if size is not None:
        raw_triplet = F.interpolate(raw_triplet, size, mode="bilinear", align_corners=True)
    full, hidden, complement = raw_triplet.chunk(3)
    return full, hidden, complement


def normalise_pair_map(raw: Tensor, full: Tensor, labels: Tensor, options: CpLossOptions) -> Tensor:
    """Normalised foreground maps [B, K, H, W] of what the pair shows, where the full image shows `full`; both raw."""
    if options.pair_norm == "image":
        return normalise_on_scale_of(raw, full, labels, options.map_norm)
    floor = channel_peak(full.detach()) if options.pair_norm == "shared" else None
    return normalise_cam(raw, labels, options.map_norm, floor)


def normalised_triplet(raw: Triplet, labels: Tensor, options: CpLossOptions) -> Triplet:
    """Normalised foreground maps of I, I_h and I_hbar from their raw maps."""
    full, hidden, complement = raw
    if options.pair_norm == "image":
        whole = normalise_on_scale_of(full, full, labels, options.map_norm)
    else:
        whole = normalise_cam(full, labels, options.map_norm)
    return (
        whole,
        normalise_pair_map(hidden, full, labels, options),
        normalise_pair_map(complement, full, labels, options),
    )


def union_error(raw: Triplet, whole: Tensor, labels: Tensor, visible: Tensor, options: CpLossOptions) -> Tensor:
    """L_tcp's first term with the pair's union as its constant target: mean |N(max(A_h, A_hbar)) - Y_o|.

    Args:
        raw: raw maps of I, I_h and I_hbar.
        whole: Y_o, [B, K, h, w].
        labels: [B, K].
        visible: lambda, [B, 1, 1, 1]; a view that shows nothing counts as zero.
        options: of the losses.
    """
    full, hidden, complement = (maps.detach() for maps in raw)
    zero = torch.zeros_like(hidden)
    shown = torch.maximum(torch.where(visible > 0, hidden, zero), torch.where(visible < 1, complement, zero))
    return (normalise_pair_map(shown, full, labels, options) - whole).abs().mean()


def background_first(foreground: Tensor) -> Tensor:
    """Foreground maps behind their background, which is not below 0 where `pair_norm` "image" lets a map exceed 1."""
    return torch.cat([(1 - foreground.amax(dim=1, keepdim=True)).clamp(min=0), foreground], dim=1)


def triplet_error(maps: Triplet, visible: Tensor, target: str) -> Tensor:
    """One term of eq. 14: mean |(lambda Y_h + lambda_bar Y_hbar) - Y_o| over images, classes and positions.

    `target` is the side without gradient: "pair", "image" (that is Y_o) or "none".
    """
    full, hidden, complement = maps
    pair = visible * hidden + (1 - visible) * complement
    pair = pair.detach() if target == "pair" else pair
    full = full.detach() if target == "image" else full
    return (pair - full).abs().mean()


def cross_target(full: Tensor, part: Tensor, share: Tensor, target: str) -> Tensor:
    """Target of one term of eq. 15 for the refined maps of the other view: what `part` does not explain of `full`.

    Args:
        full: foreground maps Y_o of I, [B, K, h, w].
        part: foreground maps of one hidden view.
        share: visible share of that view, [B, 1, 1, 1].
        target: "winner", "dense" or "released".

    Returns:
        [B, K + 1, h, w], without gradient.
    """
    full, part = full.detach(), part.detach()
    if target == "released":
        # Both backgrounds hold a 1 that cancels: the rest of the background is 0 or less wherever an object is left.
        rest = background_first(full) - background_first(share * part)
        return torch.where(rest < rest.amax(dim=1, keepdim=True), torch.zeros_like(rest), rest)
    full, part = background_first(full), background_first(part)
    if target == "dense":
        return full - share * part
    mask = winner_mask(full)
    rest = mask * full - share * (mask * part)
    return torch.minimum(rest.clamp(min=0), 1 - share)


def scaled_with_background(maps: Tensor, share: Tensor, target: str) -> Tensor:
    """The refined side of one term of eq. 15: foreground maps and background times the view's visible share.

    With target "released" the background is that of the scaled maps, hence no smaller than 1 - share.

    Args:
        maps: refined foreground maps of a hidden view, [B, K, h, w].
        share: visible share of that view, [B, 1, 1, 1].
        target: "winner", "dense" or "released".

    Returns:
        [B, K + 1, h, w].
    """
    return background_first(share * maps) if target == "released" else share * background_first(maps)


def cp_loss(
    cam_triplet: Tensor,
    rcam_triplet: Tensor | None,
    labels: Tensor,
    visible: Tensor,
    options: CpLossOptions,
    size: tuple[int, int] | None,
) -> tuple[Tensor, Tensor]:
    """(L_tcp, L_cpcr); see the public function."""
    raw = raw_views(cam_triplet, size)
    cam = normalised_triplet(raw, labels, options)
    share = visible.to(cam[0].dtype)[:, None, None, None]
    zero = torch.zeros((), dtype=cam[0].dtype, device=cam_triplet.device)
    tcp_loss = zero
    if options.tcp and options.tcp_target == "union":
        tcp_loss = union_error(raw, cam[0], labels, share, options)
    elif options.tcp:
        tcp_loss = triplet_error(cam, share, options.tcp_target)
    if rcam_triplet is None:
        return tcp_loss, zero
    refined = normalised_triplet(raw_views(rcam_triplet, size), labels, options)
    if options.tcp:
        tcp_loss = tcp_loss + triplet_error(refined, share, "none" if options.refined_pair_gradient else "pair")
    if not options.cpcr:
        return tcp_loss, zero
    pool = F.pad(labels, (1, 0), value=1) if options.ohem_pool == "present" else None
    cpcr_loss = zero
    # Each hidden view's unrefined map explains its share of Y_o; the rest is the other view's to refine.
    for part, other, part_share in ((cam[1], refined[2], share), (cam[2], refined[1], 1 - share)):
        target = cross_target(cam[0], part, part_share, options.cpcr_target)
        found = scaled_with_background(other, 1 - part_share, options.cpcr_target)
        cpcr_loss = cpcr_loss + ohem_mean((target - found).abs(), pool, options.ohem)
    return tcp_loss, cpcr_loss
