"""dL/dY, the gradient of both losses with respect to one normalised map, at one tile."""

from __future__ import annotations

import triton
import triton.language as tl

from cpn_kernels.ops.cp_loss.triton_tiles import cross_target, foreground, refined_background, strongest


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x * 0.0))


@triton.jit
def _selected(error, rank, scale):
    """Weight of each element in the mean of the k largest; those equal to the threshold share what is left."""
    threshold = tl.load(rank)
    weight = tl.where(error > threshold, 1.0, tl.where(error == threshold, tl.load(rank + 1), 0.0))
    return weight * scale / tl.load(rank + 2)


@triton.jit
def _cross_gradient(maps, full, part, other, share, k, pool, inside, rank, scale, TARGET: tl.constexpr):
    """dL/dY of the refined map of one term of eq. 15; through the background the strongest classes share."""
    rest, back = cross_target(maps, full, part, share, k, TARGET)
    best = strongest(maps, other, k)
    front_error = rest - (1 - share) * other
    back_error = back - refined_background(best, 1 - share, TARGET)
    pooled = pool[:, None] & inside[None, :]
    front = tl.where(pooled, _selected(tl.abs(front_error), rank, scale), 0.0) * _sign(front_error)
    behind = tl.where(inside, _selected(tl.abs(back_error), rank, scale), 0.0) * _sign(back_error)
    leads = ((other == best[None, :]) & (k < maps[9])[:, None]).to(tl.float32)
    ties = tl.sum(leads, axis=0) + tl.where(best == 0, maps[14] * 1.0, 0.0)
    behind = behind / tl.maximum(ties, 1.0)
    return (1 - share) * (leads * behind[None, :] - front)


@triton.jit
def map_gradient(
    maps,
    stats,
    ranks,
    upstream,
    image,
    k,
    labelled,
    share,
    y,
    x,
    inside,
    REFINED: tl.constexpr,
    VIEW: tl.constexpr,
    TCP: tl.constexpr,
    CPCR: tl.constexpr,
    PAIR: tl.constexpr,
    PRESENT: tl.constexpr,
    TARGET: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
):
    """dL/dY of a view of the CAM, or of the RCAM if REFINED, at one tile; [rows, positions]."""
    held = (k < maps[9])[:, None] & inside[None, :]
    gradient = tl.zeros([k.shape[0], y.shape[0]], tl.float32)
    if TCP and (VIEW == 0 or not REFINED or PAIR):
        full = foreground(maps, stats, REFINED, 0, False, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
        hidden = foreground(maps, stats, REFINED, 1, True, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
        complement = foreground(
            maps, stats, REFINED, 2, True, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED
        )
        elements = tl.cast(maps[8], tl.float32) * maps[9] * maps[12] * maps[13]
        side = _sign(share * hidden + (1 - share) * complement - full) * (tl.load(upstream) / elements)
        side = tl.where(held, side, 0.0)
        gradient += -side if VIEW == 0 else share * side if VIEW == 1 else (1 - share) * side
    if CPCR and REFINED and VIEW > 0:
        TERM: tl.constexpr = 2 - VIEW
        full = foreground(maps, stats, False, 0, False, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
        part = foreground(
            maps, stats, False, TERM + 1, True, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED
        )
        other = foreground(maps, stats, True, VIEW, True, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
        part_share = share if TERM == 0 else 1 - share
        pool = labelled if PRESENT else k < maps[9]
        scale = tl.load(upstream + 1) / tl.cast(maps[8], tl.float32)
        rank = ranks + (image * 2 + TERM) * 3
        gradient += _cross_gradient(maps, full, part, other, part_share, k, pool, inside, rank, scale, TARGET)
    return gradient
