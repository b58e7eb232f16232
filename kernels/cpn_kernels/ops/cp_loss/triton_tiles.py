"""What all loss kernels share: a tile of maps, its normalisation, and the errors of eq. 15.

A tile is [classes, positions]. Each pass over the maps computes again what it needs instead of reading it back. Passes
must agree bit by bit (an error *is* the threshold, a value *is* the maximum), so the same functions serve all of them
and they are compiled without fused multiply-add.

An image holds few of the classes, and the normalised map of an absent one is 0: where at most SLOTS are present, the
rows of a tile are those alone (`present_classes`), else all, padded to KP. What the zeros left out do to a maximum, to
ties with it, and to the pool of OHEM, is put in by their number.
"""

from __future__ import annotations

import triton
import triton.language as tl

EPS = tl.constexpr(1e-5)
MIN_PEAK = tl.constexpr(1e-2)

# Six maps: the views 0, 1, 2 are I, I_h, I_hbar, of the CAM or (REFINED) of the RCAM. `maps` is the tuple (cam, rcam,
# strides of cam: view and image, class, position, strides of rcam, images, classes, grid h, grid w, out H, out W,
# number of absent classes that have no row).


@triton.jit
def source_cell(position, grid, out):
    """Grid index before an output index, and the distance to it in [0, 1]; corners are aligned, in exact integers."""
    last = tl.maximum(out - 1, 1)
    cell = tl.minimum(position * (grid - 1) // last, tl.maximum(grid - 2, 0))
    return cell, (position * (grid - 1) - cell * last).to(tl.float32) / last.to(tl.float32)


@triton.jit
def raw_tile(maps, REFINED: tl.constexpr, view, image, k, y, x, inside, UPSAMPLE: tl.constexpr):
    """Raw CAM, or RCAM if REFINED, of classes k at output positions (y, x); float32 [rows, positions]."""
    if REFINED:
        plane = maps[1] + (view * maps[8] + image) * maps[5] + k[:, None].to(tl.int64) * maps[6]
        step = maps[7]
    else:
        plane = maps[0] + (view * maps[8] + image) * maps[2] + k[:, None].to(tl.int64) * maps[3]
        step = maps[4]
    held = (k < maps[9])[:, None] & inside[None, :]
    height, width = tl.cast(maps[10], tl.int32), tl.cast(maps[11], tl.int32)
    if UPSAMPLE:
        top, down = source_cell(y, height, tl.cast(maps[12], tl.int32))
        left, right = source_cell(x, width, tl.cast(maps[13], tl.int32))
        bottom = tl.minimum(top + 1, height - 1)
        east = tl.minimum(left + 1, width - 1)
        nw = tl.load(plane + (top * width + left)[None, :] * step, mask=held, other=0.0).to(tl.float32)
        ne = tl.load(plane + (top * width + east)[None, :] * step, mask=held, other=0.0).to(tl.float32)
        sw = tl.load(plane + (bottom * width + left)[None, :] * step, mask=held, other=0.0).to(tl.float32)
        se = tl.load(plane + (bottom * width + east)[None, :] * step, mask=held, other=0.0).to(tl.float32)
        upper = nw * (1 - right)[None, :] + ne * right[None, :]
        lower = sw * (1 - right)[None, :] + se * right[None, :]
        value = upper * (1 - down)[None, :] + lower * down[None, :]
    else:
        value = tl.load(plane + (y * width + x)[None, :] * step, mask=held, other=0.0).to(tl.float32)
    return value


@triton.jit
def norm_rule(
    maps,
    stats,
    REFINED: tl.constexpr,
    view,
    HIDDEN: tl.constexpr,
    image,
    k,
    labelled,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Minimum, divisor, whether the channel is kept, own maximum, and whether that divides; all [rows].

    HIDDEN says that the view is no I, whose maximum then bounds the divisor from below if SHARED.
    """
    first = 3 if REFINED else 0
    row = stats + (((first + view) * maps[8] + image) * maps[9] + k) * 4
    known = k < maps[9]
    lowest = tl.load(row, mask=known, other=0.0)
    own = tl.load(row + 1, mask=known, other=0.0)
    kept = labelled & ((own >= MIN_PEAK) | (own != own))
    peak = own
    own_divides = own >= 0
    if SHARED and HIDDEN:
        floor = tl.load(stats + ((first * maps[8] + image) * maps[9] + k) * 4 + 1, mask=known, other=0.0)
        own_divides = own >= floor
        peak = tl.where(own_divides, own, floor)
    divisor = peak - lowest + EPS if MINMAX else peak + EPS
    return lowest, divisor, kept, own, own_divides


@triton.jit
def numerator(raw, lowest, MINMAX: tl.constexpr):
    """relu(R - min - eps), or R; a NaN stays."""
    value = tl.where(raw < 0, 0.0, raw)
    if MINMAX:
        value = value - lowest[:, None] - EPS
        value = tl.where(value < 0, 0.0, value)
    return value


@triton.jit
def foreground(
    maps,
    stats,
    REFINED: tl.constexpr,
    view,
    HIDDEN: tl.constexpr,
    image,
    k,
    labelled,
    y,
    x,
    inside,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Normalised foreground Y of one map, [rows, positions]."""
    lowest, divisor, kept, _, _ = norm_rule(maps, stats, REFINED, view, HIDDEN, image, k, labelled, MINMAX, SHARED)
    raw = raw_tile(maps, REFINED, view, image, k, y, x, inside, UPSAMPLE)
    return tl.where(kept[:, None], numerator(raw, lowest, MINMAX) / divisor[:, None], 0.0)


@triton.jit
def strongest(maps, value, k):
    """Maximum over the classes, [positions]; classes without a row are 0."""
    least = tl.where(maps[14] > 0, 0.0, float("-inf"))
    return tl.maximum(tl.max(tl.where((k < maps[9])[:, None], value, float("-inf")), axis=0), least)


@triton.jit
def _winner(maps, value, k):
    """1 for the first of the strongest classes of each position, else 0; [rows, positions].

    Where all rows are 0 a class without a row may be the first: what the mask then selects is 0 in either case.
    """
    best = tl.argmax(tl.where((k < maps[9])[:, None], value, float("-inf")), axis=0)
    return (tl.arange(0, k.shape[0])[:, None] == best[None, :]).to(tl.float32)


@triton.jit
def cross_target(maps, full, part, share, k, TARGET: tl.constexpr):
    """Foreground [rows, positions] and background [positions] of the target of one term of eq. 15."""
    if TARGET == "released":
        scaled = share * part
        rest = full - scaled
        back = (1 - strongest(maps, full, k)) - (1 - strongest(maps, scaled, k))
        best = tl.maximum(strongest(maps, rest, k), back)
        rest = tl.where(rest < best[None, :], 0.0, rest)  # comparisons that let a NaN through
        back = tl.where(back < best, 0.0, back)
    else:
        back = 1 - strongest(maps, full, k) - share * (1 - strongest(maps, part, k))
        if TARGET == "winner":
            mask = _winner(maps, full, k)
            rest = mask * full - share * (mask * part)
            rest = tl.where(rest < 0, 0.0, rest)
            rest = tl.where(rest > 1 - share, 1 - share, rest)
            back = tl.where(back < 0, 0.0, back)
            back = tl.where(back > 1 - share, 1 - share, back)
        else:
            rest = full - share * part
    return rest, back


@triton.jit
def refined_background(best, share, TARGET: tl.constexpr):
    """Background of the refined side, whose strongest class is `best` and whose visible share is `share`."""
    return 1 - share * best if TARGET == "released" else share * (1 - best)


@triton.jit
def positions(start, SPAN: tl.constexpr, width, count):
    """Row, column and validity of SPAN consecutive output positions."""
    p = start + tl.arange(0, SPAN)
    return p // width, p % width, p < count


@triton.jit
def labels_of(labels, image, k, classes):
    """Whether each class is in the image; [KP]."""
    return tl.load(labels + image * classes + k, mask=k < classes, other=0) > 0


@triton.jit
def present_classes(labelled, classes, KP: tl.constexpr, SLOTS: tl.constexpr):
    """The first SLOTS classes that are in the image, in their order; `classes` in slots that are left. [SLOTS]."""
    rank = tl.cumsum(labelled.to(tl.int32), axis=0)
    slot = tl.arange(0, SLOTS)
    hit = labelled[None, :] & (rank[None, :] == slot[:, None] + 1)
    found = tl.sum(tl.where(hit, tl.arange(0, KP)[None, :], 0), axis=1)
    return tl.where(slot < tl.sum(labelled.to(tl.int32), axis=0), found, classes)
