"""EfficientNet-Lite2 (Tan and Le, ICML 2019; its Lite form without swish and squeeze-excitation) in timm's key layout.

Keys and arithmetic are those of timm's `tf_efficientnet_lite2`: TensorFlow's SAME padding, batch norms with an eps of
1e-3, ReLU6. Stride 16 or 8 by dilation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones.common import Backbone, Features, conv_norm, relu6_
from cpn_kernels.ops.cp_triplet import IMAGENET_MEAN, IMAGENET_STD

# expansion, kernel, channels, blocks, stride of the first block: B0's table times 1.1 in width, to multiples of 8, and
# times 1.2 in depth, rounded up; Lite leaves stem, head and the number of blocks of the first and last stage alone
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 3, 2),
    (6, 5, 48, 3, 2),
    (6, 3, 88, 4, 2),
    (6, 5, 120, 4, 1),
    (6, 5, 208, 5, 2),
    (6, 3, 352, 1, 1),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
STAGE_OF_MID, STAGE_OF_HIGH = 2, 4
NORM_EPS = 1e-3


def same_conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """`conv_norm` with TensorFlow's SAME padding, which a strided convolution lays mostly to the right and below.

    Args:
        x: [B, in, H, W].
        conv: of stride 1 with its own symmetric padding, or of stride 2 without any.
        norm: batch norm over the convolution's outputs.

    Returns:
        [B, out, ceil(H / stride), ceil(W / stride)].
    """
    if conv.stride[0] == 2:
        # All of (ceil(H / 2) - 1) * 2 + kernel - H: half a kernel behind; before, one row less where H is even.
        half = conv.kernel_size[0] // 2
        left, top = half - 1 + x.shape[3] % 2, half - 1 + x.shape[2] % 2
        x = F.pad(x, (left, half, top, half))
    return conv_norm(x, conv, norm)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 * dilation if stride == 1 else 0
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPS)


class SeparableBlock(nn.Module):
    """3x3 depthwise, 1x1 linear: the block of the first stage, without expansion."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _conv(inputs, inputs, kernel, groups=inputs)
        self.bn1 = _norm(inputs)
        self.conv_pw = _conv(inputs, outputs, 1)
        self.bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return conv_norm(relu6_(conv_norm(x, self.conv_dw, self.bn1)), self.conv_pw, self.bn2)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise, 1x1 linear projection, added to the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv_pw = _conv(inputs, hidden, 1)
        self.bn1 = _norm(hidden)
        self.conv_dw = _conv(hidden, hidden, kernel, stride, dilation, groups=hidden)
        self.bn2 = _norm(hidden)
        self.conv_pwl = _conv(hidden, outputs, 1)
        self.bn3 = _norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        branch = relu6_(conv_norm(x, self.conv_pw, self.bn1))
        branch = relu6_(same_conv_norm(branch, self.conv_dw, self.bn2))
        branch = conv_norm(branch, self.conv_pwl, self.bn3)
        return branch.add_(x) if self.residual else branch


class EfficientNetLite2(Backbone):
    """EfficientNet-Lite2 without its classifier; every weight but the batch norms' trains in CAM training.

    Its weights were trained on (pixel - 0.5) / 0.5, so what comes in, normalised by ImageNet's mean and standard
    deviation like for every backbone, is brought to that first.

    Args:
        frozen: see `Backbone`.
        stride: of `high` and `final`, 16 or 8. Stages beyond it keep their resolution and are dilated instead; the
            first block of such a stage keeps the dilation before it, since its input grid has not changed yet.
    """

    input_scale: Tensor
    input_shift: Tensor

    def __init__(self, frozen: bool = True, stride: Literal[8, 16] = 16) -> None:
        super().__init__()
        mid, high = STAGES[STAGE_OF_MID][2], STAGES[STAGE_OF_HIGH][2]
        self.channels, self.strides = (mid, high, HEAD_CHANNELS), (8, stride, stride)
        mean, spread = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        self.register_buffer("input_scale", 2 * spread, persistent=False)
        self.register_buffer("input_shift", 2 * mean - 1, persistent=False)
        self.conv_stem, self.bn1 = _conv(3, STEM_CHANNELS, 3, stride=2), _norm(STEM_CHANNELS)
        self.blocks = nn.Sequential()
        inputs, current, dilation = STEM_CHANNELS, 2, 1
        for expansion, kernel, outputs, blocks, first_stride in STAGES:
            stage = nn.Sequential()
            for index in range(blocks):
                step, block_dilation = (first_stride if index == 0 else 1), dilation
                if step == 2 and current == stride:
                    step, dilation = 1, dilation * 2
                current *= step
                stage.append(
                    SeparableBlock(inputs, outputs, kernel)
                    if expansion == 1
                    else InvertedResidual(inputs, outputs, expansion, kernel, step, block_dilation)
                )
                inputs = outputs
            self.blocks.append(stage)
        self.conv_head, self.bn2 = _conv(inputs, HEAD_CHANNELS, 1), _norm(HEAD_CHANNELS)
        self.initialise(frozen)

    def forward(self, x: Tensor) -> Features:
        """[B, 3, H, W] -> mid [B, 48, H/8, W/8], high [B, 120, H/stride, W/stride], final [B, 1280, same]."""
        x = x * self.input_scale + self.input_shift
        x = relu6_(same_conv_norm(x, self.conv_stem, self.bn1))
        mid = high = x
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index == STAGE_OF_MID:
                mid = x
            elif index == STAGE_OF_HIGH:
                high = x
        return mid, high, relu6_(conv_norm(x, self.conv_head, self.bn2))
