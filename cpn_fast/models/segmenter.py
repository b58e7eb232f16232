"""Images to multi-scale class probabilities and masks by a DeepLab; eager inference and the ONNX graph share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.config.scales import SEGMENT_SCALES
from cpn_fast.models.deeplab import DeepLab
from cpn_fast.models.labeller import scaled_views, unflipped
from cpn_kernels.backend import exporting
from cpn_kernels.ops.cp_triplet import normalise_images


class Segmented(NamedTuple):
    """What the network says of B images.

    Attributes:
        probabilities: float [B, K + 1, H, W] in [0, 1], background at channel 0; sums to 1 over the channels.
        scores: float [B, K], each foreground class's largest probability in the image.
        mask: uint8 [B, H, W], 0 background, 1..K classes.
    """

    probabilities: Tensor
    scores: Tensor
    mask: Tensor


def class_softmax(logits: Tensor) -> Tensor:
    """Softmax over the channels of float [B, C, H, W]."""
    if not exporting():
        return logits.softmax(dim=1)
    # onnxruntime's own softmax transposes for any axis but the last: several times as slow
    exponents = (logits - logits.amax(dim=1, keepdim=True)).exp()
    return exponents / exponents.sum(dim=1, keepdim=True)


def allowed_mask(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The most probable class of every pixel, out of background and the classes of the image.

    Args:
        probabilities: float [B, K + 1, H, W] in [0, 1].
        labels: float [B, K], 1 where the class is in the image; a row of -1 allows every class.

    Returns:
        uint8 [B, H, W]; of equal probabilities the class of lower index wins.
    """
    allowed = (labels > 0) | (labels.amin(dim=1, keepdim=True) < 0)
    penalty = F.pad((~allowed).to(probabilities.dtype), (1, 0))
    return (probabilities - 2 * penalty[:, :, None, None]).argmax(dim=1).to(torch.uint8)


class Segmenter(nn.Module):
    """Multi-scale, flipped inference of a DeepLab (paper section 4.3).

    Args:
        net: a trained network; it is put into eval mode.
        scales: scale factors of the image.
        flip: also run the mirrored image.
    """

    def __init__(self, net: DeepLab, scales: Sequence[float] = SEGMENT_SCALES, flip: bool = True) -> None:
        super().__init__()
        self.net = net.eval()
        self.scales, self.flip = tuple(scales), flip

    def probabilities(self, images: Tensor) -> Tensor:
        """Mean over scales and flips of the softmax of the logits, enlarged (bilinear) to the image.

        Args:
            images: uint8 [B, H, W, 3] RGB.

        Returns:
            float [B, K + 1, H, W].
        """
        views = normalise_images(images, self.net.mean)
        size = (views.shape[2], views.shape[3])
        total: Tensor | None = None
        for scale in self.scales:
            # One after the other: at the size of the image these maps are most of the memory.
            for logits in unflipped(self.net(scaled_views(views, scale, self.flip)), self.flip):
                found = class_softmax(F.interpolate(logits, size=size, mode="bilinear", align_corners=False))
                total = found if total is None else total + found
        assert total is not None
        return total / (len(self.scales) * (2 if self.flip else 1))

    def forward(self, images: Tensor, labels: Tensor) -> Segmented:
        """Segment uint8 images [B, H, W, 3] with labels float [B, K] (a row of -1 allows every class)."""
        probabilities = self.probabilities(images)
        return Segmented(probabilities, probabilities[:, 1:].amax(dim=(2, 3)), allowed_mask(probabilities, labels))
