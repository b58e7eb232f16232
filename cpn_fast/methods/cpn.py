"""`cpn`: the triplet of an image and its complementary patch pair (the paper's method)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpn_fast.config.training import MethodOptions
from cpn_fast.methods.common import classification_loss, classify_only, min_pool_loss, present_pool, to_grid, watch
from cpn_fast.methods.pixels import pixel_label_loss, shown_pixels
from cpn_fast.methods.teacher import Teacher
from cpn_fast.models.cam import CamNet
from cpn_kernels.cam_norm import channel_peak
from cpn_kernels.ops.cp_loss import CpLossOptions, cp_loss
from cpn_kernels.ops.cp_triplet import cp_triplet


def cp_loss_options(options: MethodOptions) -> CpLossOptions:
    """Those of a run's options that its complementary-pair losses read."""
    return CpLossOptions(
        map_norm=options.map_norm,
        pair_norm=options.pair_norm,
        tcp=options.tcp,
        tcp_target=options.tcp_target,
        cpcr=options.cpcr,
        ohem=options.ohem,
        ohem_pool=options.ohem_pool,
        cpcr_target=options.cpcr_target,
        refined_pair_gradient=options.refined_pair_gradient,
    )


def views_dtype(device_type: str) -> torch.dtype:
    """What the triplet is written in: bfloat16 where autocast would round it to that at the first convolution."""
    halved = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.bfloat16
    return torch.bfloat16 if halved else torch.float32


class CpnMethod(nn.Module):
    """Three views through shared weights as one batch; L_cls + L_tcp + L_cpcr (eq. 17).

    Args:
        net: the network; without refinement heads only L_cls and the first term of L_tcp remain.
        options: the open readings.
    """

    def __init__(self, net: CamNet, options: MethodOptions) -> None:
        super().__init__()
        self.net, self.options, self.loss_options = net, options, cp_loss_options(options)
        self.teacher = None if options.teacher is None else Teacher(net, options)

    def refined(self, cam: Tensor, features: Tensor, labels: Tensor) -> Tensor | None:
        """RCAM [3B, K, h, w] of the triplet, None without refinement heads."""
        if self.net.refinement == "none":
            return None
        floor = None
        if self.options.pair_norm != "own":
            floor = channel_peak(cam.detach()[: labels.shape[0]]).repeat(3, 1)
        return self.net.refine(cam, features, labels.repeat(3, 1), self.options.map_norm, floor)

    def forward(
        self,
        images: Tensor,
        patches: Tensor,
        keys: Tensor,
        labels: Tensor,
        warm_up: bool = False,
        targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of uint8 images [B, H, W, 3] with patches int32 [B, H, W] and keys int64 [B].

        With `warm_up` they are a plain classifier's. Pixel labels `targets`, uint8 [B, H, W], teach the pixel head, or
        those of the teacher.
        """
        if self.teacher is not None:
            self.teacher.follow(self.net)
        if warm_up:
            return classify_only(self.net, self.options, images, labels, targets)
        options, batch = self.options, labels.shape[0]
        dtype = views_dtype(images.device.type)
        views, visible = cp_triplet(images, patches, keys, options.p_hidden, mean=self.net.mean, dtype=dtype)
        out = self.net(views)
        valid = torch.stack([torch.ones_like(visible), visible > 0, visible < 1])
        cls = classification_loss(out.scores.unflatten(0, (3, batch)), labels, valid)
        rcam = self.refined(out.cam, out.features, labels)
        size = (images.shape[1], images.shape[2]) if options.loss_resolution == "input" else None
        tcp, cpcr = cp_loss(out.cam, rcam, labels, visible, self.loss_options, size=size)
        loss = cls + tcp + cpcr
        parts = {"cls": cls, "tcp": tcp, "cpcr": cpcr}
        if options.min_pool_weight > 0 and rcam is not None:
            pooled = rcam if size is None else to_grid(rcam, size)
            parts["min_pool"] = min_pool_loss(pooled, labels.repeat(3, 1))
            loss = loss + options.min_pool_weight * parts["min_pool"]
        if self.teacher is not None:
            targets = self.teacher.labels(views if options.teacher_pairs else views[:batch], labels)
        if targets is not None and out.pixels is not None:
            competing = present_pool(labels, options.pixel_classes)
            parts["pixels"] = pixel_label_loss(out.pixels, targets, shown_pixels(views), competing)
            loss = loss + options.pixel_weight * parts["pixels"]
        result = {
            "loss": loss,
            **{name: value.detach() for name, value in parts.items()},
            "scores": out.scores[:batch].detach(),
            "visible": visible,
            "cam": watch(out.cam[:batch], labels, options.map_norm),
        }
        if rcam is not None:
            result["rcam"] = watch(rcam[:batch], labels, options.map_norm)
        return result
