"""The random walk as a step from class scores to class scores, between pixels that AffinityNet takes for one class."""

from __future__ import annotations

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
from cpn_kernels.ops.cp_triplet import normalise_images
from cpn_kernels.ops.random_walk import random_walk


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

    @torch.inference_mode()
    def __call__(self, image_id: str, image: NDArray[np.uint8], scores: Tensor) -> Tensor:
        """Let the scores of one image walk.

        The image is taken at the size of the scores, times `scale`; scores are averaged over each cell of the network's
        grid, of what the image has of it, as the labels were in training, and come back bilinearly.

        Args:
            image_id: not used.
            image: uint8 [H, W, 3].
            scores: float32 [1, C, h, w] >= 0, of the image or of its reduced form.

        Returns:
            float32 [1, C, h, w].
        """
        del image_id
        if scores.shape[1] == 1:
            return scores
        device = self.net.embed_final.weight.device
        height, width = scores.shape[2:]
        view = torch.from_numpy(np.array(reduce_image(image, max(height, width))))[None].to(device)
        scores = scores.to(device)
        size = (max(1, round(height * self.scale)), max(1, round(width * self.scale)))
        affinity = self.net(resized_maps(normalise_images(view), size))
        stride = self.net.backbone.strides[2]
        pooled = F.avg_pool2d(resized_maps(scores, size), stride, ceil_mode=True)
        walked = random_walk(affinity, pooled, self.steps, self.power)
        covered = (walked.shape[2] * stride, walked.shape[3] * stride)
        fine = F.interpolate(walked, size=covered, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]
        return resized_maps(fine, (height, width)).cpu()


def resized_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps or normalised images float [B, C, H, W] at another (height, width), bilinear, antialiased downwards."""
    if tuple(maps.shape[2:]) == size:
        return maps
    smaller = size[0] < maps.shape[2]
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=smaller)
