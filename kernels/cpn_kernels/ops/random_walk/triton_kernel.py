"""The random walk on a GPU: one launch per step, a stencil that reads affinities and maps from the L2 cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpn_kernels.backend import on_its_device
from cpn_kernels.ops.random_walk.limits import BLOCK, TOGETHER, launch_grid
from cpn_kernels.ops.random_walk.reference import OFFSETS

_DOWN = tl.constexpr(tuple(dy for dy, _ in OFFSETS))
_RIGHT = tl.constexpr(tuple(dx for _, dx in OFFSETS))
_PAIRS = tl.constexpr(len(OFFSETS))


@triton.jit
def step_kernel(
    affinity,  # float32 [B, 34, h, w], as it weighs
    maps,  # float32 [B, C, h, w]
    output,  # float32 [B, C, h, w]
    classes,
    height,
    width,
    blocks,  # programs over an image's pixels
    groups,  # programs over its maps
    BLOCK: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """One step of one block of an image's pixels in one group of its maps."""
    program = tl.program_id(0)
    image = (program // (blocks * groups)).to(tl.int64)
    pixels = height * width
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y, x = pixel // width, pixel % width
    channel = program // blocks % groups * TOGETHER + tl.arange(0, TOGETHER)
    held = channel < classes
    affinity += image * _PAIRS * pixels
    place = (image * classes + channel[:, None]) * pixels + pixel[None]
    own = inside[None] & held[:, None]
    walked = tl.load(maps + place, mask=own, other=0.0)
    total = tl.full((BLOCK,), 1.0, tl.float32)
    for pair in tl.static_range(_PAIRS):
        down, right = _DOWN[pair], _RIGHT[pair]
        shift = down * width + right
        plane = affinity + tl.full((), pair, tl.int64) * pixels
        # A partner outside of the grid weighs nothing: neither its affinity nor its map is read.
        ahead = inside & (y < height - down) & (x + right >= 0) & (x + right < width)
        weight = tl.load(plane + pixel, mask=ahead, other=0.0)
        partner = tl.load(maps + place + shift, mask=ahead[None] & held[:, None], other=0.0)
        walked += weight[None] * partner
        total += weight
        behind = inside & (y >= down) & (x - right >= 0) & (x - right < width)
        weight = tl.load(plane + pixel - shift, mask=behind, other=0.0)
        partner = tl.load(maps + place - shift, mask=behind[None] & held[:, None], other=0.0)
        walked += weight[None] * partner
        total += weight
    tl.store(output + place, walked / total[None], mask=own)


@on_its_device
def random_walk(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Maps after the steps; see the public function.

    Args:
        affinity: float32 [B, 34, h, w], as it weighs.
        maps: float32 [B, C, h, w], not empty; not written to.
        steps: >= 1.
    """
    _, classes, height, width = maps.shape
    affinity, source = affinity.contiguous(), maps.contiguous()
    # Two buffers that take turns; a single step needs one.
    buffers = [torch.empty_like(source, memory_format=torch.contiguous_format) for _ in range(min(steps, 2))]
    blocks, groups, batch = launch_grid(maps)
    sizes = (classes, height, width, blocks, groups)
    for step in range(steps):
        target = buffers[step % 2]
        step_kernel[(blocks * groups * batch,)](affinity, source, target, *sizes, BLOCK=BLOCK, TOGETHER=TOGETHER)
        source = target
    return source
