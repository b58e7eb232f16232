"""Launches of the pixel correlation kernels: tile sizes, workspace and grids."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpn_kernels.backend import on_its_device
from cpn_kernels.ops.pixel_correlation import triton_kernel as kernels

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, which cannot multiply bfloat16: there it is float32, rounded alike."""

PACK_BLOCK = 32
PACK_GRADIENT_BLOCK = 16
"""Pixels of one packing program."""


REGISTERS = 255
"""Bound of a thread's registers: left to itself the assembler stops at 128 for some tiles, and spills the rest."""


class Tiles(NamedTuple):
    """Tile of one program: rows it owns, rows of the other side it takes at a time, warps and pipeline stages."""

    rows: int
    others: int
    warps: int
    stages: int


INTERPRETER_TILES = Tiles(64, 64, 4, 1)
"""The interpreter's time goes with the number of programs and products."""


class Shape(NamedTuple):
    """Constants of a compiled kernel.

    Attributes:
        width: embedding channels, padded to whole pieces.
        piece: embedding channels per tensor-core product.
        channels: map channels, padded to a power of two of at least 16.
        precision: "bf16", "tf32" or "fp32" (three tf32 products).
    """

    width: int
    piece: int
    channels: int
    precision: str

    @property
    def half(self) -> bool:
        """Whether operands are bfloat16."""
        return self.precision == "bf16"

    def arguments(self, interpreted: bool = INTERPRETED) -> dict[str, object]:
        """The keyword constants that both product kernels take."""
        return {
            "OPERAND": tl.bfloat16 if self.half and not interpreted else tl.float32,
            "ROUND": self.half,
            "PRECISION": "tf32x3" if self.precision == "fp32" else "tf32",
            "WIDTH": self.width,
            "PIECE": self.piece,
            "CHANNELS": self.channels,
        }


def kernel_shape(embedding: int, channels: int, precision: str) -> Shape:
    """Padded sizes for an embedding of up to 256 channels and up to 128 map channels."""
    piece = min(64, max(16, triton.next_power_of_2(embedding)))
    width = triton.cdiv(embedding, piece) * piece
    return Shape(width, piece, max(16, triton.next_power_of_2(channels)), precision)


def forward_tiles(shape: Shape, capability: tuple[int, int]) -> Tiles:
    """Tiles of `correlate_kernel` that neither spill registers nor pass the target's shared memory."""
    if INTERPRETED:
        return INTERPRETER_TILES
    if shape.precision == "fp32" and capability[0] == 8:
        return Tiles(32, 32, 8, 2 if shape.width <= 192 else 1)
    if not shape.half:
        warps = 8 if shape.precision == "fp32" and capability[0] >= 10 else 4
        return Tiles(64, 32, warps, 1 if shape.width > 192 and capability[0] == 8 else 2)
    if capability[0] == 9 and shape.channels <= 64:
        return Tiles(128, 64, 8, 3)
    return Tiles(64, 64, 4, 2)


def backward_tiles(shape: Shape, capability: tuple[int, int]) -> Tiles:
    """Tiles of `gradient_kernel`, chosen likewise: it holds a row's whole gradient in registers."""
    if INTERPRETED:
        return INTERPRETER_TILES
    if shape.half:
        if capability[0] == 9:
            return Tiles(64, 64 if shape.width <= 192 else 32, 8, 2)
        return Tiles(32, 32, 4, 2)
    if shape.precision == "tf32" and capability[0] == 9:
        return Tiles(32, 32, 8, 1)
    wide = shape.channels > 64
    if shape.precision == "tf32":
        if shape.width > 192 or (wide and capability[0] >= 10):
            return Tiles(16, 16, 4, 2)
        return Tiles(32, 16, 8 if wide else 4, 2)
    if shape.width <= 192 and shape.channels <= 32:
        return Tiles(32, 16, 8, 1) if capability[0] >= 10 else Tiles(32, 32, 8, 2 if capability[0] == 9 else 1)
    if wide and capability[0] == 8:
        return Tiles(16, 16, 8, 1)
    return Tiles(16, 16, 4, 2 if capability[0] == 9 or wide else 1)


