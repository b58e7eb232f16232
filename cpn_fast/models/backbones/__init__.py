"""The backbones; each gives the feature maps mid, high and final of an image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cpn_fast.config.backbones import check_backbone_name
from cpn_fast.models.backbones.common import Backbone
from cpn_fast.models.backbones.efficientnet_lite import EfficientNetLite2
from cpn_fast.models.backbones.external import external_backbone
from cpn_fast.models.backbones.feature_backbone import FeatureBackbone
from cpn_fast.models.backbones.mobilenet_v2 import MobileNetV2
from cpn_fast.models.backbones.resnet38 import ResNet38
from cpn_fast.models.backbones.resnet50 import ResNet50
from cpn_fast.models.backbones.vision_transformer import (
    DEIT_SMALL_PATCH16,
    DINOV2_SMALL_PATCH14,
    SMALL_PATCH16,
    VisionTransformer,
)

__all__ = ["BACKBONES", "Backbone", "FeatureBackbone", "create_backbone"]

BACKBONES: dict[str, Callable[[bool], Backbone]] = {
    "resnet38": ResNet38,
    "resnet50": ResNet50,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v2_stride8": partial(MobileNetV2, stride=8),
    "efficientnet_lite2": EfficientNetLite2,
    "efficientnet_lite2_stride8": partial(EfficientNetLite2, stride=8),
    "vit_small_patch16": partial(VisionTransformer, architecture=SMALL_PATCH16),
    "deit_small_patch16": partial(VisionTransformer, architecture=DEIT_SMALL_PATCH16),
    "vit_small_patch14_reg4_dinov2": partial(VisionTransformer, architecture=DINOV2_SMALL_PATCH14),
    "resnet38_tiny": partial(ResNet38, divisor=8),
}
"""Name -> constructor that takes `frozen`; the names are those of `cpn_fast.config.backbones`."""


def create_backbone(name: str, frozen: bool = True, pretrained: bool = False) -> Backbone:
    """Build a backbone; those of this package with weights from random numbers.

    Args:
        name: a key of `BACKBONES`; or `timm:NAME`, a network of timm; or `package.module:function`, which returns a
            `Backbone` or a module that `FeatureBackbone` takes.
        frozen: the rule of CAM training: the early stages and all batch norms do not train, batch norms stay in eval
            mode. False: everything trains.
        pretrained: a network of timm comes with timm's own weights, which timm fetches; of others no matter.

    Raises:
        DataError: for an unknown name, naming the known; for one that cannot be imported or built.
    """
    check_backbone_name(name)
    return BACKBONES[name](frozen) if name in BACKBONES else external_backbone(name, frozen, pretrained)
