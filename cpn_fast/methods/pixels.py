"""Pixel labels: cross entropy of the pixel head, in every view over the pixels that it shows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from cpn_fast.files.masks import VOID


def shown_pixels(views: Tensor) -> Tensor:
    """bool [M, H, W]: where normalised views [M, 3, H, W] show the image. Hidden pixels and padding are exactly 0."""
    return (views != 0).any(dim=1)


def pixel_label_loss(logits: Tensor, targets: Tensor, shown: Tensor, present: Tensor | None = None) -> Tensor:
    """Cross entropy, a mean over the known pixels that a view shows, over an image's views that show any, over images.

    With `present` only background and the image's own classes compete for its pixels, as they do when the maps make
    masks: a class that seldom occurs is not taught away from where it is by all the images that lack it.

    Args:
        logits: float [V * B, C, h, w] of V views of B images, view by view; enlarged to the pixels (bilinear).
        targets: uint8 [B, H, W], 0..C-1; 255 = void, which teaches nothing.
        shown: bool [V * B, H, W].
        present: bool [B, C] of the classes in an image, background among them; a pixel with another target teaches
            nothing. None = all compete everywhere.

    Returns:
        scalar >= 0, in float32 (float64 for float64 logits); 0 for images without any known pixel.
    """
    batch = len(targets)
    logits = logits if logits.is_floating_point() and logits.element_size() == 8 else logits.float()
    full = F.interpolate(logits, size=targets.shape[1:], mode="bilinear", align_corners=False)
    views = len(logits) // batch
    wanted = targets.long().repeat(views, 1, 1).masked_fill(~shown, VOID)
    if present is not None:
        present = present.repeat(views, 1)
        full = full.masked_fill(~present[:, :, None, None], float("-inf"))
        padded = F.pad(present, (0, VOID + 1 - present.shape[1]), value=True)  # by label value; void is void already
        known_class = padded.gather(1, wanted.flatten(1)).view_as(wanted)
        wanted = wanted.masked_fill(~known_class, VOID)
    each = F.cross_entropy(full, wanted, ignore_index=VOID, reduction="none").sum(dim=(1, 2))
    known = (wanted != VOID).sum(dim=(1, 2))
    per_view = (each / known.clamp(min=1)).unflatten(0, (-1, batch))
    taught = (known > 0).unflatten(0, (-1, batch)).sum(dim=0).clamp(min=1)
    return (per_view.sum(dim=0) / taught).mean()
