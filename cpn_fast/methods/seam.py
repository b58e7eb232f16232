"""`seam` and `seam_prcm`: equivariance between an image and its small copy (Wang et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.config.training import MethodOptions
from cpn_fast.methods.common import (
    classification_loss,
    classify_only,
    equivariant_cross_loss,
    min_pool_loss,
    to_grid,
    watch,
)
from cpn_fast.models.cam import CamNet
from cpn_kernels.cam_norm import normalise_cam, with_background
from cpn_kernels.ops.cp_triplet import normalise_images


class SeamMethod(nn.Module):
    """Two views, I and I at `seam_scale`; classification, ER and ECR losses."""

    def __init__(self, net: CamNet, options: MethodOptions) -> None:
        super().__init__()
        self.net, self.options = net, options

    def forward(
        self, images: Tensor, patches: Tensor, keys: Tensor, labels: Tensor, warm_up: bool = False
    ) -> dict[str, Tensor]:
        """Losses of uint8 images [B, H, W, 3], with `warm_up` a plain classifier's; `patches`, `keys` are not used."""
        if warm_up:
            return classify_only(self.net, self.options, images, labels)
        options = self.options
        large = normalise_images(images, self.net.mean)
        small = F.interpolate(large, scale_factor=options.seam_scale, mode="bilinear", align_corners=True)
        out = [self.net(large), self.net(small)]
        grid = (out[1].cam.shape[2], out[1].cam.shape[3])
        refined = [self.net.refine(o.cam, o.features, labels, options.map_norm) for o in out]

        cams = [normalise_cam(o.cam.float(), labels, map_norm=options.map_norm) for o in out]
        rcams = [normalise_cam(r.float(), labels, map_norm=options.map_norm) for r in refined]
        cams_grid = [to_grid(cams[0], grid), cams[1]]
        rcams_grid = [to_grid(rcams[0], grid), rcams[1]]

        valid = torch.ones(2, labels.shape[0], device=labels.device)
        cls = classification_loss(torch.stack([o.scores for o in out]), labels, valid)
        er = (cams_grid[0] - cams_grid[1]).abs().mean()
        with_bg = [with_background(m) for m in cams_grid]
        refined_bg = [with_background(m) for m in rcams_grid]
        ecr = equivariant_cross_loss(with_bg[1], refined_bg[0], labels, options.ohem, options.ohem_pool)
        ecr = ecr + equivariant_cross_loss(with_bg[0], refined_bg[1], labels, options.ohem, options.ohem_pool)
        loss = cls + er + ecr
        parts = {"cls": cls, "er": er, "ecr": ecr}
        if options.min_pool_weight > 0:
            parts["min_pool"] = torch.stack([min_pool_loss(r, labels) for r in refined]).mean()
            loss = loss + options.min_pool_weight * parts["min_pool"]
        return {
            "loss": loss,
            **{name: value.detach() for name, value in parts.items()},
            "scores": out[0].scores.detach(),
            "cam": watch(out[0].cam, labels, options.map_norm),
            "rcam": watch(refined[0], labels, options.map_norm),
        }
