"""The complementary-pair losses on a GPU: few streaming passes over the raw maps, nothing read by the host.

1. `stats_kernel`: minimum, maximum and their numbers, per map and class.
2. `rank_kernel`, three times: L_tcp's sums, and the exact k-th largest error of L_cpcr by radix select. Errors are
   >= 0, so their bits order them: histograms of 11, 11 and 9 bits, each within the digits found before.
3. `result_kernel`: threshold, number of ties and the mean of the k largest, per image and term.

Sums are of fixed parts in a fixed order and the histograms are of integers: the same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cpn_kernels.cp_loss.triton_tiles import (
    cross_target,
    foreground,
    labels_of,
    positions,
    raw_tile,
    strongest,
)

BINS = tl.constexpr(2048)


@triton.jit
def stats_kernel(
    cam,
    rcam,
    labels,
    stats,  # written, float32 [maps, B, K, 4]: minimum, maximum, how many equal each
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
    REFINED: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    SPAN: tl.constexpr,
):
    """One channel of one view of the CAM, or of the RCAM if REFINED. An absent class is not read: its maximum is 0."""
    maps = (cam, rcam, cam_n, cam_k, cam_p, rcam_n, rcam_k, rcam_p, batch, classes, grid_h, grid_w, out_h, out_w)
    image = tl.program_id(1).to(tl.int64)
    view = tl.program_id(2)
    k = tl.program_id(0) + tl.arange(0, 1)
    lowest = tl.full([1, SPAN], float("inf"), tl.float32)
    highest = tl.full([1, SPAN], -1.0, tl.float32)
    lows = tl.zeros([1, SPAN], tl.float32)
    highs = tl.zeros([1, SPAN], tl.float32)
    broken = tl.zeros([1, SPAN], tl.int32)
    present = tl.sum(labels_of(labels, image, k, classes).to(tl.int32), axis=0) > 0
    count = tl.where(present, out_h * out_w, 0)
    for start in range(0, count, SPAN):
        y, x, inside = positions(start, SPAN, out_w, count)
        value = raw_tile(maps, REFINED, view, image, k, y, x, inside, UPSAMPLE)
        value = tl.where(value < 0, 0.0, value)
        broken += (value != value).to(tl.int32)
        low = tl.where(inside[None, :], value, float("inf"))
        lows = tl.where(low < lowest, 0.0, lows)
        lowest = tl.where(low < lowest, low, lowest)
        lows += ((low == lowest) & inside[None, :]).to(tl.float32)
        high = tl.where(inside[None, :], value, -1.0)
        highs = tl.where(high > highest, 0.0, highs)
        highest = tl.where(high > highest, high, highest)
        highs += ((high == highest) & inside[None, :]).to(tl.float32)
    least = tl.min(lowest, axis=1)
    most = tl.max(highest, axis=1)
    lows = tl.sum(tl.where(lowest == least[:, None], lows, 0.0), axis=1)
    highs = tl.sum(tl.where(highest == most[:, None], highs, 0.0), axis=1)
    nan = tl.sum(broken, axis=1) > 0
    which = view + 3 if REFINED else view
    row = stats + ((which * batch + image) * classes + k) * 4
    tl.store(row, tl.where(nan, float("nan"), tl.where(present, least, 0.0)))
    tl.store(row + 1, tl.where(nan, float("nan"), tl.where(present, most, 0.0)))
    tl.store(row + 2, tl.where(lows > 0, lows, 1.0))
    tl.store(row + 3, tl.where(highs > 0, highs, 1.0))


@triton.jit
def wanted_count(present, wanted, fraction_bits, places, PRESENT: tl.constexpr):
    """k, the number of elements that count: of the whole pool, or of the background and the present classes.

    The share travels as the bits of its double: as a number it would arrive in single precision.
    """
    if PRESENT:
        pool = ((present + 1) * places).to(tl.float64)
        share = tl.cast(fraction_bits, tl.int64).to(tl.float64, bitcast=True)
        wanted = tl.maximum((pool * share).to(tl.int64), 1).to(tl.int32)
    return wanted


@triton.jit
def select(histogram, wanted):
    """The digit of the wanted-th largest element, and its rank among those that share the digit."""
    digit = tl.arange(0, BINS)
    count = tl.load(histogram + digit)
    reached = tl.cumsum(count, axis=0, reverse=True)
    found = tl.max(tl.where(reached >= wanted, digit, 0), axis=0)
    return found, wanted - tl.sum(tl.where(digit > found, count, 0), axis=0)


@triton.jit
def _rank(value, pooled, first, prefix, LEVEL: tl.constexpr, SIZE: tl.constexpr):
    """Histogram of the next digit of errors whose digits so far are the wanted ones, and the sum of those above."""
    value = tl.reshape(value, [SIZE])
    pooled = tl.reshape(pooled, [SIZE])
    bits = value.to(tl.int32, bitcast=True)
    above = 0.0
    if LEVEL == 0:
        counts = tl.histogram(bits >> 20, BINS, pooled)
    elif LEVEL == 1:
        counts = tl.histogram((bits >> 9) & 2047, BINS, pooled & (bits >> 20 == first))
        above = tl.sum(tl.where(pooled & (bits >> 20 > first), value, 0.0), axis=0)
    else:
        counts = tl.histogram(bits & 511, BINS, pooled & (bits >> 9 == prefix))
        above = tl.sum(tl.where(pooled & (bits >> 20 == first) & (bits >> 9 > prefix), value, 0.0), axis=0)
    return counts, above


@triton.jit
def rank_kernel(
    cam,
    rcam,
    labels,
    visible,
    stats,
    histograms,  # int32 [3, B, 2, BINS], zero
    sums,  # float32 [B, 5, programs], zero: of L_tcp; of errors above the first digit, both terms; above the second
    wanted,
    fraction_bits,
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
    LEVEL: tl.constexpr,
    TCP: tl.constexpr,
    CPCR: tl.constexpr,
    REFINED: tl.constexpr,
    PRESENT: tl.constexpr,
    TARGET: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
    KP: tl.constexpr,
    SPAN: tl.constexpr,
):
    """One pass of the radix select over every n-th tile of an image; the first also sums L_tcp."""
    maps = (cam, rcam, cam_n, cam_k, cam_p, rcam_n, rcam_k, rcam_p, batch, classes, grid_h, grid_w, out_h, out_w)
    image = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, KP)
    labelled = labels_of(labels, image, k, classes)
    pool = labelled if PRESENT else k < classes
    share = tl.load(visible + image).to(tl.float32)
    count = out_h * out_w
    level_stride = tl.cast(batch, tl.int64) * 2 * BINS
    mine = histograms + image * 2 * BINS
    first_1, first_2, prefix_1, prefix_2 = 0, 0, 0, 0
    if LEVEL > 0:
        k_wanted = wanted_count(tl.sum(labelled.to(tl.int32), axis=0), wanted, fraction_bits, count, PRESENT)
        first_1, rest_1 = select(mine, k_wanted)
        first_2, rest_2 = select(mine + BINS, k_wanted)
        if LEVEL > 1:
            prefix_1 = first_1 * BINS + select(mine + level_stride, rest_1)[0]
            prefix_2 = first_2 * BINS + select(mine + level_stride + BINS, rest_2)[0]
    counts_1 = tl.zeros([BINS], tl.int32)
    counts_2 = tl.zeros([BINS], tl.int32)
    triplet_sum = 0.0
    above_1 = 0.0
    above_2 = 0.0
    for start in range(tl.program_id(0) * SPAN, count, tl.num_programs(0) * SPAN):
        y, x, inside = positions(start, SPAN, out_w, count)
        full = foreground(maps, stats, 0, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
        hidden = foreground(maps, stats, 1, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
        complement = foreground(maps, stats, 2, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
        held = (k < classes)[:, None] & inside[None, :]
        if LEVEL == 0 and TCP:
            error = tl.abs(share * hidden + (1 - share) * complement - full)
            triplet_sum += tl.sum(tl.where(held, error, 0.0))
        if REFINED:
            other_1 = foreground(maps, stats, 5, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
            other_2 = foreground(maps, stats, 4, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
            if LEVEL == 0 and TCP:
                refined = foreground(maps, stats, 3, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
                error = tl.abs(share * other_2 + (1 - share) * other_1 - refined)
                triplet_sum += tl.sum(tl.where(held, error, 0.0))
            if CPCR:
                pooled = pool[:, None] & inside[None, :]
                rest, back = cross_target(maps, full, hidden, share, k, TARGET)
                front = tl.abs(rest - (1 - share) * other_1)
                back = tl.abs(back - (1 - share) * (1 - strongest(maps, other_1, k)))
                added, above = _rank(front, pooled, first_1, prefix_1, LEVEL, KP * SPAN)
                counts_1 += added
                above_1 += above
                added, above = _rank(back, inside, first_1, prefix_1, LEVEL, SPAN)
                counts_1 += added
                above_1 += above
                other_share = 1 - share
                rest, back = cross_target(maps, full, complement, other_share, k, TARGET)
                front = tl.abs(rest - (1 - other_share) * other_2)
                back = tl.abs(back - (1 - other_share) * (1 - strongest(maps, other_2, k)))
                added, above = _rank(front, pooled, first_2, prefix_2, LEVEL, KP * SPAN)
                counts_2 += added
                above_2 += above
                added, above = _rank(back, inside, first_2, prefix_2, LEVEL, SPAN)
                counts_2 += added
                above_2 += above
    parts = sums + image * 5 * tl.num_programs(0) + tl.program_id(0)
    if LEVEL == 0:
        tl.store(parts, triplet_sum)
    else:
        tl.store(parts + (2 * LEVEL - 1) * tl.num_programs(0), above_1)
        tl.store(parts + 2 * LEVEL * tl.num_programs(0), above_2)
    if CPCR:
        digit = tl.arange(0, BINS)
        tl.atomic_add(mine + LEVEL * level_stride + digit, counts_1, mask=counts_1 > 0)
        tl.atomic_add(mine + LEVEL * level_stride + BINS + digit, counts_2, mask=counts_2 > 0)


@triton.jit
def result_kernel(
    labels,
    histograms,
    sums,
    losses,  # written, float32 [B, 3]: L_tcp, and the two terms of L_cpcr
    ranks,  # written, float32 [B, 2, 3]: threshold, share of its ties that count, k
    wanted,
    fraction_bits,
    batch,
    classes,
    places,
    programs,
    CPCR: tl.constexpr,
    PRESENT: tl.constexpr,
    KP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Turn one image's sums and histograms into its losses and the ranks that the gradient needs."""
    image = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    mine = sums + image * 5 * programs + part
    used = part < programs
    elements = tl.cast(classes, tl.float32) * tl.cast(places, tl.float32)
    tl.store(losses + image * 3, tl.sum(tl.load(mine, mask=used, other=0.0), axis=0) / elements)
    k = tl.arange(0, KP)
    present = tl.sum(labels_of(labels, image, k, classes).to(tl.int32), axis=0)
    level_stride = tl.cast(batch, tl.int64) * 2 * BINS
    digit = tl.arange(0, BINS)
    for term in tl.static_range(2):
        loss = 0.0
        if CPCR:
            k_wanted = wanted_count(present, wanted, fraction_bits, places, PRESENT)
            histogram = histograms + (image * 2 + term) * BINS
            first, left = select(histogram, k_wanted)
            second, left = select(histogram + level_stride, left)
            third, left = select(histogram + 2 * level_stride, left)
            last = tl.load(histogram + 2 * level_stride + digit)
            prefix = (first * BINS + second) * 512
            value = (prefix + digit).to(tl.float32, bitcast=True)
            above = tl.sum(tl.where((digit > third) & (last > 0), last.to(tl.float32) * value, 0.0), axis=0)
            above += tl.sum(tl.load(mine + (1 + term) * programs, mask=used, other=0.0), axis=0)
            above += tl.sum(tl.load(mine + (3 + term) * programs, mask=used, other=0.0), axis=0)
            threshold = (prefix + third).to(tl.float32, bitcast=True)
            loss = (above + left.to(tl.float32) * threshold) / k_wanted.to(tl.float32)
            ties = tl.sum(tl.where(digit == third, last, 0), axis=0)
            rank = ranks + (image * 2 + term) * 3
            tl.store(rank, threshold)
            tl.store(rank + 1, left.to(tl.float32) / ties.to(tl.float32))
            tl.store(rank + 2, k_wanted.to(tl.float32))
        tl.store(losses + image * 3 + 1 + term, loss)
