"""`seam` and `seam_prcm`: equivariance between an image and its small copy (Wang et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.config.training import MethodOptions
from cpn_fast.methods.common import (
    at_least_single,
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

Pair = tuple[Tensor, Tensor]
"""The same of the large and of the small view."""


def equivariance_losses(cams: Pair, rcams: Pair, labels: Tensor, options: MethodOptions) -> Pair:
    """ER and ECR of the raw maps of both views, compared at the size of the small view's maps.

    Args:
        cams: CAM logits, float [B, K, h, w] and [B, K, h', w'].
        rcams: un-normalised refined maps of the same sizes, [B, K, ...], or [B, K + 1, ...] with a background of their
            own at channel 0, which then is normalised as a class is; else it is 1 - maximum.
        labels: float [B, K].
        options: `map_norm`, `ohem` and `ohem_pool` are used.

    Returns:
        (er, ecr), scalars. Each view's CAM with its background is the constant target of the other view's RCAM.
    """
    size = (cams[1].shape[2], cams[1].shape[3])

    def on_grid(raw: Tensor, present: Tensor) -> Tensor:
        return to_grid(normalise_cam(at_least_single(raw), present, map_norm=options.map_norm), size)

    large, small = (on_grid(cam, labels) for cam in cams)
    er = (large - small).abs().mean()
    if rcams[0].shape[1] == labels.shape[1]:
        refined = [with_background(on_grid(rcam, labels)) for rcam in rcams]
    else:
        refined = [on_grid(rcam, F.pad(labels, (1, 0), value=1.0)) for rcam in rcams]
    ecr = equivariant_cross_loss(with_background(small), refined[0], labels, options.ohem, options.ohem_pool)
    other = equivariant_cross_loss(with_background(large), refined[1], labels, options.ohem, options.ohem_pool)
    return er, ecr + other


class SeamMethod(nn.Module):
    """Two views, I and I at `seam_scale`; classification, ER and ECR losses."""

    def __init__(self, net: CamNet, options: MethodOptions) -> None:
        super().__init__()
        self.net, self.options = net, options

    def forward(
        self,
        images: Tensor,
        patches: Tensor,
        keys: Tensor,
        labels: Tensor,
        warm_up: bool = False,
        targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of uint8 images [B, H, W, 3], with `warm_up` a plain classifier's; no other argument is used."""
        if warm_up:
            return classify_only(self.net, self.options, images, labels)
        options, classes = self.options, labels.shape[1]
        large = normalise_images(images, self.net.mean)
        small = F.interpolate(large, scale_factor=options.seam_scale, mode="bilinear", align_corners=True)
        out = [self.net(large), self.net(small)]
        refine = self.net.refine if options.seam_background == "recomputed" else self.net.refine_with_background
        refined = [refine(o.cam, o.features, labels, options.map_norm) for o in out]

        def compared(maps: Tensor, view: Tensor) -> Tensor:
            return to_grid(maps, (view.shape[2], view.shape[3])) if options.loss_resolution == "input" else maps

        cams = compared(out[0].cam, large), compared(out[1].cam, small)
        rcams = compared(refined[0], large), compared(refined[1], small)
        valid = torch.ones(2, labels.shape[0], device=labels.device)
        cls = classification_loss(torch.stack([o.scores for o in out]), labels, valid)
        er, ecr = equivariance_losses(cams, rcams, labels, options)
        loss = cls + er + ecr
        parts = {"cls": cls, "er": er, "ecr": ecr}
        if options.min_pool_weight > 0:
            parts["min_pool"] = torch.stack([min_pool_loss(rcam[:, -classes:], labels) for rcam in rcams]).mean()
            loss = loss + options.min_pool_weight * parts["min_pool"]
        return {
            "loss": loss,
            **{name: value.detach() for name, value in parts.items()},
            "scores": out[0].scores.detach(),
            "cam": watch(out[0].cam, labels, options.map_norm),
            "rcam": watch(refined[0][:, -classes:], labels, options.map_norm),
        }
