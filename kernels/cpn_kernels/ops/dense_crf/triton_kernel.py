"""The dense CRF's kernels: splat, blur and slice of a lattice as gathers of rows, so that nothing is added atomically.

A row holds a pixel's or a lattice point's values of all classes, side by side, padded to WIDTH.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row(source, number, inside, WIDTH: tl.constexpr):
    """Rows of float32 [., WIDTH] by number; 0 where not `inside`."""
    column = tl.arange(0, WIDTH)
    return tl.load(source + number.to(tl.int64)[:, None] * WIDTH + column[None], mask=inside[:, None], other=0.0)


@triton.jit
def _store(target, number, inside, rows, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    tl.store(target + number.to(tl.int64)[:, None] * WIDTH + column[None], rows, mask=inside[:, None])


@triton.jit
def _sliced(
    points, weights, values, pixel, pixels, inside, ROWS: tl.constexpr, WIDTH: tl.constexpr, CORNERS: tl.constexpr
):
    """What a lattice holds at each pixel: the weighted sum of its simplex's corners."""
    total = tl.full((ROWS, WIDTH), 0.0, tl.float32)
    for corner in tl.static_range(CORNERS):
        entry = corner * pixels + pixel
        point = tl.load(points + entry, mask=inside, other=0)
        weight = tl.load(weights + entry, mask=inside, other=0.0)
        total += weight[:, None] * _row(values, point, inside, WIDTH)
    return total


@triton.jit(do_not_specialize=["pixels"])
def update_kernel(
    log_probabilities,  # float32 [n, WIDTH], -inf past the classes
    q,  # float32 [n, WIDTH], written
    points,  # int32 [CORNERS, n], of the first lattice
    weights,  # float32 [CORNERS, n]
    values,  # float32 [m, WIDTH]
    compat,
    more_points,  # those of the second lattice
    more_weights,
    more_values,
    more_compat,
    pixels,  # n
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CORNERS: tl.constexpr,  # 0 = there is no such lattice
    MORE_CORNERS: tl.constexpr,
):
    """Slice of the lattices, Potts' compatibility and softmax, for one block of pixels."""
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = pixel < pixels
    energy = _row(log_probabilities, pixel, inside, WIDTH)
    if CORNERS > 0:
        energy += compat * _sliced(points, weights, values, pixel, pixels, inside, ROWS, WIDTH, CORNERS)
    if MORE_CORNERS > 0:
        energy += more_compat * _sliced(
            more_points, more_weights, more_values, pixel, pixels, inside, ROWS, WIDTH, MORE_CORNERS
        )
    exponential = tl.exp(energy - tl.max(energy, axis=1)[:, None])
    _store(q, pixel, inside, exponential / tl.sum(exponential, axis=1)[:, None], WIDTH)


@triton.jit(do_not_specialize=["count"])
def sum_kernel(
    source,  # float32 [., WIDTH]
    rows,  # int32, the source's row of each entry, read if WEIGHTED; else the entry is the row
    weights,  # float32, its weight, read if WEIGHTED; else 1
    begins,  # int32 [count + 1], the first entry of each sum
    target,  # float32 [count, WIDTH], written
    count,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """Sums of runs of entries, always in the same order; the splat, and the sums of its parts."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = number < count
    begin = tl.load(begins + number, mask=inside, other=0)
    length = tl.load(begins + number + 1, mask=inside, other=0) - begin
    total = tl.full((ROWS, WIDTH), 0.0, tl.float32)
    for step in range(tl.max(length, axis=0)):
        held = step < length
        entry = begin + step
        if WEIGHTED:
            row = tl.load(rows + entry, mask=held, other=0)
            weight = tl.load(weights + entry, mask=held, other=0.0)
            total += weight[:, None] * _row(source, row, held, WIDTH)
        else:
            total += _row(source, entry, held, WIDTH)
    _store(target, number, inside, total, WIDTH)


@triton.jit(do_not_specialize=["axis", "count"])
def blur_kernel(
    source,  # float32 [m, WIDTH]
    neighbours,  # int32 [D + 1, m, 2], m where no such point is
    target,  # float32 [m, WIDTH], written
    axis,
    count,  # m
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Blur with (1/2, 1, 1/2) along one axis of the lattice; points that are not there hold 0."""
    point = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = point < count
    pair = neighbours + 2 * (tl.full((), axis, tl.int64) * count + point)
    forth = tl.load(pair, mask=inside, other=count)
    back = tl.load(pair + 1, mask=inside, other=count)
    beside = _row(source, forth, forth < count, WIDTH) + _row(source, back, back < count, WIDTH)
    _store(target, point, inside, _row(source, point, inside, WIDTH) + 0.5 * beside, WIDTH)
