"""What all backbones share: the base class with its freezing rule, and convolution and batch norm in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones.depthwise import convolve
from cpn_kernels.backend import exporting

Features = tuple[Tensor, Tensor, Tensor]
"""mid, high, final."""


class Backbone(nn.Module):
    """Base class of the backbones: `forward(x)` gives the feature maps `mid`, `high` and `final`.

    Attributes:
        channels: channel counts of mid, high, final.
        strides: input pixels per feature pixel of mid, high, final; `strides[2]` is the CAM stride.
        frozen: whether the CAM-training rule holds: the early stages named by the backbone and the affine of every
            batch norm have `requires_grad` False, and every batch norm stays in eval mode, also under `train()`.
        norms_frozen: whether that holds for the batch norms; always where `frozen`.
    """

    channels: tuple[int, int, int]
    strides: tuple[int, int, int]
    frozen: bool = False
    norms_frozen: bool = False

    def forward(self, x: Tensor) -> Features:
        """Map images to features.

        Args:
            x: float [B, 3, H, W], normalised by ImageNet's mean and standard deviation.

        Returns:
            mid, high and final: [B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])].
        """
        raise NotImplementedError

    def early_stages(self) -> Sequence[nn.Module]:
        """The modules that CAM training freezes besides the batch norms."""
        return ()

    def undecayed(self) -> Sequence[nn.Parameter]:
        """The parameters, besides biases, that weight decay leaves alone."""
        return ()

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        """Every batch norm of the backbone."""
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def initialise(self, frozen: bool) -> None:
        """Kaiming initialisation, then the freezing rule if `frozen`. Subclasses call it once they are built."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.freeze(frozen)

    def freeze(self, frozen: bool) -> None:
        """Apply the freezing rule if `frozen`, and enter training mode."""
        self.frozen = frozen
        if frozen:
            for stage in self.early_stages():
                stage.requires_grad_(False)
            self.freeze_norms()
        self.train()

    def freeze_norms(self) -> None:
        """Keep statistics and affine of every batch norm as they are from now on."""
        self.norms_frozen = True
        for norm in self.batch_norms():
            norm.requires_grad_(False)
            norm.eval()

    def has_statistics(self) -> bool:
        """Whether the batch norms hold statistics of a training, not those they begin with; True where there are none.

        Weights whose batch norms were folded into the convolutions have none: such norms must stay frozen, since
        normalising by a batch would undo what was folded.
        """
        norms = [norm for norm in self.batch_norms() if norm.track_running_stats]
        if not norms:
            return True
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            if norm.running_mean.abs().max() > 1e-6 or (norm.running_var - 1).abs().max() > 1e-3:
                return True
        return False

    def train(self, mode: bool = True) -> Backbone:
        """Set the training mode; frozen batch norms stay in eval mode."""
        super().train(mode)
        if self.norms_frozen:
            for norm in self.batch_norms():
                norm.eval()
        return self


def norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """An eval-mode batch norm as `x * scale + shift`: float [channels] each."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm of a convolution without bias; in eval mode as one convolution.

    An eval-mode norm is linear, so its scale goes into the weight (differentiably) and its shift into the bias. That
    saves a pass over the activations and keeping them for the backward pass.

    Args:
        x: [B, in, H, W].
        conv: convolution without bias.
        norm: batch norm over the convolution's outputs.

    Returns:
        [B, out, H', W'], equal to `norm(conv(x))` up to float rounding. Safe to modify in place.
    """
    if norm.training:
        return norm(convolve(x, conv.weight, None, conv))
    scale, shift = norm_affine(norm)
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    return convolve(x, weight, shift, conv)


def norm_relu(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """ReLU of a batch norm: [B, channels, H, W] -> the same shape. `x` is left as it is.

    A batch norm keeps `x` for its weight's gradient; a frozen one as a plain multiply-add keeps nothing, which saves
    memory in every block. In reduced precision the batch norm stays, since it rounds once, at its end.
    """
    if norm.training or norm.weight.requires_grad or x.dtype != norm.weight.dtype:
        return F.relu(norm(x), inplace=True)
    scale, shift = norm_affine(norm)
    return F.relu(torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1)), inplace=True)


class _Relu6(torch.autograd.Function):
    """min(max(x, 0), 6) that keeps its output, which the next convolution keeps anyway.

    A compiled `relu6` keeps a boolean mask of its input, and storing that took 60% of a compiled CPU step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output = x.clamp(0, 6)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradients[0].masked_fill((output <= 0) | (output >= 6), 0)


def relu6_(x: Tensor) -> Tensor:
    """ReLU6 that may overwrite `x`; the same values and gradient in every mode, compiled or not.

    An export to ONNX has its operator at once: torch takes it apart into comparisons of maps whose sizes are formulas,
    which was half of the time that tracing a MobileNet took.

    Args:
        x: float, any shape, not used again by the caller.
    """
    if torch.compiler.is_compiling() and not exporting():
        return _Relu6.apply(x)
    if torch.onnx.is_in_onnx_export():
        limits = (torch.tensor(0.0, dtype=x.dtype), torch.tensor(6.0, dtype=x.dtype))
        return torch.onnx.ops.symbolic("Clip", (x, *limits), dtype=x.dtype, shape=x.shape)
    return F.relu6(x, inplace=True)
