"""The random walk kernel as a custom operator, so that torch.compile passes through."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 128
"""Pixels of one program of the kernel."""

TOGETHER = 4
"""Maps of one program, which share the affinities once they are loaded. With more of them, most of a GPU would be idle:
an image has some thousands of pixels."""


def launch_grid(maps: Tensor) -> tuple[int, int, int]:
    """Programs over the pixels of an image, over its maps, and over the images, for maps [B, C, h, w]."""
    batch, classes, height, width = maps.shape
    return -(-height * width // BLOCK), -(-classes // TOGETHER), batch


def fits(maps: Tensor) -> bool:
    """Whether the kernel takes maps of this size: it counts an image's pixels, and its programs, in 32 bits."""
    return maps.shape[2] * maps.shape[3] <= 2**31 - BLOCK and math.prod(launch_grid(maps)) < 2**31


@torch.library.custom_op("cpn::random_walk", mutates_args=())
def random_walk_op(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Maps after the steps; see `triton_kernel.random_walk`."""
    from cpn_kernels.random_walk import triton_kernel

    return triton_kernel.random_walk(affinity, maps, steps)


@random_walk_op.register_fake
def _(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    del affinity, steps
    return torch.empty_like(maps, memory_format=torch.contiguous_format)