def _capability(tensor: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (9, 0)


def _pack(source: Tensor, width: int, piece: int, half: bool, normalise: bool) -> tuple[Tensor, Tensor]:
    """Rows [B, N, width] of a [B, R, N] tensor, and the lengths [B, N] of its vectors (empty unless normalised)."""
    batch, rows, pixels = source.shape
    dtype = torch.bfloat16 if half and not INTERPRETED else torch.float32
    packed = torch.empty(batch, pixels, width, dtype=dtype, device=source.device)
    lengths = torch.empty((batch, pixels) if normalise else (0,), dtype=torch.float32, device=source.device)
    kernels.pack_kernel[(triton.cdiv(pixels, PACK_BLOCK), batch)](
        source,
        packed,
        lengths,
        *source.stride(),
        pixels,
        rows,
        NORMALISE=normalise,
        ROUND=half,
        WIDTH=width,
        PIECE=piece,
        BLOCK=PACK_BLOCK,
    )
    return packed, lengths


def _correlate(
    queries: Tensor, keys: Tensor, values: Tensor, channels: int, eps: float, divide: bool, shape: Shape
) -> tuple[Tensor, Tensor]:
    batch, query_count, _ = queries.shape
    output = torch.empty(batch, channels, query_count, dtype=torch.float32, device=queries.device)
    totals = torch.empty((batch, query_count) if divide else (0,), dtype=torch.float32, device=queries.device)
    tiles = forward_tiles(shape, _capability(queries))
    kernels.correlate_kernel[(triton.cdiv(query_count, tiles.rows), batch)](
        queries,
        keys,
        values,
        output,
        totals,
        query_count,
        keys.shape[1],
        channels,
        eps,
        DIVIDE=divide,
        **shape.arguments(),
        BLOCK_Q=tiles.rows,
        BLOCK_K=tiles.others,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        maxnreg=REGISTERS,
    )
    return output, totals


@on_its_device
def forward(
    embedding: Tensor, queries: Tensor | None, maps: Tensor, eps: float, precision: str
) -> tuple[Tensor, Tensor]:
    """Output [B, C, M] and totals [B, M], both float32; see the public function."""
    shape = kernel_shape(embedding.shape[1], maps.shape[1], precision)
    keys, _ = _pack(embedding, shape.width, shape.piece, shape.half, normalise=True)
    asked = keys if queries is None else _pack(queries, shape.width, shape.piece, shape.half, normalise=True)[0]
    values, _ = _pack(maps, shape.channels, shape.channels, shape.half, normalise=False)
    return _correlate(asked, keys, values, maps.shape[1], eps, True, shape)


@on_its_device
def backward(
    gradient: Tensor,
    embedding: Tensor,
    queries: Tensor | None,
    maps: Tensor,
    output: Tensor,
    totals: Tensor,
    role: str,
    precision: str,
) -> Tensor:
    """Gradient of one input, float32.

    Args:
        gradient: dL/doutput, [B, C, M].
        embedding: forward's, as are the next four.
        queries: as given.
        maps: as given.
        output: of the forward pass.
        totals: of the forward pass.
        role: "key" (embedding, of keys that are no queries), "query" (queries), "both" (embedding, of keys that are
            the queries) or "maps".
        precision: of the products.

    Returns:
        The gradient, in the shape of that input.
    """
    shape = kernel_shape(embedding.shape[1], maps.shape[1], precision)
    keys, key_lengths = _pack(embedding, shape.width, shape.piece, shape.half, normalise=True)
    asked, query_lengths = keys, key_lengths
    if queries is not None:
        asked, query_lengths = _pack(queries, shape.width, shape.piece, shape.half, normalise=True)
    batch, query_count, _ = asked.shape
    scaled = torch.empty(batch, query_count, shape.channels, dtype=keys.dtype, device=keys.device)
    offsets = torch.empty(batch, query_count, dtype=torch.float32, device=keys.device)
    kernels.pack_gradient_kernel[(triton.cdiv(query_count, PACK_GRADIENT_BLOCK), batch)](
        gradient,
        output,
        totals,
        scaled,
        offsets,
        *gradient.stride(),
        query_count,
        maps.shape[1],
        ROUND=shape.half,
        CHANNELS=shape.channels,
        BLOCK=PACK_GRADIENT_BLOCK,
    )
    if role == "maps":  # the affinity is symmetric in its two sides: queries give to keys what keys gave to queries
        return _correlate(keys, asked, scaled, maps.shape[1], 0.0, False, shape)[0]
    values, _ = _pack(maps, shape.channels, shape.channels, shape.half, normalise=False)
    rows, lengths, others = (asked, query_lengths, keys) if role == "query" else (keys, key_lengths, asked)
    result = torch.empty(batch, embedding.shape[1], rows.shape[1], dtype=torch.float32, device=keys.device)
    tiles = backward_tiles(shape, _capability(keys))
    kernels.gradient_kernel[(triton.cdiv(rows.shape[1], tiles.rows), batch)](
        rows,
        others,
        values,
        values,
        scaled,
        scaled,
        offsets,
        offsets,
        lengths,
        result,
        rows.shape[1],
        others.shape[1],
        embedding.shape[1],
        ROW_IS_KEY=role != "query",
        ROW_IS_QUERY=role != "key",
        **shape.arguments(),
        BLOCK_R=tiles.rows,
        BLOCK_O=tiles.others,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        maxnreg=REGISTERS,
    )
    return result
