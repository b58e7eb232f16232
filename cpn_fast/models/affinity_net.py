"""AffinityNet: a network that says which neighbouring pixels belong to the same class, and its loss.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (CVPR 2018). Pairs of pixels are
those of `cpn_kernels.ops.random_walk.OFFSETS`, and its affinities are what `random_walk` takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones import Backbone
from cpn_fast.models.pcm import resize
from cpn_kernels.ops.random_walk import OFFSETS, RADIUS

MID_CHANNELS, HIGH_CHANNELS, FINAL_CHANNELS = 64, 128, 256
EMBEDDING_CHANNELS = MID_CHANNELS + HIGH_CHANNELS + FINAL_CHANNELS
VOID = 255
EPS = 1e-5
"""Under both logarithms, and in the counts that they are divided by."""

_REACH = RADIUS - 1


class AffinityNet(nn.Module):
    """A backbone whose three stages become one embedding per pixel; close embeddings mean a high affinity.

    Args:
        backbone: gives (mid, high, final) maps; whether its early stages train is its own affair. Its `mid` and `high`
            are resized to the grid of `final`.

    All new layers count as "head" in `cpn_fast.training.optimizer.parameter_groups`. None has a bias.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        mid, high, final = backbone.channels
        self.backbone = backbone
        self.embed_mid = nn.Conv2d(mid, MID_CHANNELS, 1, bias=False)
        self.embed_high = nn.Conv2d(high, HIGH_CHANNELS, 1, bias=False)
        self.embed_final = nn.Conv2d(final, FINAL_CHANNELS, 1, bias=False)
        self.mix = nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 1, bias=False)
        for head in (self.embed_mid, self.embed_high, self.embed_final):
            nn.init.kaiming_normal_(head.weight)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)

    def embed(self, images: Tensor) -> Tensor:  # [B, 448, h, w]
        """Embeddings on the grid of the backbone's `final` for normalised images, float [B, 3, H, W]."""
        mid, high, final = self.backbone(images)
        size = (final.shape[2], final.shape[3])
        parts = [F.elu(self.embed_mid(mid)), F.elu(self.embed_high(high)), F.elu(self.embed_final(final))]
        parts = [part if part.shape[2:] == final.shape[2:] else resize(part, size) for part in parts]
        return F.elu(self.mix(torch.cat(parts, dim=1)))

    def forward(self, images: Tensor) -> Tensor:  # [B, 34, h, w]
        """Affinities (see `pair_affinity`) of normalised images, float [B, 3, H, W]."""
        return pair_affinity(self.embed(images))


def _around(maps: Tensor, value: float) -> Tensor:
    """Maps [B, ..., h, w] with a margin on the sides that a partner may lie on: left, right and below."""
    return F.pad(maps, (_REACH, _REACH, 0, _REACH), value=value)


def _partner(around: Tensor, dy: int, dx: int, height: int, width: int) -> Tensor:
    return around[..., dy : dy + height, _REACH + dx : _REACH + dx + width]


def pair_affinity(embedding: Tensor) -> Tensor:
    """exp(-mean_c |e_j - e_i|) for every pixel j and its partner i = j + OFFSETS[k].

    Args:
        embedding: e, float [B, E, h, w].

    Returns:
        float32 (float64 for float64) [B, 34, h, w] in [0, 1]; 0 for pairs that leave the grid, without gradient.
    """
    embedding = embedding if embedding.dtype == torch.float64 else embedding.float()
    height, width = embedding.shape[2:]
    planes = []
    for dy, dx in OFFSETS:
        # Only the pairs within the grid are computed.
        rows, left, right = max(height - dy, 0), min(max(0, -dx), width), min(max(0, dx), width)
        columns = max(width - left - right, 0)
        first = embedding[:, :, :rows, left : left + columns]
        second = embedding[:, :, height - rows :, right : right + columns]
        distance = (first - second).abs().mean(dim=1)
        planes.append(F.pad(torch.exp(-distance), (left, width - left - columns, 0, height - rows)))
    return torch.stack(planes, dim=1)


class PairLabels(NamedTuple):
    """What is known of pairs of pixels; bool [B, 34, h, w] each, of which at most one is true.

    Attributes:
        background: both are background.
        foreground: both are of the same foreground class.
        negative: they are of different classes, background among them.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor


def pair_labels(labels: Tensor, void: int = VOID) -> PairLabels:
    """Compare the labels of the pairs; one with a void pixel, or that leaves the grid, is in none of the three.

    Args:
        labels: integer [B, h, w]: 0 background, classes from 1 on, or `void`.
        void: label of pixels of which nothing is known.

    Raises:
        ValueError: for another shape or dtype.
    """
    if labels.ndim != 3 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; expected integers [B, h, w]")
    height, width = labels.shape[1:]
    around = _around(labels, void)
    partners = torch.stack([_partner(around, dy, dx, height, width) for dy, dx in OFFSETS], dim=1)
    own = labels[:, None]
    known = (own != void) & (partners != void)
    same = known & (own == partners)
    return PairLabels(same & (own == 0), same & (own != 0), known & (own != partners))


class AffinityLoss(NamedTuple):
    """The loss and its three parts, scalars.

    Attributes:
        total: background / 4 + foreground / 4 + negative / 2.
        background: mean of -log(affinity + eps) over pairs of background; 0 where there is none.
        foreground: the same over pairs of one foreground class.
        negative: mean of -log(1 + eps - affinity) over pairs of different classes.
    """

    total: Tensor
    background: Tensor
    foreground: Tensor
    negative: Tensor


def pair_counts(labels: Tensor, void: int = VOID) -> Tensor:
    """How many pairs of each kind (as in `PairLabels`) labels [B, h, w] have: int64 [3]. Raises as `pair_labels`."""
    return torch.stack([chosen.sum() for chosen in pair_labels(labels, void)])


def affinity_loss(affinity: Tensor, labels: Tensor, void: int = VOID, counts: Tensor | None = None) -> AffinityLoss:
    """Cross entropy of affinities, each kind of pair by its own count over the batch (equations 6 to 9 of that paper).

    Args:
        affinity: float [B, 34, h, w] in [0, 1].
        labels: integer [B, h, w]: 0 background, classes from 1 on, or `void`.
        void: label of pixels of which nothing is known.
        counts: numbers [3] to divide by instead (`pair_counts`). Data-parallel training gives those of all processes
            together as a share of one process: the mean of the processes' losses is then the loss of the whole batch.

    Raises:
        ValueError: for shapes that do not match, or labels that are no integers.
    """
    pairs = pair_labels(labels, void)
    if affinity.shape != pairs.background.shape:
        raise ValueError(f"affinity is {tuple(affinity.shape)}; expected {tuple(pairs.background.shape)}")

    def mean(values: Tensor, kind: int) -> Tensor:
        # By selection, not by product: 0 times what is no number would hide the pairs that count.
        count = pairs[kind].sum() if counts is None else counts[kind]
        return torch.where(pairs[kind], values, 0.0).sum() / (count.to(values.dtype) + EPS)

    together, apart = -torch.log(affinity + EPS), -torch.log(1 + EPS - affinity)
    background, foreground, negative = mean(together, 0), mean(together, 1), mean(apart, 2)
    return AffinityLoss(background / 4 + foreground / 4 + negative / 2, background, foreground, negative)
