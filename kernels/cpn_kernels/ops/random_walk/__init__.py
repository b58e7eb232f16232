"""Random walk: class maps flow between pixels that belong together, a step of at most 4 pixels at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from cpn_kernels.backend import use_triton
from cpn_kernels.ops.random_walk import native, reference
from cpn_kernels.ops.random_walk.limits import is_supported
from cpn_kernels.ops.random_walk.op import random_walk_op
from cpn_kernels.ops.random_walk.reference import OFFSETS, RADIUS

__all__ = ["OFFSETS", "RADIUS", "random_walk"]


def _check(affinity: Tensor, maps: Tensor, steps: int, power: int) -> None:
    for name, tensor in (("affinity", affinity), ("maps", maps)):
        if not tensor.dtype.is_floating_point or tensor.ndim != 4:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}; expected floating point with 4 dimensions")
    if affinity.shape[1] != len(OFFSETS):
        raise ValueError(f"affinity is {tuple(affinity.shape)}; expected [B, {len(OFFSETS)}, h, w]")
    if affinity.shape[0] != maps.shape[0] or affinity.shape[2:] != maps.shape[2:]:
        raise ValueError(f"affinity {tuple(affinity.shape)} and maps {tuple(maps.shape)} differ in B, h or w")
    if affinity.device != maps.device:
        raise ValueError(f"affinity is on {affinity.device}, maps on {maps.device}; expected one device")
    for name, value, least in (("steps", steps, 0), ("power", power, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; expected an integer >= {least}")


def random_walk(
    affinity: Tensor,  # [B, 34, h, w]
    maps: Tensor,  # [B, C, h, w]
    steps: int,
    power: int = 8,
) -> Tensor:  # [B, C, h, w]
    """Let maps walk over the pixels: `steps` times, every pixel takes the weighted mean of the disc around it.

    maps[:, j] becomes sum_i maps[:, i] a_ij**power / sum_i a_ij**power over the pixels i nearer than `RADIUS` to j, j
    among them with a_jj = 1 (method of AffinityNet: Ahn and Kwak, CVPR 2018, section 3.3). At the border of the grid
    the disc is cut.

    Args:
        affinity: a, float [B, 34, h, w], in [0, 1]: channel k at pixel (y, x) belongs to the pair of it and pixel
            (y + dy, x + dx) with (dy, dx) = OFFSETS[k]; of pairs that leave the grid it is not read.
        maps: float [B, C, h, w], such as normalised CAMs with background.
        steps: t >= 0.
        power: the power >= 1 (beta in that paper) to which affinities are raised first, taken here and in no other
            place: the higher it is, the fewer neighbours count.

    Returns:
        float [B, C, h, w], never the memory of `maps`; half precision is computed and returned as float32, and
        float64 where both are. Differentiable, though only as plain torch, which keeps every step. What is no number
        spreads as far as the walk does.

    Raises:
        ValueError: for other shapes, dtypes or devices, a number of steps below 0 or a power below 1.
    """
    _check(affinity, maps, steps, power)
    dtype = torch.float64 if affinity.dtype == maps.dtype == torch.float64 else torch.float32
    affinity, maps = affinity.to(dtype), maps.to(dtype)
    if steps == 0 or maps.numel() == 0:
        return maps.clone()
    weights = reference.raised(affinity, power)
    differentiable = torch.is_grad_enabled() and (affinity.requires_grad or maps.requires_grad)
    if not differentiable and use_triton(weights, maps) and is_supported(maps):
        return random_walk_op(weights, maps, steps)
    if not differentiable and native.is_supported(weights, maps):
        return native.random_walk(weights, maps, steps)
    return reference.random_walk(weights, maps, steps)
