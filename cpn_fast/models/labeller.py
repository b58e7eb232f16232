"""The labelling module: images to multi-scale RCAM and masks; eager labelling and the ONNX graph share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.config.scales import CAM_SCALES
from cpn_fast.files.background_score import DEFAULT_BETA
from cpn_fast.models.cam import CamNet
from cpn_kernels.cam_norm import MapNorm, normalise_cam
from cpn_kernels.ops.cp_triplet import normalise_images

ScaleResize = Literal["bilinear", "bicubic"]


class Labelled(NamedTuple):
    """What the labeller says of B images.

    Attributes:
        cam: float [B, K, H, W] normalised foreground CAM in [0, 1).
        rcam: the same for RCAM (the CAM again where the network has no refinement).
        scores: float [B, K] class probabilities at the scale nearest to 1.
        mask: uint8 [B, H, W], 0 background, 1..K classes.
    """

    cam: Tensor
    rcam: Tensor
    scores: Tensor
    mask: Tensor


class ScaleMaps(NamedTuple):
    """Un-normalised foreground maps of one scale (flip already summed), float [B, K, H, W]."""

    cam: Tensor
    rcam: Tensor


def scaled_size(length: int, scale: float) -> int:
    """`length * scale` in pixels, rounded half up in integers, so that eager and exported graphs agree."""
    return (length * round(scale * 100) + 50) // 100


def scaled_views(views: Tensor, scale: float, flip: bool) -> Tensor:
    """Views [B, 3, H, W] at another scale; with flip, the mirrored ones behind them, [2B, 3, H', W']."""
    size = (scaled_size(views.shape[2], scale), scaled_size(views.shape[3], scale))
    scaled = views if scale == 1 else F.interpolate(views, size=size, mode="bilinear", align_corners=False)
    return torch.cat([scaled, scaled.flip(3)]) if flip else scaled


def bicubic_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images at another size as Pillow's bicubic filter makes them: antialiased, rounded to 8 bits.

    Args:
        images: uint8 [B, H, W, 3].
        size: target (height, width) in pixels.

    Returns:
        uint8 [B, height, width, 3], within one grey level of Pillow, which rounds between its two passes too.
    """
    colours = images.permute(0, 3, 1, 2).float()
    resized = F.interpolate(colours, size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def unflipped(maps: Tensor, flip: bool) -> tuple[Tensor, ...]:
    """Maps of what `scaled_views` gave: with flip its two halves [B, C, h, w], the second mirrored back."""
    if not flip:
        return (maps,)
    # Not chunk(): under export it would fix the batch size to the example's.
    straight, mirrored = maps.unflatten(0, (2, -1)).unbind()
    return straight, mirrored.flip(3)


def standing_labels(scores: Tensor, threshold: float) -> Tensor:
    """Labels [B, K] from class probabilities: those above `threshold`, at least the best one."""
    best = F.one_hot(scores.argmax(dim=1), scores.shape[1]).bool()
    return (best | (scores > threshold)).to(scores.dtype)


def present_channels(labels: Tensor) -> Tensor:
    """Indices, int64 [P], of the classes that any row of the labels [B, K] holds; the first class where none does."""
    channels = (labels > 0).any(dim=0).nonzero().flatten()
    return channels if len(channels) else channels.new_zeros(1)


def of_channels(maps: Tensor, channels: Tensor | None) -> Tensor:
    """The chosen channels (axis 1) of maps or labels; None = all of them."""
    return maps if channels is None else maps[:, channels]


def normalised(maps: Tensor, labels: Tensor, map_norm: MapNorm) -> Tensor:
    """Summed maps to [0, 1) by the rule of the CAM, absent classes zero."""
    return normalise_cam(maps, labels, map_norm=map_norm)


def mask_of(maps: Tensor, beta: float) -> Tensor:
    """uint8 [B, H, W]: argmax over background (constant `beta`) and the K foreground maps [B, K, H, W]."""
    background = torch.full_like(maps[:, :1], beta)
    return torch.cat([background, maps], dim=1).argmax(dim=1).to(torch.uint8)


class Labeller(nn.Module):
    """Multi-scale, flipped inference of a CamNet (paper section 4.1).

    Class probabilities come from the scale nearest to 1, the one at which the classifier was trained.

    Args:
        net: a trained network; it is put into eval mode.
        scales: scale factors of the image.
        flip: also run the mirrored image.
        beta: background score of the mask, in [0, 1].
        threshold: class probability above which a class stands in where an image has no labels.
        map_norm: normalisation of the run.
        resize: how images are brought to a scale: "bilinear" without antialiasing, or "bicubic" as Pillow does it.
    """

    def __init__(
        self,
        net: CamNet,
        scales: Sequence[float] = CAM_SCALES,
        flip: bool = True,
        beta: float = DEFAULT_BETA,
        threshold: float = 0.5,
        map_norm: MapNorm = "minmax",
        resize: ScaleResize = "bilinear",
    ) -> None:
        super().__init__()
        self.net = net.eval()
        self.scales, self.flip, self.beta = tuple(scales), flip, beta
        self.scoring_pass = min(range(len(self.scales)), key=lambda index: abs(self.scales[index] - 1))
        self.threshold, self.map_norm, self.resize = threshold, map_norm, resize

    def _at_scale(self, images: Tensor, views: Tensor, scale: float) -> Tensor:
        """Views at a scale, mirrored ones behind them, of uint8 images [B, H, W, 3] or of those normalised."""
        if self.resize == "bilinear" or scale == 1:
            return scaled_views(views, scale, self.flip)
        size = (scaled_size(images.shape[1], scale), scaled_size(images.shape[2], scale))
        return scaled_views(normalise_images(bicubic_images(images, size), self.net.mean), 1, self.flip)

    def _at_image_size(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        full = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        straight, *mirrored = unflipped(full, self.flip)
        return straight + mirrored[0] if mirrored else straight

    def scale_maps(
        self, images: Tensor, labels: Tensor, present_only: bool = False
    ) -> tuple[Tensor, Tensor, Iterator[ScaleMaps]]:
        """The parts of `forward`, for scoring each scale beside their sum in one pass.

        Args:
            images: uint8 [B, H, W, 3] RGB.
            labels: float [B, K]; a row of -1 means that the network's own scores stand in.
            present_only: give only the maps of `present_channels`: those of absent classes end as zeros anyway, and
                with many classes most of the time goes into enlarging them. Not for export (a size by value).

        Returns:
            class probabilities [B, K], the labels in force [B, K], and an iterator of maps, one item per scale.
        """
        views = normalise_images(images, self.net.mean)
        size = (views.shape[2], views.shape[3])
        passes = [self.net(self._at_scale(images, views, scale)) for scale in self.scales]
        logits = passes[self.scoring_pass][1]
        if self.flip:
            logits = logits.unflatten(0, (2, -1)).mean(dim=0)
        scores = torch.sigmoid(logits)
        in_force = torch.where(labels.amin(dim=1, keepdim=True) < 0, standing_labels(scores, self.threshold), labels)
        channels = present_channels(in_force) if present_only else None
        refined_of = None if channels is None or self.net.refines_all_classes else channels
        repeated = of_channels(in_force.repeat(2, 1) if self.flip else in_force, refined_of)

        def maps() -> Iterator[ScaleMaps]:
            for cam, _, features in passes:
                full = self._at_image_size(F.relu(of_channels(cam, channels)), size)
                if self.net.refinement == "none":
                    yield ScaleMaps(full, full)
                else:
                    refined = self.net.refine(of_channels(cam, refined_of), features, repeated, self.map_norm)
                    wanted = refined if refined_of is channels else of_channels(refined, channels)
                    yield ScaleMaps(full, self._at_image_size(wanted, size))

        return scores, in_force, maps()

    def forward(self, images: Tensor, labels: Tensor) -> Labelled:
        """Label uint8 images [B, H, W, 3] with labels float [B, K] (a row of -1: own scores stand in)."""
        scores, in_force, maps = self.scale_maps(images, labels)
        first = next(maps)
        cam, rcam = first.cam, first.rcam
        for item in maps:
            cam, rcam = cam + item.cam, rcam + item.rcam
        cam, rcam = (normalised(m, in_force, self.map_norm) for m in (cam, rcam))
        return Labelled(cam, rcam, scores, mask_of(rcam, self.beta))
