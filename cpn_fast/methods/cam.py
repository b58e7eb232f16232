"""`cam`: a plain classifier, the baseline of the paper's tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpn_fast.config import MethodOptions
from cpn_fast.methods.common import classification_loss, watch
from cpn_fast.models.cam import CamNet
from cpn_kernels.cp_triplet import normalise_images


class CamMethod(nn.Module):
    """One view, classification loss only."""

    def __init__(self, net: CamNet, options: MethodOptions) -> None:
        super().__init__()
        self.net, self.options = net, options

    def forward(self, images: Tensor, patches: Tensor, keys: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of uint8 images [B, H, W, 3]; `patches` and `keys` are not used."""
        out = self.net(normalise_images(images, self.net.mean))
        valid = torch.ones(1, labels.shape[0], device=labels.device)
        loss = classification_loss(out.scores[None], labels, valid)
        return {
            "loss": loss,
            "cls": loss.detach(),
            "scores": out.scores.detach(),
            "cam": watch(out.cam, labels, self.options.map_norm),
        }
