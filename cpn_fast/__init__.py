"""cpn-fast: pixel masks and a segmentation model from image-level labels (CPN, ICCV 2021).

Names are imported when they are first asked for: `import cpn_fast` itself needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpn_fast.api.functions import Scores, create_model, evaluate, label, list_backbones, load, train
    from cpn_fast.api.images import ImageLabeller, LabelledImage
    from cpn_fast.api.model import Model
    from cpn_fast.api.run import Run
    from cpn_fast.cam.one_image import LabelSettings, label_image, label_settings
    from cpn_fast.config.training import (
        AffinityConfig,
        AugmentOptions,
        DeviceOptions,
        LoopOptions,
        MethodOptions,
        OptimizerOptions,
        PatchOptions,
        SegmentAugment,
        SegmentConfig,
        SegmentLoop,
        TrainConfig,
    )
    from cpn_fast.data.sources.open import open_source
    from cpn_fast.files.errors import DataError
    from cpn_fast.models.backbones import FeatureBackbone

__version__ = "0.1.0"

_HOMES = {
    "cpn_fast.api.functions": ("Scores", "create_model", "evaluate", "label", "list_backbones", "load", "train"),
    "cpn_fast.api.images": ("ImageLabeller", "LabelledImage"),
    "cpn_fast.api.model": ("Model",),
    "cpn_fast.api.run": ("Run",),
    "cpn_fast.cam.one_image": ("LabelSettings", "label_image", "label_settings"),
    "cpn_fast.config.training": (
        "AffinityConfig",
        "AugmentOptions",
        "DeviceOptions",
        "LoopOptions",
        "MethodOptions",
        "OptimizerOptions",
        "PatchOptions",
        "SegmentAugment",
        "SegmentConfig",
        "SegmentLoop",
        "TrainConfig",
    ),
    "cpn_fast.data.sources.open": ("open_source",),
    "cpn_fast.files.errors": ("DataError",),
    "cpn_fast.models.backbones": ("FeatureBackbone",),
}
"""Module -> the public names that it defines."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AffinityConfig",
    "AugmentOptions",
    "DataError",
    "DeviceOptions",
    "FeatureBackbone",
    "ImageLabeller",
    "LabelSettings",
    "LabelledImage",
    "LoopOptions",
    "MethodOptions",
    "Model",
    "OptimizerOptions",
    "PatchOptions",
    "Run",
    "Scores",
    "SegmentAugment",
    "SegmentConfig",
    "SegmentLoop",
    "TrainConfig",
    "create_model",
    "evaluate",
    "label",
    "label_image",
    "label_settings",
    "list_backbones",
    "load",
    "open_source",
    "train",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cpn_fast' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
