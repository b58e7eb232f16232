"""A teacher: the network averaged over time labels pixels of each image, and the pair's views learn them.

The mean-teacher idea (Tarvainen and Valpola, NeurIPS 2017) in the terms of complementary patches: the teacher sees the
image and, if asked, its complementary pair; what its maps are sure of after PCM is taught to every view, the pixels
that the view shows.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cpn_fast.config.training import MethodOptions
from cpn_fast.files.masks import VOID
from cpn_fast.methods.pixels import shown_pixels
from cpn_fast.models.cam import CamNet
from cpn_fast.models.refinement import refine_raw
from cpn_kernels.cam_norm import normalise_cam


class Teacher(nn.Module):
    """A copy of a network that follows it slowly, and labels pixels.

    Args:
        net: whom it follows; it begins as its copy.
        options: `teacher` is the share that it keeps of itself in each step, `teacher_band` the scores in between which
            a pixel is void.
    """

    def __init__(self, net: CamNet, options: MethodOptions) -> None:
        super().__init__()
        if options.teacher is None:
            raise ValueError("options.teacher is None: no teacher is asked for")
        self.net = copy.deepcopy(net).requires_grad_(requires_grad=False)
        self.average = get_ema_multi_avg_fn(options.teacher)
        self.low, self.high = options.teacher_band
        self.map_norm = options.map_norm
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Always evaluates: without dropout, whatever the mode of the module that it is part of."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def follow(self, net: CamNet) -> None:
        """Take the share of the network's weights that is not kept, and its buffers as they are."""
        self.average(list(self.net.parameters()), list(net.parameters()), 0)
        for mine, its in zip(self.net.buffers(), net.buffers(), strict=True):
            mine.copy_(its)

    @torch.no_grad()
    def labels(self, views: Tensor, labels: Tensor) -> Tensor:
        """Labels of the pixels that the refined maps are sure of.

        Args:
            views: normalised, float [B, 3, H, W], the images; or [3B, 3, H, W], then the views of their pair, whose
                maps, each where its view shows the image, are added to the image's.
            labels: float [B, K] in {0, 1}.

        Returns:
            uint8 [B, H, W]: 0 = background, 1..K, or 255 = void.
        """
        batch = labels.shape[0]
        out = self.net(views[:batch], raw=True)
        cam = F.relu(out.cam)
        if len(views) > batch:
            cam = cam + self._pair_cam(views[batch:])
        refined = refine_raw(cam, out.features, labels, self.map_norm)
        maps = normalise_cam(refined, labels, map_norm=self.map_norm)
        full = F.interpolate(maps, size=views.shape[2:], mode="bilinear", align_corners=False)
        return confident_labels(full, self.low, self.high)

    def _pair_cam(self, pair: Tensor) -> Tensor:
        """CAM >= 0 of each view of a pair where it shows the image, [B, K, h, w] of views [2B, 3, H, W]."""
        cam = F.relu(self.net(pair).cam)
        shown = shown_pixels(pair)[:, None].to(cam.dtype)
        visible = F.interpolate(shown, size=cam.shape[2:], mode="bilinear", align_corners=False, antialias=True)
        first, second = (cam * visible).chunk(2)
        return first + second


def confident_labels(maps: Tensor, low: float, high: float) -> Tensor:
    """The class of the pixels whose best score is above `high`, background where it is below `low`, else void.

    Args:
        maps: float [B, K, H, W] in 0..1, normalised maps of the foreground classes.
        low: in 0..high.
        high: in low..1.

    Returns:
        uint8 [B, H, W], 0..K or 255.
    """
    best, winner = maps.max(dim=1)
    certain = torch.where(best > high, winner + 1, torch.where(best < low, 0, VOID))
    return certain.to(torch.uint8)
