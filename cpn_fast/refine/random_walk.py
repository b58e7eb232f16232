"""The random walk as a step from class scores to class scores, between pixels that AffinityNet takes for one class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cpn_fast.device import ready_device
from cpn_fast.files.max_side import reduce_image
from cpn_fast.models.affinity_net import AffinityNet
from cpn_fast.refine.gathering import Gathering
from cpn_kernels.ops.cp_triplet import normalise_images
from cpn_kernels.ops.random_walk import random_walk

log = logging.getLogger(__name__)

TOGETHER = 8
"""Images of one size and number of classes that walk on the GPU in one call, where so many wait for it."""


@dataclass(frozen=True)
class WalkStep:
    """AffinityNet and the walk (a `RefinementStep`; Ahn and Kwak, CVPR 2018, section 3.3).

    Attributes:
        net: in eval mode; on its device the walk takes place.
        weights_sha256: of its weights.
        steps: t of the walk.
        power: to which affinities are raised (beta in that paper).
        scale: of the image before the network; 2 halves the cells of the grid.
    """

    net: AffinityNet
    weights_sha256: str
    steps: int
    power: int
    scale: float

    def settings(self) -> dict[str, Any]:
        """What decides its result beside its input, JSON-able."""
        return {
            "walk_weights_sha256": self.weights_sha256,
            "walk_steps": self.steps,
            "walk_power": self.power,
            "walk_scale": self.scale,
        }

    def on(self, device: str) -> WalkStep:
        """With the network there."""
        return replace(self, net=self.net.to(ready_device(device)))

    def __call__(self, image_id: str, image: NDArray[np.uint8], scores: Tensor) -> Tensor:
        """Let the scores of one image walk; on a GPU together with those of its size that wait for it.

        The image is taken at the size of the scores, times `scale`; scores are averaged over each cell of the network's
        grid, of what the image has of it, as the labels were in training, and come back bilinearly.

        Args:
            image_id: for the log.
            image: uint8 [H, W, 3].
            scores: float32 [1, C, h, w] >= 0, of the image or of its reduced form.

        Returns:
            float32 [1, C, h, w].
        """
        if scores.shape[1] == 1:
            return scores
        view = torch.from_numpy(np.array(reduce_image(image, max(scores.shape[2:]))))[None]
        if self.net.embed_final.weight.device == torch.device("cpu"):
            return self.walk(view, scores)
        kind = (id(self.net), self.steps, self.power, self.scale, view.shape, scores.shape)
        try:
            return _on_gpu(kind, (self, view, scores))
        except torch.OutOfMemoryError:
            log.warning("%s: too large for the random walk in the GPU's memory; it walks on the CPU", image_id)
            return replace(self, net=deepcopy(self.net).cpu()).walk(view, scores)

    @torch.inference_mode()
    def walk(self, views: Tensor, scores: Tensor) -> Tensor:
        """The walk of images alike, on the network's device.

        Args:
            views: uint8 [B, h, w, 3], the images at the size of the scores.
            scores: float32 [B, C, h, w] >= 0.

        Returns:
            float32 [B, C, h, w], on the CPU.
        """
        device = self.net.embed_final.weight.device
        height, width = scores.shape[2:]
        scores = scores.to(device)
        size = (max(1, round(height * self.scale)), max(1, round(width * self.scale)))
        affinity = self.net(resized_maps(normalise_images(views.to(device)), size))
        stride = self.net.backbone.strides[2]
        pooled = F.avg_pool2d(resized_maps(scores, size), stride, ceil_mode=True)
        walked = random_walk(affinity, pooled, self.steps, self.power)
        covered = (walked.shape[2] * stride, walked.shape[3] * stride)
        fine = F.interpolate(walked, size=covered, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]
        return resized_maps(fine, (height, width)).cpu()


def _together(given: Sequence[tuple[WalkStep, Tensor, Tensor]]) -> Sequence[Tensor]:
    """The walks of images alike; each float32 [1, C, h, w] on the CPU."""
    step = given[0][0]
    return step.walk(torch.cat([view for _, view, _ in given]), torch.cat([each for _, _, each in given])).split(1)


_on_gpu: Gathering[tuple[WalkStep, Tensor, Tensor], Tensor] = Gathering(_together, TOGETHER)
"""One call at a time, as the dense CRF's: threads that wait hold none of the GPU's memory."""


def resized_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps or normalised images float [B, C, H, W] at another (height, width), bilinear, antialiased downwards."""
    if tuple(maps.shape[2:]) == size:
        return maps
    smaller = size[0] < maps.shape[2]
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=smaller)
