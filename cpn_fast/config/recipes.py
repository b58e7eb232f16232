"""Recipes: learning rate, momentum and epochs per backbone, taken where the command line names none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from cpn_fast.config.backbones import BACKBONE_NAMES, check_backbone_name
from cpn_fast.config.training import (
    AffinityConfig,
    C,
    SegmentConfig,
    TrainConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class Recipe:
    """How long a network learns, and how fast.

    Attributes:
        lr: base learning rate.
        momentum: of SGD.
        epochs: passes over the data.
    """

    lr: float
    momentum: float
    epochs: int


OTHERS = "other"
"""The key of the recipe for backbones that are not of this package."""

CAM_RECIPES: Mapping[str, Recipe] = {
    "resnet38": Recipe(0.01, 0.9, 8),
    "resnet50": Recipe(0.01, 0.9, 8),
    "mobilenet_v2": Recipe(0.01, 0.0, 16),
    "mobilenet_v2_stride8": Recipe(0.01, 0.0, 16),
    "efficientnet_lite2": Recipe(0.01, 0.0, 16),
    "efficientnet_lite2_stride8": Recipe(0.01, 0.0, 16),
    "vit_small_patch16": Recipe(0.001, 0.9, 16),
    "deit_small_patch16": Recipe(0.001, 0.9, 16),
    "vit_small_patch14_reg4_dinov2": Recipe(0.001, 0.9, 16),
    "resnet38_tiny": Recipe(0.01, 0.9, 20),
    OTHERS: Recipe(0.003, 0.9, 16),
}
"""Of a CAM network. MobileNetV2's is from `docs/results/study.md`: without momentum 0.03 diverges, and with it 0.0003
to 0.003 give worse maps. EfficientNet-Lite2's gave good ones there once. Untried are their stride 8 and the
transformers'."""

SEGMENT_RECIPES: Mapping[str, Recipe] = {
    "resnet38": Recipe(0.001, 0.9, 19),
    "resnet50": Recipe(0.001, 0.9, 19),
    "mobilenet_v2": Recipe(0.001, 0.9, 20),
    "mobilenet_v2_stride8": Recipe(0.001, 0.9, 20),
    "efficientnet_lite2": Recipe(0.001, 0.9, 20),
    "efficientnet_lite2_stride8": Recipe(0.001, 0.9, 20),
    "vit_small_patch16": Recipe(0.001, 0.9, 20),
    "deit_small_patch16": Recipe(0.001, 0.9, 20),
    "vit_small_patch14_reg4_dinov2": Recipe(0.001, 0.9, 20),
    "resnet38_tiny": Recipe(0.01, 0.9, 20),
    OTHERS: Recipe(0.001, 0.9, 20),
}
"""Of a segmentation network; the paper's 20,000 steps of 10 of VOC's 10,582 images are 19 epochs. MobileNetV2's rate is
the best of 0.0004, 0.001, 0.003 and 0.01 on coco_mini's true masks (9.4, 10.7, 6.4, 3.8% mIoU on val after 8 epochs of
192 px crops). EfficientNet-Lite2, the transformers and the backbones of others take MobileNetV2's recipes, untried."""

AFFINITY_RECIPES: Mapping[str, Recipe] = {backbone: Recipe(0.01, 0.9, 8) for backbone in (*BACKBONE_NAMES, OTHERS)}
"""Of AffinityNet, on every backbone the paper's."""

RECIPES: Mapping[type[TrainingConfig], Mapping[str, Recipe]] = {
    TrainConfig: CAM_RECIPES,
    SegmentConfig: SEGMENT_RECIPES,
    AffinityConfig: AFFINITY_RECIPES,
}


def recipe_of(config: TrainingConfig) -> Recipe:
    """The recipe of a training by what is trained and its backbone."""
    return for_backbone(RECIPES[type(config)], config.backbone)


def for_backbone(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    """The recipe of a backbone by its name, or that of the others where it is not of this package.

    Raises:
        DataError: for a name that `check_backbone_name` refuses.
    """
    check_backbone_name(name)
    return recipes[name] if name in recipes else recipes[OTHERS]


def with_recipe(config: C) -> C:
    """Fill what is None (lr, momentum, epochs) from the recipe."""
    recipe, given, loop = recipe_of(config), config.optimizer, config.loop
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(
            given,
            lr=recipe.lr if given.lr is None else given.lr,
            momentum=recipe.momentum if given.momentum is None else given.momentum,
        ),
        loop=dataclasses.replace(loop, epochs=recipe.epochs if loop.epochs is None else loop.epochs),
    )
