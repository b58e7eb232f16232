"""What the segmentation network learns from: cross entropy of its pixels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.data.types import VOID
from cpn_fast.models.deeplab import DeepLab
from cpn_kernels.ops.cp_triplet import normalise_images


def pixel_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, a mean over each image's pixels, then over images, so that it does not matter who has which image.

    Args:
        logits: float [B, C, H, W].
        targets: integer [B, H, W], 0..C-1; 255 = void, which counts for nothing. An image that is all void gives 0.

    Returns:
        float32 scalar >= 0.
    """
    each = F.cross_entropy(logits.float(), targets.long(), ignore_index=VOID, reduction="none")
    known = (targets != VOID).sum(dim=(1, 2)).clamp(min=1)
    return (each.sum(dim=(1, 2)) / known).mean()


class PixelClassification(nn.Module):
    """The network and its loss (Chen et al., ICLR 2015, section 3; the paper's section 4.3)."""

    def __init__(self, net: DeepLab) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss of uint8 images [B, H, W, 3] and targets uint8 [B, H, W]; logits are enlarged to the crop (bilinear)."""
        logits = self.net(normalise_images(images, self.net.mean))
        size = (targets.shape[1], targets.shape[2])
        logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        return {"loss": pixel_cross_entropy(logits, targets)}
