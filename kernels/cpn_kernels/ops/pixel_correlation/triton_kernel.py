"""Pixel correlation on a GPU: the affinity lives in tiles on the chip, forward and backward, and never in memory.

Vectors are first packed: unit length, one row per pixel, zero-padded to whole tiles. A zero row has no affinity, so no
kernel needs a mask on the other side's tail. Products are of tensor-core operands (bfloat16, or float32 as tf32 or
three tf32 products) with float32 sums. Nothing is summed atomically: the same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAST_LENGTH = tl.constexpr(1e-12)  # as torch.nn.functional.normalize


@triton.jit
def _operand(x, OPERAND: tl.constexpr, ROUND: tl.constexpr):
    """`x` as a tensor-core operand.

    ROUND with OPERAND float32 rounds to the nearest bfloat16, ties to even, as the hardware's conversion does: Triton's
    interpreter multiplies no bfloat16, and its own conversion cuts off.
    """
    if ROUND and OPERAND == tl.float32:  # noqa: SIM300
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        near = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        return tl.where(x == x, near, x)
    return x.to(OPERAND)


@triton.jit
def _rows(base, row, count, start: tl.constexpr, WIDTH: tl.constexpr, PIECE: tl.constexpr):
    """Columns start..start + PIECE of packed rows, zero behind the last row; [rows, PIECE]."""
    column = start + tl.arange(0, PIECE)
    return tl.load(base + row[:, None] * WIDTH + column[None, :], mask=row[:, None] < count, other=0.0)


@triton.jit
def pack_kernel(
    source,  # [B, R, N], any strides
    packed,  # [B, N, WIDTH]
    lengths,  # float32 [B, N], written if NORMALISE
    stride_b,
    stride_r,
    stride_n,
    pixels,
    rows,
    NORMALISE: tl.constexpr,
    ROUND: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Transpose [R, N] to zero-padded rows [N, WIDTH]; NORMALISE scales each pixel's vector to length 1."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    start_of_pixel = source + image * stride_b + pixel[:, None].to(tl.int64) * stride_n
    length = tl.zeros([BLOCK], tl.float32)
    if NORMALISE:
        for start in tl.static_range(0, WIDTH, PIECE):
            row = start + tl.arange(0, PIECE)[None, :]
            held = inside[:, None] & (row < rows)
            x = tl.load(start_of_pixel + row.to(tl.int64) * stride_r, mask=held, other=0.0).to(tl.float32)
            length += tl.sum(x * x, axis=1)
        length = tl.sqrt(length)
        tl.store(lengths + image * pixels + pixel, length, mask=inside)
        length = tl.where(length < LEAST_LENGTH, LEAST_LENGTH, length)  # a NaN stays
    for start in tl.static_range(0, WIDTH, PIECE):
        row = start + tl.arange(0, PIECE)[None, :]
        held = inside[:, None] & (row < rows)
        x = tl.load(start_of_pixel + row.to(tl.int64) * stride_r, mask=held, other=0.0).to(tl.float32)
        if NORMALISE:
            x = x / length[:, None]
        x = _operand(x, packed.dtype.element_ty, ROUND)
        tl.store(packed + (image * pixels + pixel[:, None]) * WIDTH + row, x, mask=inside[:, None])


@triton.jit
def correlate_kernel(
    queries,  # unit vectors [B, M, WIDTH]
    keys,  # unit vectors [B, N, WIDTH]
    values,  # [B, N, CHANNELS]
    output,  # float32 [B, C, M]
    totals,  # float32 [B, M], written if DIVIDE
    query_count,
    key_count,
    channels,
    eps,
    DIVIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    ROUND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """output_j = sum_i values_i relu(k_i . q_j), divided by (sum_i relu(k_i . q_j) + eps) if DIVIDE."""
    image = tl.program_id(1).to(tl.int64)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    queries += image * query_count * WIDTH
    keys += image * key_count * WIDTH
    values += image * key_count * CHANNELS
    mine = ()
    for start in tl.static_range(0, WIDTH, PIECE):
        mine = mine + (_rows(queries, query, query_count, start, WIDTH, PIECE),)
    weighted = tl.zeros([BLOCK_Q, CHANNELS], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    for first in range(0, key_count, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        affinity = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
        for piece in tl.static_range(WIDTH // PIECE):
            theirs = _rows(keys, key, key_count, piece * PIECE, WIDTH, PIECE)
            affinity = tl.dot(mine[piece], tl.trans(theirs), affinity, input_precision=PRECISION)
        affinity = tl.where(affinity < 0, 0.0, affinity)  # unlike maximum(), lets a NaN through
        total += tl.sum(affinity, axis=1)
        value = _rows(values, key, key_count, 0, CHANNELS, CHANNELS)
        weighted = tl.dot(_operand(affinity, OPERAND, ROUND), value, weighted, input_precision=PRECISION)
    inside = query < query_count
    if DIVIDE:
        total += eps
        tl.store(totals + image * query_count + query, total, mask=inside)
        weighted = weighted / total[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    place = (image * channels + channel) * query_count + query[:, None]
    tl.store(output + place, weighted, mask=inside[:, None] & (channel < channels))


@triton.jit
def pack_gradient_kernel(
    gradient,  # dL/doutput [B, C, M], any strides
    output,  # float32 [B, C, M], contiguous
    totals,  # float32 [B, M]
    scaled,  # written, [B, M, CHANNELS]
    offsets,  # written, float32 [B, M]
    stride_b,
    stride_c,
    stride_m,
    query_count,
    channels,
    ROUND: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """scaled_j = gradient_j / total_j and offset_j = scaled_j . output_j, so that dL/dA_ij = m_i . scaled_j - offset_j.

    The offset takes the rounded `scaled`: dL/dA is then scaled_j . (m_i - output_j) with one scaled_j, and where the
    two maps nearly agree nothing of the rounding is left over.
    """
    image = tl.program_id(1).to(tl.int64)
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = query < query_count
    held = inside[:, None] & (channel < channels)
    place = image * stride_b + channel.to(tl.int64) * stride_c + query[:, None].to(tl.int64) * stride_m
    total = tl.load(totals + image * query_count + query, mask=inside, other=1.0)
    share = tl.load(gradient + place, mask=held, other=0.0).to(tl.float32) / total[:, None]
    share = _operand(share, scaled.dtype.element_ty, ROUND)
    tl.store(scaled + (image * query_count + query[:, None]) * CHANNELS + channel, share, mask=inside[:, None])
    mean = tl.load(output + (image * channels + channel) * query_count + query[:, None], mask=held, other=0.0)
    tl.store(offsets + image * query_count + query, tl.sum(share.to(tl.float32) * mean, axis=1), mask=inside)


@triton.jit
def gradient_kernel(
    rows,  # unit vectors that receive gradient, [B, R, WIDTH]
    others,  # unit vectors on the other side, [B, O, WIDTH]
    row_values,  # maps of the rows, where they are keys
    other_values,  # maps of the others, where they are keys
    row_scaled,  # packed gradients of the rows, where they are queries
    other_scaled,
    row_offsets,
    other_offsets,
    lengths,  # float32 [B, R], lengths of the rows before normalisation
    gradient,  # written, float32 [B, E, R]
    row_count,
    other_count,
    embedding,
    ROW_IS_KEY: tl.constexpr,
    ROW_IS_QUERY: tl.constexpr,
    OPERAND: tl.constexpr,
    ROUND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Gradient of the embedding through the affinity and the normalisation.

    The affinity of a set with itself is symmetric: with both flags a row collects dL/dA_ij and dL/dA_ji in one pass.
    """
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < row_count
    rows += image * row_count * WIDTH
    others += image * other_count * WIDTH
    if ROW_IS_KEY:
        row_value = _rows(row_values + image * row_count * CHANNELS, row, row_count, 0, CHANNELS, CHANNELS)
    if ROW_IS_QUERY:
        row_share = _rows(row_scaled + image * row_count * CHANNELS, row, row_count, 0, CHANNELS, CHANNELS)
        row_offset = tl.load(row_offsets + image * row_count + row, mask=inside, other=0.0)
    mine = ()
    sums = ()
    for start in tl.static_range(0, WIDTH, PIECE):
        mine = mine + (_rows(rows, row, row_count, start, WIDTH, PIECE),)
        sums = sums + (tl.zeros([BLOCK_R, PIECE], tl.float32),)
    for first in range(0, other_count, BLOCK_O):
        other = first + tl.arange(0, BLOCK_O)
        affinity = tl.zeros([BLOCK_R, BLOCK_O], tl.float32)
        theirs = ()
        for piece in tl.static_range(WIDTH // PIECE):
            theirs = theirs + (_rows(others, other, other_count, piece * PIECE, WIDTH, PIECE),)
            affinity = tl.dot(mine[piece], tl.trans(theirs[piece]), affinity, input_precision=PRECISION)
        slope = tl.zeros([BLOCK_R, BLOCK_O], tl.float32)
        if ROW_IS_KEY:
            share = _rows(other_scaled + image * other_count * CHANNELS, other, other_count, 0, CHANNELS, CHANNELS)
            slope = tl.dot(row_value, tl.trans(share), slope, input_precision=PRECISION)
            offset = tl.load(other_offsets + image * other_count + other, mask=other < other_count, other=0.0)
            slope -= offset[None, :]
        if ROW_IS_QUERY:
            value = _rows(other_values + image * other_count * CHANNELS, other, other_count, 0, CHANNELS, CHANNELS)
            slope = tl.dot(row_share, tl.trans(value), slope, input_precision=PRECISION)
            slope -= row_offset[:, None]
        slope = _operand(tl.where(affinity <= 0, 0.0, slope), OPERAND, ROUND)
        grown = ()
        for piece in tl.static_range(WIDTH // PIECE):
            grown = grown + (tl.dot(slope, theirs[piece], sums[piece], input_precision=PRECISION),)
        sums = grown

    # Back through u = g / max(|g|, 1e-12): the part along u is lost, but for vectors too short to be scaled by |g|.
    length = tl.load(lengths + image * row_count + row, mask=inside, other=1.0)
    along = tl.zeros([BLOCK_R], tl.float32)
    for piece in tl.static_range(WIDTH // PIECE):
        along += tl.sum(mine[piece].to(tl.float32) * sums[piece], axis=1)
    along = tl.where(length <= LEAST_LENGTH, 0.0, along)
    length = tl.where(length < LEAST_LENGTH, LEAST_LENGTH, length)
    for piece in tl.static_range(WIDTH // PIECE):
        change = (sums[piece] - mine[piece].to(tl.float32) * along[:, None]) / length[:, None]
        column = piece * PIECE + tl.arange(0, PIECE)[None, :]
        place = (image * embedding + column) * row_count + row[:, None]
        tl.store(gradient + place, change, mask=inside[:, None] & (column < embedding))
