"""Pixel labels: cross entropy of the pixel head, in every view over the pixels that it shows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from cpn_fast.files.masks import VOID


def shown_pixels(views: Tensor) -> Tensor:
    """bool [M, H, W]: where normalised views [M, 3, H, W] show the image. Hidden pixels and padding are exactly 0."""
    return (views != 0).any(dim=1)


def pixel_label_loss(logits: Tensor, targets: Tensor, shown: Tensor) -> Tensor:
    """Cross entropy, a mean over the known pixels that a view shows, over an image's views that show any, over images.

    Args:
        logits: float [V * B, C, h, w] of V views of B images, view by view; enlarged to the pixels (bilinear).
        targets: uint8 [B, H, W], 0..C-1; 255 = void, which teaches nothing.
        shown: bool [V * B, H, W].

    Returns:
        scalar >= 0, in float32 (float64 for float64 logits); 0 for images without any known pixel.
    """
    batch = len(targets)
    logits = logits if logits.is_floating_point() and logits.element_size() == 8 else logits.float()
    full = F.interpolate(logits, size=targets.shape[1:], mode="bilinear", align_corners=False)
    wanted = targets.long().repeat(len(logits) // batch, 1, 1).masked_fill(~shown, VOID)
    each = F.cross_entropy(full, wanted, ignore_index=VOID, reduction="none").sum(dim=(1, 2))
    known = (wanted != VOID).sum(dim=(1, 2))
    per_view = (each / known.clamp(min=1)).unflatten(0, (-1, batch))
    taught = (known > 0).unflatten(0, (-1, batch)).sum(dim=0).clamp(min=1)
    return (per_view.sum(dim=0) / taught).mean()
