"""DeepLab-LargeFOV: a segmentation network on any backbone, trained on pseudo masks.

Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs" (ICLR 2015), with
batch norms; the CPN paper trains it on its masks (section 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones import Backbone
from cpn_fast.models.backbones.common import conv_norm
from cpn_kernels.ops.cp_triplet import IMAGENET_MEAN

HEAD_CHANNELS = 512
FIELD_OF_VIEW = 96
"""Pixels between neighbouring taps of the head's 3x3 convolution: a dilation of 12 at stride 8, 6 at stride 16."""

NORM_MOMENTUM, PAPER_STEPS = 3e-4, 20_000
"""Share of the newest batch in the running statistics of batch norms, and the steps of the training it belongs to."""


class DeepLab(nn.Module):
    """Backbone and LargeFOV head: 3x3 dilated to 512, 1x1 to 512, each with batch norm and ReLU, dropout, classifier.

    The whole network trains, batch norms too, so the backbone has to be built with `frozen=False`. The head's new
    layers count as "head" in `cpn_fast.training.optimizer.parameter_groups`; of these the classifier alone has a bias.

    Args:
        backbone: gives (mid, high, final) maps; `final` alone is used.
        num_classes: K foreground classes; the network gives K + 1 maps, background first.
        dropout: share of the head's activations that a training step drops.

    Every batch norm begins with the momentum of the paper's 20,000 steps; `set_norm_momentum` fits it to another
    length. The buffer `mean`, float [3] in [0, 1], is the RGB colour that is 0 after normalisation; it travels with
    the weights so that inference normalises as training did.

    Raises:
        ValueError: for a frozen backbone, or no class.
    """

    mean: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        if backbone.frozen:
            raise ValueError("the backbone is frozen; expected one of create_backbone(name, frozen=False)")
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1 foreground class")
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.backbone = backbone
        dilation = max(1, FIELD_OF_VIEW // backbone.strides[2])
        self.conv_fov = nn.Conv2d(
            backbone.channels[2], HEAD_CHANNELS, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.norm_fov = nn.BatchNorm2d(HEAD_CHANNELS)
        self.conv_mix = nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 1, bias=False)
        self.norm_mix = nn.BatchNorm2d(HEAD_CHANNELS)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(HEAD_CHANNELS, num_classes + 1, 1)
        for conv in (self.conv_fov, self.conv_mix):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.xavier_uniform_(self.classifier.weight)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)
        set_norm_momentum(self, NORM_MOMENTUM)

    def forward(self, views: Tensor) -> Tensor:
        """Class logits of normalised views.

        Args:
            views: float [M, 3, H, W].

        Returns:
            float [M, K + 1, h, w] on the grid of the backbone's `final`, background at channel 0.
        """
        _, _, final = self.backbone(views)
        hidden = F.relu(conv_norm(final, self.conv_fov, self.norm_fov), inplace=True)
        hidden = F.relu(conv_norm(hidden, self.conv_mix, self.norm_mix), inplace=True)
        return self.classifier(self.dropout(hidden))


def norm_momentum(steps: int) -> float:
    """Momentum of the batch norms for a training of `steps` steps.

    It leaves the same share of the initial statistics (1 - 3e-4) ** 20,000 = 0.2% as the paper's training. With 3e-4
    itself 300 steps would leave 91% of them: in the head, which has no pretrained ones, the network that is evaluated
    would not be the one that was trained.

    Args:
        steps: optimiser steps of the whole training, at least 1.

    Returns:
        3e-4 from 20,000 steps on, more below.
    """
    return 1 - (1 - NORM_MOMENTUM) ** max(1.0, PAPER_STEPS / max(1, steps))


def set_norm_momentum(net: nn.Module, momentum: float) -> None:
    """Give every batch norm of a network, the backbone's too, a momentum in (0, 1]."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
