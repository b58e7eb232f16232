"""Pretraining of the demo's backbone: a plain classifier of single objects, as ImageNet's pictures mostly are.

It stands in for ImageNet weights, which cannot be shipped. The pictures are cut from the `pretrain` split, which shares
no scene with the others; everything trains, batch norms included, so that the recipe with frozen batch norms applies
afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.data.loading.random import generator
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Source
from cpn_fast.device import tune_allocator
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.backbones.resnet38 import BottleneckBlock
from cpn_fast.models.weights.save import save_weights
from cpn_kernels.ops.cp_triplet import normalise_images

log = logging.getLogger(__name__)

STORED_SIDE = 80
"""Side in pixels of a cut-out object; training sees random crops of `PretrainSettings.crop`."""
MARGIN = 0.25
HELD_OUT = 0.1


@dataclass(frozen=True)
class PretrainSettings:
    """How the demo's backbone is pretrained.

    Attributes:
        backbone: which one.
        epochs: passes over the objects.
        batch_size: objects per step.
        lr: peak learning rate of AdamW under a one-cycle schedule.
        crop: side of the training crop in pixels, at most 80.
        max_steps: stop after so many steps; None = all.
    """

    backbone: str = "resnet38_tiny"
    epochs: int = 8
    batch_size: int = 16
    lr: float = 3e-3
    crop: int = 64
    max_steps: int | None = None


@dataclass(frozen=True)
class Objects:
    """Single objects cut out of scenes: images uint8 [n, 80, 80, 3] RGB, labels int64 [n]."""

    images: np.ndarray
    labels: np.ndarray

    def split(self, held_out: float) -> tuple[Objects, Objects]:
        """The first part for training, the last `held_out` share for the accuracy."""
        cut = len(self.labels) - round(len(self.labels) * held_out)
        return Objects(self.images[:cut], self.labels[:cut]), Objects(self.images[cut:], self.labels[cut:])


class _Classifier(nn.Module):
    """Backbone, 1x1 convolution, global average: the image scores of CAM training, without any dropout."""

    def __init__(self, settings: PretrainSettings, num_classes: int) -> None:
        super().__init__()
        self.backbone = create_backbone(settings.backbone, frozen=False)
        for module in self.backbone.modules():
            if isinstance(module, BottleneckBlock):
                module.dropout = 0.0  # the narrow backbone learns the objects only without it
        self.head = nn.Conv2d(self.backbone.channels[2], num_classes, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, H, W, 3]."""
        return self.head(self.backbone(normalise_images(images))[2]).mean(dim=(2, 3))


def pretrain_backbone(
    data: str, output_path: Path, seed: int = 0, settings: PretrainSettings | None = None, device: str = "cpu"
) -> float:
    """Train a classifier of single objects and save its backbone.

    Args:
        data: the demo source, `demo:` or `demo:PATH`.
        output_path: the safetensors file to write.
        seed: of initialisation, order and augmentation.
        settings: the recipe; None = `PretrainSettings()`.
        device: where to train.

    Returns:
        Accuracy in 0..1 on the 10% of the objects that were held out.
    """
    settings = settings or PretrainSettings()
    tune_allocator()
    source = open_source(data)
    train, held_out = cut_objects(source).split(HELD_OUT)
    torch.manual_seed(seed)
    model = _Classifier(settings, len(source.classes)).to(device).train()
    steps = settings.epochs * (len(train.labels) // settings.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.2)
    started = time.perf_counter()
    left = steps if settings.max_steps is None else min(steps, settings.max_steps)
    for epoch in range(settings.epochs):
        losses: list[Tensor] = []
        for images, labels in islice(_batches(train, settings, seed, epoch), left):
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        left -= len(losses)
        seconds = time.perf_counter() - started
        mean = float(torch.stack(losses).mean())
        log.info("pretraining: epoch %d/%d, loss %.3f, %.0f s", epoch + 1, settings.epochs, mean, seconds)
        if left == 0:
            break
    output_path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(output_path, model.backbone.state_dict(), {"format": "pt", "backbone": settings.backbone})
    return _accuracy(model.eval(), held_out, settings.crop, device)


def cut_objects(source: Source) -> Objects:
    """Every object of the `pretrain` split with a margin of a quarter of its size, resized to 80 x 80.

    Args:
        source: the demo set; its boxes are read from the VOC annotations.
    """
    images, labels = [], []
    for record in source.records("pretrain"):
        image = source.read(record).image
        annotation = Path(str(record.image_path)).parent.parent / "Annotations" / f"{record.id}.xml"
        for thing in ElementTree.parse(annotation).getroot().findall("object"):
            x0, y0, x1, y1 = (int(thing.findtext(f"bndbox/{key}", "0")) for key in ("xmin", "ymin", "xmax", "ymax"))
            margin = int(MARGIN * max(x1 - x0, y1 - y0))
            cut = image[max(0, y0 - 1 - margin) : y1 + margin, max(0, x0 - 1 - margin) : x1 + margin]
            images.append(cv2.resize(cut, (STORED_SIDE, STORED_SIDE), interpolation=cv2.INTER_AREA))
            labels.append(source.classes.index(thing.findtext("name", "")))
    return Objects(np.stack(images), np.array(labels))


def _batches(objects: Objects, settings: PretrainSettings, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cropped, flipped, brightened batches of one epoch; what does not fill a batch is left out."""
    rng = generator(seed, epoch, "all", "pretrain")
    order = rng.permutation(len(objects.labels))
    size = settings.batch_size
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        crops = [_random_crop(objects.images[index], settings.crop, rng) for index in chosen]
        yield torch.from_numpy(np.stack(crops)), torch.from_numpy(objects.labels[chosen])


def _random_crop(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, STORED_SIDE - side + 1, 2)
    crop = image[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.clip(crop * rng.uniform(0.7, 1.3), 0, 255).astype(np.uint8)


@torch.no_grad()
def _accuracy(model: nn.Module, objects: Objects, side: int, device: str) -> float:
    """Share of centre crops whose best class is right."""
    first = (STORED_SIDE - side) // 2
    centre = np.ascontiguousarray(objects.images[:, first : first + side, first : first + side])
    found = model(torch.from_numpy(centre).to(device)).argmax(dim=1).cpu().numpy()
    return float((found == objects.labels).mean())
