"""One training step as this method's ancestors write it: everything per image and per view, in Python and eager torch.

A loader that resizes, jitters and crops with Pillow, runs scikit-image's SLIC on every crop and fills two masks pixel
by pixel; three passes through the network, batch norms as layers of their own; an N x N affinity per view; losses image
by image. The random numbers are this project's, so that both sides see the same crops and hide the same patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.peers import losses
from cpn_fast.config.training import TrainConfig
from cpn_fast.data.loading.augment import Geometry, augment
from cpn_fast.data.loading.random import generator, key64
from cpn_fast.data.superpixels.cache import SuperpixelCache
from cpn_fast.data.types import Record, Source
from cpn_fast.models.backbones import mobilenet_v2, resnet38
from cpn_fast.models.cam import CamNet
from cpn_kernels.philox import first_word

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
SPREAD = np.array([0.229, 0.224, 0.225], np.float32)

Sample = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""I, I_h, I_hbar [3, H, W], labels [K] and the visible share []; with a leading B once batched."""


def hidden_masks(patches: np.ndarray, key: int, p_hidden: float) -> tuple[np.ndarray, np.ndarray]:
    """Masks of I_h and I_hbar [H, W], filled in pixel by pixel; patch -1 is padding and in neither."""
    words = first_word(torch.tensor(key), torch.arange(int(patches.max()) + 1)).tolist()
    hidden = [word < math.floor(p_hidden * 2**32) for word in words]
    shown, rest = np.zeros(patches.shape, np.float32), np.zeros(patches.shape, np.float32)
    for row in range(patches.shape[0]):
        for column in range(patches.shape[1]):
            patch = patches[row, column]
            if patch < 0:
                continue
            if hidden[patch]:
                rest[row, column] = 1
            else:
                shown[row, column] = 1
    return shown, rest


class AncestorCrops(Dataset[Sample]):
    """The samples of a run, one after another: place = step * batch size + slot.

    Args:
        source: reads the images.
        records: the split, at least a batch of it.
        config: the run's.
        cache: prepared maps to take the patches from, for a comparison of losses; None = SLIC of each crop.
    """

    def __init__(
        self, source: Source, records: Sequence[Record], config: TrainConfig, cache: SuperpixelCache | None = None
    ) -> None:
        self.source, self.records, self.config, self.cache = source, list(records), config, cache

    def __len__(self) -> int:
        return 2**30

    def __getitem__(self, place: int) -> Sample:
        config = self.config
        step, slot = divmod(place, config.loop.batch_size)
        epoch, within = divmod(step, len(self.records) // config.loop.batch_size)
        record = self.records[order(config.loop.seed, epoch, len(self.records))[within * config.loop.batch_size + slot]]
        sample = self.source.read(record)
        crop, geometry = augment(sample.image, config.augment, generator(config.loop.seed, epoch, record.id, "augment"))
        patches = self.patches(record, crop, geometry)
        key = key64(config.loop.seed, epoch, record.id, "hide")
        shown, rest = hidden_masks(patches, key, config.options.p_hidden)
        image = ((crop / np.float32(255) - MEAN) / SPREAD).astype(np.float32).transpose(2, 0, 1)
        views = [torch.from_numpy(np.ascontiguousarray(image * mask)) for mask in (shown + rest, shown, rest)]
        visible = torch.tensor(shown.sum() / max(shown.sum() + rest.sum(), 1))
        return views[0], views[1], views[2], torch.from_numpy(np.asarray(sample.labels)), visible

    def patches(self, record: Record, crop: np.ndarray, geometry: Geometry) -> np.ndarray:
        """int [H, W], -1 in the padding."""
        if self.cache is not None:
            return geometry.apply_map(self.cache.get(record, geometry.share_seen))
        from skimage.segmentation import slic

        options = self.config.patch
        labels = slic(crop, n_segments=options.segments, compactness=options.compactness, start_label=0)
        return np.where(geometry.apply_map(np.zeros((1, 1), np.int32)) < 0, -1, labels)


@cache
def order(seed: int, epoch: int, count: int) -> list[int]:
    """Numbers of the records in the order in which an epoch shows them."""
    return generator(seed, epoch, "", "order").permutation(count).tolist()


def separate_norms() -> None:
    """From now on in this process the backbones run a convolution and its batch norm one after the other."""

    def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
        return norm(conv(x))

    def norm_relu(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        return F.relu(norm(x), inplace=True)

    for module in (mobilenet_v2, resnet38):
        module.conv_norm = conv_norm
    resnet38.norm_relu = norm_relu


def refined(net: CamNet, cam: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """RCAM of one view by PCM, with the N x N affinity of its images; [B, K, h, w]."""
    maps = []
    for image, label in zip(cam.detach(), labels, strict=True):
        full = losses.add_background(losses.normalised(image, label))
        mask = torch.zeros_like(full)
        mask[0] = 1
        mask[1:].scatter_(0, full[1:].argmax(0, keepdim=True), 1)
        maps.append((full * mask).flatten(1))
    embedding = net.f9(features).flatten(2)
    embedding = F.normalize(embedding - embedding.mean(dim=2, keepdim=True), dim=1)
    affinity = F.relu(embedding.transpose(1, 2) @ embedding)
    affinity = affinity / (affinity.sum(dim=1, keepdim=True) + 1e-5)
    return (torch.stack(maps) @ affinity)[:, 1:].reshape(cam.shape)


def total_loss(net: CamNet, views: Sequence[Tensor], labels: Tensor, visible: Tensor, together: bool) -> Tensor:
    """L_cls + L_tcp + L_cpcr of three views [B, 3, H, W]; `together` runs them through the network as one batch."""
    if together:
        out = net(torch.cat(list(views)))
        cams, scores, features = out.cam.chunk(3), out.scores.chunk(3), out.features.chunk(3)
    else:
        outs = [net(view) for view in views]
        cams, scores, features = ([getattr(o, name) for o in outs] for name in ("cam", "scores", "features"))
    rcams = [refined(net, cam, x, labels) for cam, x in zip(cams, features, strict=True)]
    cls = sum(F.multilabel_soft_margin_loss(score, labels) for score in scores) / 3
    tcp, cpcr = losses.cp_loss(torch.cat(list(cams)), torch.cat(rcams), labels, visible, "image")
    return cls + tcp + cpcr
