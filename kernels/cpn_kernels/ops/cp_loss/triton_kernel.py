"""The complementary-pair losses on a GPU: few streaming passes over the raw maps, nothing read by the host.

1. `stats_kernel`: minimum, maximum and their numbers, per map and class.
2. `triplet_kernel`: the sums of L_tcp.
3. `rank_kernel`, four times: the exact k-th largest error of each term of L_cpcr by radix select. Errors are >= 0, so
   their bits order them: histograms of 8, 8, 8 and 7 bits, each within the digits found before. A thread holds one
   32nd of a histogram and looks at all of it for every element: three passes with 2048 bins would do more work.
4. `result_kernel`: threshold, number of ties and the mean of the k largest, per image and term.

Sums are of fixed parts in a fixed order and the histograms are of integers: the same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cpn_kernels.ops.cp_loss.triton_tiles import (
    cross_target,
    foreground,
    labels_of,
    positions,
    present_classes,
    raw_tile,
    refined_background,
    strongest,
)

BINS = tl.constexpr(256)
LEVELS = tl.constexpr(4)
LAST_BINS = tl.constexpr(128)


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
    wanted = tl.cast(wanted, tl.int32)
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
def digits(histograms, wanted, level_stride, COUNT: tl.constexpr):
    """The first COUNT digits of the wanted-th largest error as one number, and its rank among those that share them."""
    prefix = 0
    for level in tl.static_range(COUNT):
        digit, wanted = select(histograms + level * level_stride, wanted)
        prefix = prefix * BINS + digit
    return prefix, wanted


@triton.jit
def _rank(value, pooled, prefix, LEVEL: tl.constexpr, SIZE: tl.constexpr):
    """Histogram of the next digit of errors whose digits so far are `prefix`, and the sum of those just above it."""
    value = tl.reshape(value, [SIZE])
    pooled = tl.reshape(pooled, [SIZE])
    bits = value.to(tl.int32, bitcast=True)
    known = bits >> (31 - 8 * LEVEL) if LEVEL > 0 else bits * 0
    digit = (bits >> (23 - 8 * LEVEL)) % BINS if LEVEL < LEVELS - 1 else bits % LAST_BINS
    counts = tl.histogram(digit, BINS, pooled & (known == prefix))
    # Those above by an earlier digit were summed at its level.
    above = tl.where(pooled & (known > prefix) & (known // BINS == prefix // BINS), value, 0.0)
    return counts, tl.sum(above, axis=0)


@triton.jit
def _triplet_sum(
    maps,
    stats,
    image,
    k,
    labelled,
    share,
    REFINED: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Sum of L_tcp's absolute differences over every n-th tile of an image, of classes k; the others differ by 0."""
    classes, out_w = maps[9], maps[13]
    count = maps[12] * out_w
    total = 0.0
    for start in range(tl.program_id(0) * SPAN, count, tl.num_programs(0) * SPAN):
        y, x, inside = positions(start, SPAN, out_w, count)
        held = (k < classes)[:, None] & inside[None, :]
        for kind in tl.static_range(1 + REFINED):
            full = foreground(maps, stats, kind, 0, False, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
            error = share * foreground(
                maps, stats, kind, 1, True, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED
            )
            error += (1 - share) * foreground(
                maps, stats, kind, 2, True, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED
            )
            total += tl.sum(tl.where(held, tl.abs(error - full), 0.0))
    return total


@triton.jit
def triplet_kernel(
    cam,
    rcam,
    labels,
    visible,
    stats,
    sums,  # written, float32 [B, programs]
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
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
    KP: tl.constexpr,
    SPAN: tl.constexpr,
    SLOTS: tl.constexpr,
    SLOTS_SPAN: tl.constexpr,
):
    """Sum of L_tcp's absolute differences over every n-th tile of an image."""
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
        total = _triplet_sum(
            maps, stats, image, k, k < classes, share, REFINED, UPSAMPLE, MINMAX, SHARED,
            SLOTS_SPAN,
        )  # fmt: skip
    else:
        total = _triplet_sum(
            maps, stats, image, tl.arange(0, KP), labelled, share, REFINED, UPSAMPLE, MINMAX, SHARED, SPAN
        )
    tl.store(sums + image * tl.num_programs(0) + tl.program_id(0), total)


@triton.jit
def _ranked(
    maps,
    stats,
    image,
    k,
    labelled,
    share,
    term,
    prefix,
    LEVEL: tl.constexpr,
    PRESENT: tl.constexpr,
    TARGET: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    MINMAX: tl.constexpr,
    SHARED: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Histogram [BINS] and sum of `_rank` over every n-th tile of an image; classes without a row have errors of 0."""
    out_w = maps[13]
    count = maps[12] * out_w
    pool = labelled if PRESENT else k < maps[9]
    counts = tl.zeros([BINS], tl.int32)
    above = 0.0
    for start in range(tl.program_id(0) * SPAN, count, tl.num_programs(0) * SPAN):
        y, x, inside = positions(start, SPAN, out_w, count)
        full = foreground(maps, stats, False, 0, False, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED)
        part = foreground(
            maps, stats, False, 1 + term, True, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED
        )
        other = foreground(
            maps, stats, True, 2 - term, True, image, k, labelled, y, x, inside, UPSAMPLE, MINMAX, SHARED
        )
        rest, back = cross_target(maps, full, part, share, k, TARGET)
        front = tl.abs(rest - (1 - share) * other)
        back = tl.abs(back - refined_background(strongest(maps, other, k), 1 - share, TARGET))
        added, more = _rank(front, pool[:, None] & inside[None, :], prefix, LEVEL, k.shape[0] * SPAN)
        counts += added
        above += more
        added, more = _rank(back, inside, prefix, LEVEL, SPAN)
        counts += added
        above += more
        if not PRESENT:
            zeros = maps[14] * tl.sum(inside.to(tl.int32), axis=0)
            counts += tl.where((tl.arange(0, BINS) == 0) & (prefix == 0), zeros, 0)
    return counts, above


@triton.jit
def rank_kernel(
    cam,
    rcam,
    labels,
    visible,
    stats,
    histograms,  # int32 [LEVELS, B, 2, BINS], zero
    sums,  # written, float32 [LEVELS, B, 2, programs]: errors that are above the digits found so far
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
    """One pass of the radix select of one term of eq. 15, over every n-th tile of an image.

    The first term's target is what I_h leaves of Y_o, for I_hbar to refine; the second's is the other way round.
    """
    image = tl.program_id(1).to(tl.int64)
    term = tl.program_id(2)
    labelled = labels_of(labels, image, tl.arange(0, KP), classes)
    present = tl.sum(labelled.to(tl.int32), axis=0)
    absent = tl.where(present <= SLOTS, classes - present, 0)
    maps = (
        cam, rcam, cam_n, cam_k, cam_p, rcam_n, rcam_k, rcam_p, batch, classes, grid_h, grid_w, out_h, out_w, absent
    )  # fmt: skip
    share = tl.load(visible + image).to(tl.float32)
    share = tl.where(term == 0, share, 1 - share)
    level_stride = tl.cast(batch, tl.int64) * 2 * BINS
    mine = histograms + (image * 2 + term) * BINS
    prefix = 0
    if LEVEL > 0:
        k_wanted = wanted_count(present, wanted, fraction_bits, out_h * out_w, PRESENT)
        prefix, _ = digits(mine, k_wanted, level_stride, LEVEL)
    if present <= SLOTS:
        k = present_classes(labelled, classes, KP, SLOTS)
        counts, above = _ranked(
            maps, stats, image, k, k < classes, share, term, prefix,
            LEVEL, PRESENT, TARGET, UPSAMPLE, MINMAX, SHARED, SLOTS_SPAN,
        )  # fmt: skip
    else:
        counts, above = _ranked(
            maps, stats, image, tl.arange(0, KP), labelled, share, term, prefix,
            LEVEL, PRESENT, TARGET, UPSAMPLE, MINMAX, SHARED, SPAN,
        )  # fmt: skip
    programs = tl.num_programs(0)
    tl.store(sums + ((LEVEL * batch + image) * 2 + term) * programs + tl.program_id(0), above)
    digit = tl.arange(0, BINS)
    tl.atomic_add(mine + LEVEL * level_stride + digit, counts, mask=counts > 0)


@triton.jit
def result_kernel(
    labels,
    triplet_sums,  # float32 [B, programs], read if TCP
    histograms,
    sums,  # float32 [LEVELS, B, 2, programs]
    losses,  # written, float32 [B, 3]: L_tcp, and the two terms of L_cpcr
    ranks,  # written, float32 [B, 2, 3]: threshold, share of its ties that count, k
    wanted,
    fraction_bits,
    batch,
    classes,
    places,
    programs,
    TCP: tl.constexpr,
    CPCR: tl.constexpr,
    PRESENT: tl.constexpr,
    KP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Turn one image's sums and histograms into its losses and the ranks that the gradient needs."""
    image = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    used = part < programs
    triplet_loss = 0.0
    if TCP:
        elements = tl.cast(classes, tl.float32) * tl.cast(places, tl.float32)
        triplet_loss = tl.sum(tl.load(triplet_sums + image * programs + part, mask=used, other=0.0), axis=0) / elements
    tl.store(losses + image * 3, triplet_loss)
    k = tl.arange(0, KP)
    present = tl.sum(labels_of(labels, image, k, classes).to(tl.int32), axis=0)
    level_stride = tl.cast(batch, tl.int64) * 2 * BINS
    digit = tl.arange(0, BINS)
    for term in tl.static_range(2):
        loss = 0.0
        if CPCR:
            k_wanted = wanted_count(present, wanted, fraction_bits, places, PRESENT)
            histogram = histograms + (image * 2 + term) * BINS
            prefix, left = digits(histogram, k_wanted, level_stride, LEVELS - 1)
            least, left = select(histogram + (LEVELS - 1) * level_stride, left)
            last = tl.load(histogram + (LEVELS - 1) * level_stride + digit)
            value = (prefix * LAST_BINS + digit).to(tl.float32, bitcast=True)
            above = tl.sum(tl.where((digit > least) & (last > 0), last.to(tl.float32) * value, 0.0), axis=0)
            for level in tl.static_range(1, LEVELS):
                parts = sums + ((level * batch + image) * 2 + term) * programs + part
                above += tl.sum(tl.load(parts, mask=used, other=0.0), axis=0)
            threshold = (prefix * LAST_BINS + least).to(tl.float32, bitcast=True)
            loss = (above + left.to(tl.float32) * threshold) / k_wanted.to(tl.float32)
            ties = tl.sum(tl.where(digit == least, last, 0), axis=0)
            rank = ranks + (image * 2 + term) * 3
            tl.store(rank, threshold)
            tl.store(rank + 1, left.to(tl.float32) / ties.to(tl.float32))
            tl.store(rank + 2, k_wanted.to(tl.float32))
        tl.store(losses + image * 3 + 1 + term, loss)
