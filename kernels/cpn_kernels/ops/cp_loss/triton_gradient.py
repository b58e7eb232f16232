"""Gradients of the complementary-pair losses: to the CAM's side of L_tcp that is no target, and to the refined maps.

1. `slopes_kernel`: per map and class, the two sums through which a maximum and a minimum receive their gradient.
2. `gradient_kernel`: the gradient at every position, written on the grid, or gathered into the corners of grid cells.
3. `collect_kernel`: a grid point's gradient from the four cells that it is a corner of (no atomics, hence the same
   bits for the same input).

RECEIVERS are the rows of `stats` that receive a gradient, in order; 0, 1, 2 are the CAM of I, I_h, I_hbar, 3, 4, 5 the
RCAM.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cpn_kernels.ops.cp_loss.triton_map_gradient import map_gradient
from cpn_kernels.ops.cp_loss.triton_tiles import (
    labels_of,
    norm_rule,
    numerator,
    positions,
    present_classes,
    raw_tile,
    source_cell,
)


@triton.jit
def _slopes(
    maps,
    stats,
    ranks,
    upstream,
    slopes,
    image,
    k,
    labelled,
    share,
    RECEIVERS: tl.constexpr,
    COUNT: tl.constexpr,
    TCP: tl.constexpr,
    CPCR: tl.constexpr,
    PAIR: tl.constexpr,
    PRESENT: tl.constexpr,
    TARGET: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
    SPAN: tl.constexpr,
):
    """The slopes of classes k."""
    batch, classes, out_w = maps[8], maps[9], maps[13]
    count = maps[12] * out_w
    for which in tl.static_range(COUNT):
        lowest, _, kept, _, _ = norm_rule(
            maps,
            stats,
            RECEIVERS[which] > 2,
            RECEIVERS[which] % 3,
            RECEIVERS[which] % 3 > 0,
            image,
            k,
            labelled,
            MINMAX,
            SHARED,
        )
        flat = tl.zeros([k.shape[0]], tl.float32)
        steep = tl.zeros([k.shape[0]], tl.float32)
        for start in range(tl.program_id(0) * SPAN, count, tl.num_programs(0) * SPAN):
            y, x, inside = positions(start, SPAN, out_w, count)
            gradient = map_gradient(
                maps, stats, ranks, upstream, image, k, labelled, share, y, x, inside,
                RECEIVERS[which] > 2, RECEIVERS[which] % 3, TCP, CPCR, PAIR, PRESENT, TARGET, UPSAMPLE, MINMAX, SHARED,
            )  # fmt: skip
            value = numerator(
                raw_tile(maps, RECEIVERS[which] > 2, RECEIVERS[which] % 3, image, k, y, x, inside, UPSAMPLE),
                lowest,
                MINMAX,
            )
            gradient = tl.where(kept[:, None], gradient, 0.0)
            flat += tl.sum(tl.where(value > 0, gradient, 0.0), axis=1)
            steep += tl.sum(gradient * value, axis=1)
        row = ((tl.program_id(0) * tl.cast(batch, tl.int64) + image) * COUNT + which) * classes + k
        tl.store(slopes + row * 2, flat, mask=k < classes)
        tl.store(slopes + row * 2 + 1, steep, mask=k < classes)


@triton.jit
def slopes_kernel(
    cam,
    rcam,
    labels,
    visible,
    stats,
    ranks,
    upstream,  # float32 [2]: gradients of L_tcp and L_cpcr
    slopes,  # float32 [programs, B, COUNT, K, 2], zero: an absent class may be left so
    cam_n,
    cam_k,
    cam_p,
    rcam_n,
    rcam_k,
    rcam_p,
    batch,
    classes,
    grid_h,
    grid_w,
    out_h,
    out_w,
    RECEIVERS: tl.constexpr,
    COUNT: tl.constexpr,
    TCP: tl.constexpr,
    CPCR: tl.constexpr,
    PAIR: tl.constexpr,
    PRESENT: tl.constexpr,
    TARGET: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
    KP: tl.constexpr,
    SPAN: tl.constexpr,
    SLOTS: tl.constexpr,
    SLOTS_SPAN: tl.constexpr,
):
    """Sums of dL/dY where the numerator is positive, and of dL/dY times the numerator, over every n-th tile."""
    image = tl.program_id(1).to(tl.int64)
    labelled = labels_of(labels, image, tl.arange(0, KP), classes)
    present = tl.sum(labelled.to(tl.int32), axis=0)
    absent = tl.where(present <= SLOTS, classes - present, 0)
    maps = (
        cam, rcam, cam_n, cam_k, cam_p, rcam_n, rcam_k, rcam_p, batch, classes, grid_h, grid_w, out_h, out_w, absent
    )  # fmt: skip
    share = tl.load(visible + image).to(tl.float32)
    if present <= SLOTS:
        k = present_classes(labelled, classes, KP, SLOTS)
        _slopes(
            maps, stats, ranks, upstream, slopes, image, k, k < classes, share,
            RECEIVERS, COUNT, TCP, CPCR, PAIR, PRESENT, TARGET, UPSAMPLE, MINMAX, SHARED, SLOTS_SPAN,
        )  # fmt: skip
    else:
        _slopes(
            maps, stats, ranks, upstream, slopes, image, tl.arange(0, KP), labelled, share,
            RECEIVERS, COUNT, TCP, CPCR, PAIR, PRESENT, TARGET, UPSAMPLE, MINMAX, SHARED, SPAN,
        )  # fmt: skip


@triton.jit
def _first_row(cell, grid, out):
    """First output index of a grid cell; corners are aligned."""
    cells = tl.maximum(grid - 1, 1)
    return tl.where(cell >= cells, out, (cell * tl.maximum(out - 1, 1) + cells - 1) // cells)


@triton.jit
def _gradients(
    maps,
    stats,
    ranks,
    upstream,
    slopes,
    cam_gradient,
    rcam_gradient,
    corners,
    image,
    k,
    labelled,
    share,
    RECEIVERS: tl.constexpr,
    COUNT: tl.constexpr,
    TCP: tl.constexpr,
    CPCR: tl.constexpr,
    PAIR: tl.constexpr,
    PRESENT: tl.constexpr,
    TARGET: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
    SPAN: tl.constexpr,
):
    """dL/dA of classes k at one tile of positions, or of one grid cell."""
    batch, classes, grid_h, grid_w, out_h, out_w = maps[8], maps[9], maps[10], maps[11], maps[12], maps[13]
    if UPSAMPLE:
        height, width = tl.cast(grid_h, tl.int32), tl.cast(grid_w, tl.int32)
        across = tl.maximum(width - 1, 1)
        cell_y, cell_x = tl.program_id(0) // across, tl.program_id(0) % across
        top, left = _first_row(cell_y, height, out_h), _first_row(cell_x, width, out_w)
        columns = _first_row(cell_x + 1, width, out_w) - left
        count = (_first_row(cell_y + 1, height, out_h) - top) * columns
        first, step = 0, SPAN
        columns = tl.maximum(columns, 1)
    else:
        top, left, columns = 0, 0, out_w
        count = out_h * out_w
        first, step = tl.program_id(0) * SPAN, tl.num_programs(0) * SPAN
    for which in tl.static_range(COUNT):
        lowest, divisor, kept, own, own_divides = norm_rule(
            maps,
            stats,
            RECEIVERS[which] > 2,
            RECEIVERS[which] % 3,
            RECEIVERS[which] % 3 > 0,
            image,
            k,
            labelled,
            MINMAX,
            SHARED,
        )
        plane = (image * COUNT + which) * classes + k
        flat = tl.load(slopes + plane * 2, mask=k < classes, other=0.0)
        steep = tl.load(slopes + plane * 2 + 1, mask=k < classes, other=0.0) / (divisor * divisor)
        row = stats + ((RECEIVERS[which] * batch + image) * classes + k) * 4
        low_share = (steep - flat / divisor) / tl.load(row + 2, mask=k < classes, other=1.0)
        high_share = tl.where(own_divides, -steep, 0.0) / tl.load(row + 3, mask=k < classes, other=1.0)
        nw = tl.zeros([k.shape[0]], tl.float32)
        ne = tl.zeros([k.shape[0]], tl.float32)
        sw = tl.zeros([k.shape[0]], tl.float32)
        se = tl.zeros([k.shape[0]], tl.float32)
        for start in range(first, count, step):
            y, x, inside = positions(start, SPAN, columns, count)
            y += top
            x += left
            gradient = map_gradient(
                maps, stats, ranks, upstream, image, k, labelled, share, y, x, inside,
                RECEIVERS[which] > 2, RECEIVERS[which] % 3, TCP, CPCR, PAIR, PRESENT, TARGET, UPSAMPLE, MINMAX, SHARED,
            )  # fmt: skip
            raw = raw_tile(maps, RECEIVERS[which] > 2, RECEIVERS[which] % 3, image, k, y, x, inside, UPSAMPLE)
            value = gradient / divisor[:, None]
            if MINMAX:
                value = tl.where(numerator(raw, lowest, MINMAX) <= 0, 0.0, value)
                value += tl.where(raw == lowest[:, None], low_share[:, None], 0.0)
            value += tl.where(raw == own[:, None], high_share[:, None], 0.0)
            value = tl.where(kept[:, None] & inside[None, :], tl.where(raw <= 0, 0.0, value), 0.0)
            if UPSAMPLE:
                down = source_cell(y, height, tl.cast(out_h, tl.int32))[1]
                right = source_cell(x, width, tl.cast(out_w, tl.int32))[1]
                nw += tl.sum(value * ((1 - down) * (1 - right))[None, :], axis=1)
                ne += tl.sum(value * ((1 - down) * right)[None, :], axis=1)
                sw += tl.sum(value * (down * (1 - right))[None, :], axis=1)
                se += tl.sum(value * (down * right)[None, :], axis=1)
            else:
                target = rcam_gradient if RECEIVERS[which] > 2 else cam_gradient
                place = ((RECEIVERS[which] % 3 * batch + image) * classes + k[:, None]) * (out_h * out_w) + (
                    y * out_w + x
                )[None, :]
                tl.store(target + place, value, mask=(k < classes)[:, None] & inside[None, :])
        if UPSAMPLE:
            corner = corners + plane * 4 * tl.num_programs(0) + tl.program_id(0)
            tl.store(corner, nw, mask=k < classes)
            tl.store(corner + tl.num_programs(0), ne, mask=k < classes)
            tl.store(corner + 2 * tl.num_programs(0), sw, mask=k < classes)
            tl.store(corner + 3 * tl.num_programs(0), se, mask=k < classes)


@triton.jit
def gradient_kernel(
    cam,
    rcam,
    labels,
    visible,
    stats,
    ranks,
    upstream,
    slopes,  # float32 [B, COUNT, K, 2]
    cam_gradient,  # written unless UPSAMPLE, float32 [3B, K, h, w], zero, as an absent class may be left
    rcam_gradient,  # the same
    corners,  # written if UPSAMPLE, float32 [B, COUNT, K, 4, cells], of present classes
    cam_n,
    cam_k,
    cam_p,
    rcam_n,
    rcam_k,
    rcam_p,
    batch,
    classes,
    grid_h,
    grid_w,
    out_h,
    out_w,
    RECEIVERS: tl.constexpr,
    COUNT: tl.constexpr,
    TCP: tl.constexpr,
    CPCR: tl.constexpr,
    PAIR: tl.constexpr,
    PRESENT: tl.constexpr,
    TARGET: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
    KP: tl.constexpr,
    SPAN: tl.constexpr,
    SLOTS: tl.constexpr,
    SLOTS_SPAN: tl.constexpr,
):
    """dL/dA at one tile of positions, or of one grid cell."""
    image = tl.program_id(1).to(tl.int64)
    labelled = labels_of(labels, image, tl.arange(0, KP), classes)
    present = tl.sum(labelled.to(tl.int32), axis=0)
    absent = tl.where(present <= SLOTS, classes - present, 0)
    maps = (
        cam, rcam, cam_n, cam_k, cam_p, rcam_n, rcam_k, rcam_p, batch, classes, grid_h, grid_w, out_h, out_w, absent
    )  # fmt: skip
    share = tl.load(visible + image).to(tl.float32)
    if present <= SLOTS:
        k = present_classes(labelled, classes, KP, SLOTS)
        _gradients(
            maps, stats, ranks, upstream, slopes, cam_gradient, rcam_gradient, corners, image, k, k < classes, share,
            RECEIVERS, COUNT, TCP, CPCR, PAIR, PRESENT, TARGET, UPSAMPLE, MINMAX, SHARED, SLOTS_SPAN,
        )  # fmt: skip
    else:
        _gradients(
            maps, stats, ranks, upstream, slopes, cam_gradient, rcam_gradient, corners,
            image, tl.arange(0, KP), labelled, share,
            RECEIVERS, COUNT, TCP, CPCR, PAIR, PRESENT, TARGET, UPSAMPLE, MINMAX, SHARED, SPAN,
        )  # fmt: skip


@triton.jit
def collect_kernel(
    corners,  # float32 [B, COUNT, K, 4, cells], of present classes
    labels,
    cam_gradient,
    rcam_gradient,
    batch,
    classes,
    grid_h,
    grid_w,
    RECEIVERS: tl.constexpr,
    COUNT: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Gradient of one map's channel on the grid: of every point, what the cells around it put into that corner."""
    which = tl.program_id(1) % COUNT
    image = (tl.program_id(1) // COUNT).to(tl.int64)
    k = tl.program_id(2)
    p = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    y, x = p // grid_w, p % grid_w
    present = tl.load(labels + image * classes + k) > 0
    inside = (p < grid_h * grid_w) & present
    rows, columns = tl.maximum(grid_h - 1, 1), tl.maximum(grid_w - 1, 1)
    base = corners + ((image * COUNT + which) * classes + k) * 4 * rows * columns
    cell = y * columns + x
    below, right = inside & (y < rows), x < columns
    above, left = inside & (y > 0), x > 0
    value = tl.load(base + cell, mask=below & right, other=0.0)
    value += tl.load(base + rows * columns + cell - 1, mask=below & left, other=0.0)
    value += tl.load(base + 2 * rows * columns + cell - columns, mask=above & right, other=0.0)
    value += tl.load(base + 3 * rows * columns + cell - columns - 1, mask=above & left, other=0.0)
    row = 0
    for number in tl.static_range(COUNT):
        row = tl.where(which == number, RECEIVERS[number], row)
    place = ((tl.cast(row % 3, tl.int64) * batch + image) * classes + k) * grid_h * grid_w + p
    if row > 2:
        tl.store(rcam_gradient + place, value, mask=inside)
    else:
        tl.store(cam_gradient + place, value, mask=inside)
