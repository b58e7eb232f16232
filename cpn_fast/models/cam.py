"""CamNet: backbone, class activation maps, and the refinement heads that turn CAM into RCAM."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones import Backbone
from cpn_fast.models.pcm import EMBEDDING_CHANNELS, FEATURE_CHANNELS, feature_heads, pixel_features, resize
from cpn_fast.models.prcm import PrcmForm, pixel_region_correlation
from cpn_fast.models.refinement import raw_features, winner_maps
from cpn_kernels.cam_norm import MapNorm
from cpn_kernels.ops.cp_triplet import IMAGENET_MEAN
from cpn_kernels.ops.pixel_correlation import pixel_correlation

Refinement = Literal["none", "pcm", "prcm", "prcm_released"]
Affinity = Literal["correlation", "cosine"]
ScoreResolution = Literal["cam", "input"]
WinnerClasses = Literal["present", "all"]


class CamOutput(NamedTuple):
    """What one pass over M views gives.

    Attributes:
        cam: float [M, K, h, w], the un-normalised maps A (logits per position).
        scores: float [M, K], image logits s = GAP(A), the mean of each map.
        features: float [M, 195, h, w], pixel features X for the refinement; empty [M, 0, h, w] without refinement;
            float [M, E, h, w], the backbone's own, where those were asked for.
        pixels: float [M, K + 1, h, w], logits of background and classes, of a network with a pixel head; else None.
    """

    cam: Tensor
    scores: Tensor
    features: Tensor
    pixels: Tensor | None = None


class CamNet(nn.Module):
    """A classifier whose last maps are CAMs, with PCM and PRCM on top (paper sections 3.1 and 3.3).

    Args:
        backbone: gives (mid, high, final) maps.
        num_classes: K foreground classes.
        refinement: "none", "pcm", "prcm" (PCM + PRCM) or "prcm_released".
        dropout: channel dropout before the classifier.
        affinity: what PCM compares pixels by. All X are built from ReLU maps, so embeddings share a large common part
            and their plain "cosine" is near 1 for most pairs; "correlation" takes each image's mean out first.
        score_resolution: scores are means of the maps on the "cam" grid, or of those enlarged to the "input".
        winner_classes: which classes compete for a pixel in the refinement, those "present" in the image or "all";
            absent ones are zero in the result either way.
        pixel_head: also give logits of background and classes at every position, to be taught by pixel labels.

    The buffer `mean`, float [3] in [0, 1], is the RGB colour that is 0 after normalisation, hence what a hidden pixel
    shows; it travels with the weights so that labelling normalises as training did.
    """

    mean: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        refinement: Refinement = "prcm",
        dropout: float = 0.5,
        affinity: Affinity = "correlation",
        score_resolution: ScoreResolution = "cam",
        winner_classes: WinnerClasses = "present",
        pixel_head: bool = False,
    ) -> None:
        super().__init__()
        if refinement not in ("none", "pcm", "prcm", "prcm_released"):
            raise ValueError(f"unknown refinement {refinement!r}; known: none, pcm, prcm, prcm_released")
        mid_channels, high_channels, final_channels = backbone.channels
        self.num_classes = num_classes
        self.refinement, self.affinity = refinement, affinity
        self.score_resolution, self.winner_classes = score_resolution, winner_classes
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.backbone = backbone
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(final_channels, num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)
        self.pixels = nn.Conv2d(final_channels, num_classes + 1, 1) if pixel_head else None
        if self.pixels is not None:
            # From zero no gradient goes on into the backbone before the head knows anything.
            nn.init.zeros_(self.pixels.weight)
            nn.init.zeros_(self.pixels.bias)  # type: ignore[arg-type]
        if refinement != "none":
            self.f_mid, self.f_high, self.f9 = feature_heads(mid_channels, high_channels)
        if refinement.startswith("prcm"):
            self.phi = nn.Linear(FEATURE_CHANNELS, EMBEDDING_CHANNELS, bias=False)
            with torch.no_grad():
                self.phi.weight.copy_(self.f9.weight.flatten(1))

    def forward(self, views: Tensor, raw: bool = False) -> CamOutput:
        """Maps, image logits and pixel features of normalised views, float [M, 3, H, W].

        With `raw` the features are those of `raw_features`, for `refine_raw`, instead of the refinement heads' X.
        """
        mid, high, final = self.backbone(views)
        cam = self.classifier(self.dropout(final))
        size = (cam.shape[2], cam.shape[3])
        if raw:
            features = raw_features(mid, high, size)
        elif self.refinement == "none":
            features = cam.new_empty(cam.shape[0], 0, *size)
        else:
            features = pixel_features(views, mid, high, self.f_mid, self.f_high, size)
        scored = cam if self.score_resolution == "cam" else resize(cam, (views.shape[2], views.shape[3]))
        pixels = None if self.pixels is None else self.pixels(self.dropout(final))
        return CamOutput(cam, scored.mean(dim=(2, 3)), features, pixels)

    @property
    def refines_all_classes(self) -> bool:
        """Whether `refine` needs the maps of absent classes too."""
        return self.winner_classes == "all" or self.refinement == "prcm_released"

    def refine(
        self,
        cam: Tensor,  # [M, K, h, w]
        features: Tensor,  # [M, 195, h, w]
        labels: Tensor,  # [M, K]
        map_norm: MapNorm = "minmax",
        floor: Tensor | None = None,  # [M, K]
        power: float = 1.0,
    ) -> Tensor:  # [M, K, h, w]
        """RCAM before normalisation: the foreground of Y_pcm + Y_prcm (eq. 9 to 12), absent classes zero.

        `cam` is detached, so the gradient reaches the refinement heads only. `floor` is the least maximum by which a
        class is normalised (`pair_norm="shared"`); `power` is the exponent of PCM's affinities.

        Raises:
            RuntimeError: if the network has no refinement heads.
        """
        return self.refine_with_background(cam, features, labels, map_norm, floor, power)[:, 1:]

    def refine_with_background(
        self,
        cam: Tensor,  # [M, K, h, w]
        features: Tensor,  # [M, 195, h, w]
        labels: Tensor,  # [M, K]
        map_norm: MapNorm = "minmax",
        floor: Tensor | None = None,  # [M, K]
        power: float = 1.0,
    ) -> Tensor:  # [M, K + 1, h, w]
        """The same with the refined background map at channel 0."""
        if self.refinement == "none":
            raise RuntimeError("this network has no refinement heads: build it with refinement='pcm' or 'prcm'")
        competing = labels if self.winner_classes == "present" else torch.ones_like(labels)
        winners = winner_maps(cam, competing, map_norm, floor)
        embedding = self.f9(features).flatten(2)
        centre = embedding.mean(dim=2, keepdim=True) if self.affinity == "correlation" else 0.0
        refined = pixel_correlation(embedding - centre, winners, power=power)
        present = F.pad(labels, (1, 0), value=1.0) > 0
        if self.refinement != "pcm":
            form: PrcmForm = "released" if self.refinement == "prcm_released" else "softmax"
            refined = refined + pixel_region_correlation(
                winners, features.flatten(2).float(), embedding.float(), self.phi.weight, present, form
            )
        if self.winner_classes == "all":
            refined = refined * present[:, :, None].to(refined.dtype)
        return refined.unflatten(2, cam.shape[2:])
