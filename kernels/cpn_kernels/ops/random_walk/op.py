"""The random walk kernel as a custom operator, so that torch.compile passes through."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("cpn::random_walk", mutates_args=())
def random_walk_op(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Maps after the steps; see `triton_kernel.random_walk`."""
    from cpn_kernels.ops.random_walk import triton_kernel

    return triton_kernel.random_walk(affinity, maps, steps)


@random_walk_op.register_fake
def _(affinity: Tensor, maps: Tensor, steps: int) -> Tensor:
    del affinity, steps
    return torch.empty_like(maps, memory_format=torch.contiguous_format)
