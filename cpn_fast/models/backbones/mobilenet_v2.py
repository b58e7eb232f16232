"""MobileNetV2 (Sandler et al., CVPR 2018) in torchvision's key layout, stride 16 or 8 by dilation."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn

from cpn_fast.models.backbones.common import Backbone, Features, conv_norm, relu6_

# expansion, channels, blocks, stride of the first block (Table 2 of the paper)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
LAST_OF_32, LAST_OF_96 = 6, 13


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, ReLU6; the indices 0 and 1 are torchvision's keys."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1):
        padding = (kernel - 1) // 2 * dilation
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride] in 0..6."""
        conv, norm = self
        return relu6_(conv_norm(x, cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection, added to the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, dilation: int, residual: bool) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [ConvNorm(inputs, hidden, kernel=1)] if expansion != 1 else []
        depthwise = ConvNorm(hidden, hidden, stride=stride, dilation=dilation, groups=hidden)
        project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.conv = nn.Sequential(*expand, depthwise, project, nn.BatchNorm2d(outputs))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        *layers, project, norm = self.conv
        branch = x
        for layer in layers:
            branch = layer(branch)
        branch = conv_norm(branch, cast(nn.Conv2d, project), cast(nn.BatchNorm2d, norm))
        return branch.add_(x) if self.residual else branch


class MobileNetV2(Backbone):
    """MobileNetV2 1.0 without its classifier; every weight but the batch norms' trains in CAM training.

    Args:
        frozen: see `Backbone`.
        stride: of `high` and `final`, 16 or 8. Stages beyond it keep their resolution and are dilated instead; the
            first block of such a stage keeps the dilation before it, since its input grid has not changed yet.
    """

    def __init__(self, frozen: bool = True, stride: Literal[8, 16] = 16) -> None:
        super().__init__()
        self.channels, self.strides = (32, 96, 1280), (8, stride, stride)
        layers: list[nn.Module] = [ConvNorm(3, 32, stride=2)]
        inputs, current, dilation = 32, 2, 1
        for expansion, outputs, blocks, first_stride in STAGES:
            for index in range(blocks):
                step, block_dilation = (first_stride if index == 0 else 1), dilation
                residual = step == 1 and inputs == outputs
                if step == 2 and current == stride:
                    step, dilation = 1, dilation * 2
                current *= step
                layers.append(InvertedResidual(inputs, outputs, expansion, step, block_dilation, residual))
                inputs = outputs
        layers.append(ConvNorm(inputs, 1280, kernel=1))
        self.features = nn.Sequential(*layers)
        self.initialise(frozen)

    def forward(self, x: Tensor) -> Features:
        """[B, 3, H, W] -> mid [B, 32, H/8, W/8], high [B, 96, H/stride, W/stride], final [B, 1280, same]."""
        mid = high = x
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index == LAST_OF_32:
                mid = x
            elif index == LAST_OF_96:
                high = x
        return mid, high, x
