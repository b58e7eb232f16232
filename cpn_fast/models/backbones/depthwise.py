"""Depthwise 3x3 convolutions whose backward pass is slow in oneDNN, computed by ones that it is fast at.

On a CPU torch's backward pass of a dilated depthwise convolution, and in bfloat16 of a strided one, falls to a general
form, up to ten times slower than that of the plain convolution. A dilated convolution is a plain one on each grid of
every dilation-th row and column; a strided one is a plain one of which every second output counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_kernels.backend import exporting

BFLOAT16_CPU = torch.cpu._is_avx512_bf16_supported()
"""Whether this processor multiplies bfloat16; asked here, since torch.compile does not trace the question."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """`conv` with this weight and bias instead of its own; the same function by the fastest backward pass.

    Args:
        x: float [B, in, H, W].
        weight: float, as `conv.weight`.
        bias: float [out] or None.
        conv: says stride, padding, dilation and groups.

    Returns:
        [B, out, H', W'].
    """
    if not _slow_backward(x, weight, conv):
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Depthwise.apply(x, weight, bias, conv.stride[0], conv.dilation[0])


def _slow_backward(x: Tensor, weight: Tensor, conv: nn.Conv2d) -> bool:
    if x.device.type != "cpu" or conv.groups != x.shape[1] or conv.kernel_size != (3, 3) or exporting():
        return False
    if not torch.is_grad_enabled() or not (x.requires_grad or weight.requires_grad):
        return False
    stride, dilation = conv.stride, conv.dilation
    if conv.weight.shape[0] != x.shape[1] or stride[0] != stride[1] or dilation[0] != dilation[1]:
        return False
    if conv.padding != dilation:
        return False
    if stride[0] == 1:
        return dilation[0] > 1
    halved = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return stride[0] == 2 and dilation[0] == 1 and halved == torch.bfloat16  # float32 is faster by itself


class _Depthwise(torch.autograd.Function):
    """A depthwise 3x3 convolution whose padding is its dilation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        return F.conv2d(x, weight, bias, stride, dilation, dilation, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient, dilation, dtype = gradients[0], ctx.dilation, x.dtype
        if dtype == torch.bfloat16 and not BFLOAT16_CPU:
            # Without instructions for it the sums over pixels would be rounded to bfloat16 on the way.
            x, weight, gradient = x.float(), weight.float(), gradient.float()
        bias_gradient = gradient.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None
        if ctx.stride == 1:
            inputs, outputs = _phases(x, dilation), _phases(gradient, dilation)
        else:
            inputs, outputs = x, torch.zeros_like(x)
            outputs[:, :, :: ctx.stride, :: ctx.stride] = gradient
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        input_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
            outputs, inputs, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], x.shape[1], wanted
        )
        if ctx.stride == 1 and input_gradient is not None:
            input_gradient = _merged(input_gradient, dilation, x.shape)
        found = (input_gradient, weight_gradient, bias_gradient)
        return *(None if value is None else value.to(dtype) for value in found), None, None


def _phases(x: Tensor, step: int) -> Tensor:
    """The grids of every step-th row and column, [B, C, H, W] -> [step^2 B, C, ceil(H / step), ceil(W / step)]."""
    batch, channels, height, width = x.shape
    x = F.pad(x, (0, -width % step, 0, -height % step)).permute(0, 2, 3, 1)
    rows, columns = x.shape[1] // step, x.shape[2] // step
    x = x.reshape(batch, rows, step, columns, step, channels).permute(2, 4, 0, 1, 3, 5)
    return x.reshape(step * step * batch, rows, columns, channels).permute(0, 3, 1, 2)


def _merged(x: Tensor, step: int, shape: torch.Size) -> Tensor:
    """The inverse of `_phases` for a tensor that had this shape."""
    batch, channels, height, width = shape
    rows, columns = x.shape[2], x.shape[3]
    x = x.permute(0, 2, 3, 1).reshape(step, step, batch, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
    x = x.reshape(batch, rows * step, columns * step, channels)
    return x[:, :height, :width].permute(0, 3, 1, 2)
