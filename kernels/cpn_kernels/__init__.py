"""The operators of CPN as functions; each runs on every device, by the fastest form that is there."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpn_kernels.ops.augmented_crop import augmented_crop
    from cpn_kernels.ops.cp_loss import CpLossOptions, cp_loss
    from cpn_kernels.ops.cp_triplet import cp_triplet
    from cpn_kernels.ops.dense_crf import dense_crf
    from cpn_kernels.ops.patch_crop import patch_crop
    from cpn_kernels.ops.pixel_correlation import pixel_correlation
    from cpn_kernels.ops.random_walk import random_walk
    from cpn_kernels.ops.superpixels import superpixels

__all__ = [
    "CpLossOptions",
    "augmented_crop",
    "cp_loss",
    "cp_triplet",
    "dense_crf",
    "patch_crop",
    "pixel_correlation",
    "random_walk",
    "superpixels",
]


def __getattr__(name: str) -> Any:
    """The operator of this name, imported when it is first asked for (its folder in `ops` has the same name).

    `CpLossOptions` lies beside the operator that takes it.
    """
    if name not in __all__:
        raise AttributeError(f"module 'cpn_kernels' has no attribute {name!r}")
    folder = "cp_loss" if name == "CpLossOptions" else name
    return getattr(import_module(f"cpn_kernels.ops.{folder}"), name)
