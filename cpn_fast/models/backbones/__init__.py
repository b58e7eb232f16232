"""The backbones; each gives the feature maps mid, high and final of an image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cpn_fast.models.backbones.common import Backbone
from cpn_fast.models.backbones.mobilenet_v2 import MobileNetV2
from cpn_fast.models.backbones.resnet38 import ResNet38
from cpn_fast.models.backbones.resnet50 import ResNet50

__all__ = ["BACKBONES", "Backbone", "create_backbone"]

BACKBONES: dict[str, Callable[[bool], Backbone]] = {
    "resnet38": ResNet38,
    "resnet50": ResNet50,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v2_stride8": partial(MobileNetV2, stride=8),
    "resnet38_tiny": partial(ResNet38, divisor=8),
}
"""Name -> constructor that takes `frozen`."""


def create_backbone(name: str, frozen: bool = True) -> Backbone:
    """Build a backbone with Kaiming-initialised weights.

    Args:
        name: a key of `BACKBONES`.
        frozen: the rule of CAM training: the early stages and all batch norms do not train, batch norms stay in eval
            mode. False: everything trains.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    return BACKBONES[name](frozen)
