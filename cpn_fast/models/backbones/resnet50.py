"""ResNet-50 (He et al., CVPR 2016) in torchvision's key layout, dilated to stride 8."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones.common import Backbone, Features, conv_norm


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride), 1x1 to four times the width, each with batch norm; added to the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, 4 * width, H / stride, W / stride], not negative."""
        branch = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        branch = F.relu(conv_norm(branch, self.conv2, self.bn2), inplace=True)
        branch = conv_norm(branch, self.conv3, self.bn3)
        shortcut = x if self.downsample is None else conv_norm(x, *self.downsample)
        return F.relu(branch.add_(shortcut), inplace=True)


class ResNet50(Backbone):
    """ResNet-50 without its classifier; layer3 and layer4 are dilated by 2 and 4 instead of strided.

    The first block of a dilated stage keeps the dilation before it, since its input grid has not changed yet.

    Args:
        frozen: see `Backbone`; freezes the stem and layer1 besides the batch norms.
    """

    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.channels, self.strides = (512, 1024, 2048), (8, 8, 8)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1, dilations=(1, 1))
        self.layer2 = _stage(256, 128, blocks=4, stride=2, dilations=(1, 1))
        self.layer3 = _stage(512, 256, blocks=6, stride=1, dilations=(1, 2))
        self.layer4 = _stage(1024, 512, blocks=3, stride=1, dilations=(2, 4))
        self.initialise(frozen)

    def early_stages(self) -> Sequence[nn.Module]:
        """The stem and layer1."""
        return self.conv1, self.bn1, self.layer1

    def forward(self, x: Tensor) -> Features:
        """[B, 3, H, W] -> mid [B, 512, h, w], high [B, 1024, h, w], final [B, 2048, h, w] with h = ceil(H / 8)."""
        x = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        mid = self.layer2(self.layer1(x))
        high = self.layer3(mid)
        return mid, high, self.layer4(high)


def _stage(inputs: int, width: int, blocks: int, stride: int, dilations: tuple[int, int]) -> nn.Sequential:
    """A stage of bottlenecks; `dilations` are the first block's and the others'."""
    first, others = dilations
    rest = [Bottleneck(4 * width, width, 1, others) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, width, stride, first), *rest)
