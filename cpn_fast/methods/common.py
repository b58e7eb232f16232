"""What the methods share: classification loss, normalised maps for watching, ER and ECR, min pooling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cpn_fast.config.training import MethodOptions
from cpn_fast.methods.pixels import pixel_label_loss, shown_pixels
from cpn_fast.methods.teacher import Teacher
from cpn_fast.models.cam import CamNet
from cpn_kernels.cam_norm import MapNorm, normalise_cam, winner_mask
from cpn_kernels.ops.cp_loss import ohem_mean
from cpn_kernels.ops.cp_triplet import normalise_images


def classification_loss(scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Multilabel soft margin loss, a mean over each image's valid views, then over images (eq. 13).

    Args:
        scores: float [V, B, K] image logits of V views.
        labels: float [B, K] in {0, 1}.
        valid: bool or float [V, B]; a view in which nothing is visible counts for nothing.
    """
    targets = labels.expand_as(scores)
    scores = at_least_single(scores)
    per_view = F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), reduction="none").mean(dim=2)
    weights = valid.to(per_view.dtype)
    return ((per_view * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1)).mean()


def classify_only(
    net: CamNet,
    options: MethodOptions,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    """A plain classifier's step: one view and L_cls. The baseline, and the first steps of the other methods.

    Args:
        net: the network.
        options: of the run.
        images: uint8 [B, H, W, 3].
        labels: float [B, K] in {0, 1}.
        targets: uint8 [B, H, W] pixel labels for the pixel head; None without.
        teacher: labels the pixels for it in their place.

    Returns:
        `loss`, `cls`, with targets `pixels`, `scores` and `cam` as every method gives them.
    """
    views = normalise_images(images, net.mean)
    out = net(views)
    loss = cls = classification_loss(out.scores[None], labels, torch.ones(1, labels.shape[0], device=labels.device))
    parts = {"cls": cls}
    if teacher is not None:
        targets = teacher.labels(views, labels)
    if targets is not None and out.pixels is not None:
        competing = present_pool(labels, options.pixel_classes)
        parts["pixels"] = pixel_label_loss(out.pixels, targets, shown_pixels(views), competing)
        loss = cls + options.pixel_weight * parts["pixels"]
    return {
        "loss": loss,
        **{name: value.detach() for name, value in parts.items()},
        "scores": out.scores.detach(),
        "cam": watch(out.cam, labels, options.map_norm),
    }


def at_least_single(maps: Tensor) -> Tensor:
    """Maps of half precision in single; others as they are."""
    return maps if maps.dtype == torch.float64 else maps.float()


def to_grid(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [B, C, h, w] maps to the grid `size`, corners aligned."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def watch(raw: Tensor, labels: Tensor, map_norm: MapNorm) -> Tensor:
    """Detached normalised foreground maps [B, K, h, w] for statistics and pictures."""
    with torch.no_grad():
        return normalise_cam(raw.detach().float(), labels, map_norm=map_norm)


def present_pool(labels: Tensor, pool: str) -> Tensor | None:
    """bool [B, C] of the classes from which OHEM picks: background and present ones, or None for all."""
    return F.pad(labels, (1, 0), value=1.0) > 0 if pool == "present" else None


def equivariant_cross_loss(maps: Tensor, refined: Tensor, labels: Tensor, ohem: float, pool: str) -> Tensor:
    """ECR: |winner of a view's CAM (detached) - the other view's RCAM|, hardest share per image.

    The winner map keeps the background and each position's strongest foreground class, as SEAM's max_onehot does.

    Args:
        maps: float [B, C, h, w] normalised CAM with background, the target.
        refined: float [B, C, h, w] normalised RCAM with background.
        labels: float [B, K].
        ohem: share of elements kept.
        pool: "present" or "all".
    """
    target = (maps * winner_mask(maps)).detach()
    return ohem_mean((target - refined).abs(), present_pool(labels, pool), ohem)


def min_pool_loss(refined: Tensor, labels: Tensor) -> Tensor:
    """Mean over the lowest 25% of per-position class maxima of the un-normalised, label-masked RCAM.

    Args:
        refined: float [M, K, h, w], un-normalised foreground RCAM.
        labels: float [M, K].
    """
    strongest = (refined * labels[:, :, None, None]).amax(dim=1).flatten(1)
    count = max(1, strongest.shape[1] // 4)
    return F.relu(torch.topk(strongest, count, dim=1, largest=False).values).mean(dim=1).mean()
