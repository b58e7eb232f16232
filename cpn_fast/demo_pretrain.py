"""Pretraining of the demo's backbone: a plain classifier on generated images that no other split shares.

It stands in for ImageNet weights, which cannot be shipped: everything trains, batch norms included, so that the recipe
with frozen batch norms applies afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.config import AugmentOptions, BackboneName
from cpn_fast.data.augment import augment
from cpn_fast.data.open import open_source
from cpn_fast.data.random import generator
from cpn_fast.data.types import Sample
from cpn_fast.files.atomic import atomic_path
from cpn_fast.models.backbones import create_backbone
from cpn_fast.runtime_tuning import tune_allocator
from cpn_kernels.cp_triplet import normalise_images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainSettings:
    """How the demo's backbone is pretrained.

    Attributes:
        backbone: which one.
        epochs: passes over the `pretrain` split.
        batch_size: images per step.
        lr: peak learning rate of AdamW under a one-cycle schedule.
        augment: crops that the classifier sees.
    """

    backbone: BackboneName = "resnet38_tiny"
    epochs: int = 10
    batch_size: int = 16
    lr: float = 3e-3
    augment: AugmentOptions = field(default_factory=lambda: AugmentOptions(crop=112, resize=(104, 168)))


class _Classifier(nn.Module):
    """Backbone, 1x1 convolution, global average: the image scores of CAM training, without dropout before them."""

    def __init__(self, backbone: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(channels, num_classes, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, H, W, 3]."""
        final = self.backbone(normalise_images(images))[2]
        return self.head(final).mean(dim=(2, 3))


def pretrain_backbone(
    data: str, output_path: Path, seed: int = 0, settings: PretrainSettings | None = None, device: str = "cpu"
) -> float:
    """Train a classifier on the `pretrain` split and save its backbone.

    Args:
        data: the demo source, `demo:` or `demo:PATH`.
        output_path: the safetensors file to write.
        seed: of initialisation, order and augmentation.
        settings: the recipe; None = `PretrainSettings()`.
        device: where to train.

    Returns:
        Micro-averaged F1 of the image labels on the `val` split, in 0..1, at probability 0.5.
    """
    settings = settings or PretrainSettings()
    tune_allocator()
    source = open_source(data)
    samples = [source.read(record) for record in source.records("pretrain")]
    torch.manual_seed(seed)
    backbone = create_backbone(settings.backbone, frozen=False)
    model = _Classifier(backbone, backbone.channels[2], len(source.classes)).to(device).train()
    steps = settings.epochs * (len(samples) // settings.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.2)
    started, done = time.perf_counter(), 0
    for epoch in range(settings.epochs):
        losses = []
        for images, labels in _batches(samples, settings, seed, epoch):
            loss = F.multilabel_soft_margin_loss(model(images.to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            done += 1
        seconds = time.perf_counter() - started
        mean = float(torch.stack(losses).mean())
        log.info("pretraining: epoch %d/%d, loss %.3f, %.0f s", epoch + 1, settings.epochs, mean, seconds)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    with atomic_path(output_path) as temporary:
        save_file(weights, temporary, metadata={"format": "pt", "backbone": settings.backbone})
    return _micro_f1(model.eval(), [source.read(record) for record in source.records("val")], device)


def _batches(
    samples: Sequence[Sample], settings: PretrainSettings, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches of one epoch, uint8 [B, S, S, 3] and float [B, K]; what does not fill a batch is left out."""
    order = generator(seed, epoch, "all", "pretrain-order").permutation(len(samples))
    size = settings.batch_size
    for start in range(0, len(order) - size + 1, size):
        chosen = [samples[index] for index in order[start : start + size]]
        crops = [
            augment(sample.image, settings.augment, generator(seed, epoch, sample.record.id, "pretrain-augment"))[0]
            for sample in chosen
        ]
        yield torch.from_numpy(np.stack(crops)), torch.from_numpy(np.stack([_labels(sample) for sample in chosen]))


def _labels(sample: Sample) -> np.ndarray:
    assert sample.labels is not None, f"{sample.record.id}: a generated image has labels"
    return sample.labels


@torch.no_grad()
def _micro_f1(model: nn.Module, samples: Sequence[Sample], device: str) -> float:
    """F1 over all (image, class) decisions; images one at a time, since their sizes differ."""
    found = torch.stack([model(torch.from_numpy(s.image)[None].to(device))[0].cpu() > 0 for s in samples])
    truth = torch.from_numpy(np.stack([_labels(sample) for sample in samples])) > 0
    hits = int((found & truth).sum())
    return 2 * hits / max(1, int(found.sum()) + int(truth.sum()))
