"""ResNet38d, the paper's backbone (Wu et al., "Wider or Deeper", 2016, dilated to stride 8), in the key layout of psa.

All blocks are pre-activation: a batch norm and ReLU come before each convolution, and no convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones.common import Backbone, Features, conv_norm, norm_relu
from cpn_kernels.backend import exporting

EARLY = ("b2", "b2_1", "b2_2")
BLOCKS = (*EARLY, "b3", "b3_1", "b3_2", "b4", "b4_1", "b4_2", "b4_3", "b4_4", "b4_5", "b5", "b5_1", "b5_2", "b6", "b7")


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = (kernel - 1) // 2 * dilation
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


class PlainBlock(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-3x3; a 1x1 shortcut from the first BN-ReLU only where the shape changes."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, stride: int = 1, dilation: int = 1, first_dilation: int = 0
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv(inputs, middle, 3, stride, first_dilation or dilation)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = _conv(middle, outputs, 3, 1, dilation)
        self.conv_branch1 = _conv(inputs, outputs, 1) if inputs != outputs or stride != 1 else None
        self.stride = stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, inputs, H, W] -> the block's output [B, outputs, H / stride, W / stride], its first BN-ReLU."""
        first = norm_relu(x, self.bn_branch2a)
        branch = F.relu(conv_norm(first, self.conv_branch2a, self.bn_branch2b1), inplace=True)
        branch = self.conv_branch2b1(branch)
        if self.conv_branch1 is None:
            return branch.add_(x), first
        if exporting():
            # torch.export cannot prove that a slice's size, (H + 1) // 2, is a convolution's, (H - 1) // 2 + 1
            return branch.add_(F.conv2d(first, self.conv_branch1.weight, stride=self.stride)), first
        # A strided 1x1 convolution reads these positions only. Slicing gives the same result and avoids the CPU
        # backward of torch 2.13, which writes out of bounds for 8 channels in channels_last.
        step = self.stride
        return branch.add_(self.conv_branch1(first[:, :, ::step, ::step])), first


class BottleneckBlock(nn.Module):
    """BN-ReLU-1x1 (out/4)-BN-ReLU-3x3 (out/2)-BN-ReLU-1x1; channel dropout before the second and third convolution."""

    def __init__(self, inputs: int, outputs: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv(inputs, outputs // 4, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(outputs // 4)
        self.conv_branch2b1 = _conv(outputs // 4, outputs // 2, 3, 1, dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(outputs // 2)
        self.conv_branch2b2 = _conv(outputs // 2, outputs, 1)
        self.conv_branch1 = _conv(inputs, outputs, 1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, inputs, H, W] -> the block's output [B, outputs, H, W], its first BN-ReLU."""
        first = norm_relu(x, self.bn_branch2a)
        branch = F.relu(conv_norm(first, self.conv_branch2a, self.bn_branch2b1), inplace=True)
        branch = F.dropout2d(branch, self.dropout, self.training)
        branch = F.relu(conv_norm(branch, self.conv_branch2b1, self.bn_branch2b2), inplace=True)
        branch = F.dropout2d(branch, self.dropout, self.training)
        branch = self.conv_branch2b2(branch)
        return branch.add_(self.conv_branch1(first)), first


class ResNet38(Backbone):
    """ResNet38d at stride 8; CAM training freezes conv1a, b2 and every batch norm.

    Args:
        frozen: see `Backbone`.
        divisor: all channel counts are divided by it; 8 makes `resnet38_tiny`.
    """

    def __init__(self, frozen: bool = True, divisor: int = 1) -> None:
        super().__init__()
        c64, c128, c256, c512, c1024, c2048, c4096 = (64 * 2**i // divisor for i in range(7))
        self.channels, self.strides = (c512, c1024, c4096), (8, 8, 8)
        self.conv1a = _conv(3, c64, 3)
        inputs = c64
        for stage, blocks, outputs in (("b2", 3, c128), ("b3", 3, c256), ("b4", 6, c512)):
            self.add_module(stage, PlainBlock(inputs, outputs, outputs, stride=2))
            for index in range(1, blocks):
                self.add_module(f"{stage}_{index}", PlainBlock(outputs, outputs, outputs))
            inputs = outputs
        self.b5 = PlainBlock(c512, c512, c1024, dilation=2, first_dilation=1)
        self.b5_1 = PlainBlock(c1024, c512, c1024, dilation=2)
        self.b5_2 = PlainBlock(c1024, c512, c1024, dilation=2)
        self.b6 = BottleneckBlock(c1024, c2048, dilation=4, dropout=0.3)
        self.b7 = BottleneckBlock(c2048, c4096, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(c4096)
        self.initialise(frozen)

    def early_stages(self) -> Sequence[nn.Module]:
        """conv1a and b2: 822,336 parameters at full width."""
        return [self.conv1a, *(self.get_submodule(name) for name in EARLY)]

    def forward(self, x: Tensor) -> Features:
        """[B, 3, H, W] -> mid [B, 512, h, w], high [B, 1024, h, w], final [B, 4096, h, w] with h = ceil(H / 8)."""
        mid = high = x = self.conv1a(x)
        for name in BLOCKS:
            x, first = self.get_submodule(name)(x)
            if name == "b5":
                mid = first
            elif name == "b6":
                high = first
        return mid, high, norm_relu(x, self.bn7)
