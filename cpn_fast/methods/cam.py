"""`cam`: a plain classifier, the baseline of the paper's tables."""

from __future__ import annotations

from torch import Tensor, nn

from cpn_fast.config.training import MethodOptions
from cpn_fast.methods.common import classify_only
from cpn_fast.methods.teacher import Teacher
from cpn_fast.models.cam import CamNet


class CamMethod(nn.Module):
    """One view, classification loss only."""

    def __init__(self, net: CamNet, options: MethodOptions) -> None:
        super().__init__()
        self.net, self.options = net, options
        self.teacher = None if options.teacher is None else Teacher(net, options)

    def forward(
        self,
        images: Tensor,
        patches: Tensor,
        keys: Tensor,
        labels: Tensor,
        warm_up: bool = False,
        targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of uint8 images [B, H, W, 3]; `patches` and `keys` are not used. A teacher rests in the `warm_up`."""
        if self.teacher is not None:
            self.teacher.follow(self.net)
        return classify_only(self.net, self.options, images, labels, targets, None if warm_up else self.teacher)
