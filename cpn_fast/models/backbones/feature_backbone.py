"""The door for other people's networks: any module that gives a list of feature maps becomes a backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.files.errors import DataError
from cpn_fast.models.backbones.common import Backbone, Features

MID_STRIDE = 8
"""`mid` is the deepest map below `high` that is at least as fine as this, as in the backbones of this package."""

EXPECTED = (
    "expected a module whose forward gives a list of maps [B, C, h, w], fine to coarse, and whose feature_info has "
    "channels() and reduction(), as timm's create_model(..., features_only=True) gives"
)


class FeatureBackbone(Backbone):
    """A backbone around a module that gives several feature maps; its weights are left as they are.

    Of the maps the last becomes `final`, the one before it `high`, and `mid` is the deepest one below `high` of a
    stride of at most 8. Where a side is no multiple of the strides, the image is padded below and to the right with 0,
    its mean colour, so that modules that round sizes down and those that round up give the same grids.

    Args:
        module: `forward(x)` takes float [B, 3, H, W] of any size, normalised by ImageNet's mean and standard deviation,
            and gives a list or tuple of maps [B, C, h, w]; `feature_info.channels()` and `feature_info.reduction()`
            give the channels and strides of each. It is run once, on a small black image.
        frozen: the rule of CAM training: all batch norms do not train and stay in eval mode.

    Raises:
        DataError: if the module does not give what its `feature_info` says.
    """

    def __init__(self, module: nn.Module, frozen: bool = True) -> None:
        super().__init__()
        channels, strides = _stated(module)
        final = len(channels) - 1
        high = max(final - 1, 0)
        mid = max((i for i in range(high) if strides[i] <= MID_STRIDE), default=max(high - 1, 0))
        self.picked = (mid, high, final)
        self.channels = (channels[mid], channels[high], channels[final])
        self.strides = (strides[mid], strides[high], strides[final])
        self.multiple = math.lcm(*strides)
        self.body = module
        _check_maps(module, channels, strides, self.multiple)
        self.freeze(frozen)

    def forward(self, x: Tensor) -> Features:
        """Map images to features.

        Args:
            x: float [B, 3, H, W], normalised by ImageNet's mean and standard deviation.

        Returns:
            mid, high and final of the padded image; `final` is [B, channels[2], ceil(H / s), ceil(W / s)] where its
            stride s is the largest of the module.
        """
        bottom, right = -x.shape[2] % self.multiple, -x.shape[3] % self.multiple
        maps = self.body(F.pad(x, (0, right, 0, bottom)))
        mid, high, final = (maps[index] for index in self.picked)
        return mid, high, final


def _stated(module: nn.Module) -> tuple[list[int], list[int]]:
    """Channels and strides by the module's `feature_info`."""
    info = getattr(module, "feature_info", None)
    try:
        channels = [int(value) for value in info.channels()]  # type: ignore[union-attr]
        strides = [int(value) for value in info.reduction()]  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{type(module).__name__} cannot be a backbone ({error}); {EXPECTED}") from error
    if not channels or len(channels) != len(strides) or min(*channels, *strides) < 1:
        raise DataError(
            f"{type(module).__name__}: feature_info has channels {channels} and reduction {strides}; {EXPECTED}"
        )
    return channels, strides


def _check_maps(module: nn.Module, channels: Sequence[int], strides: Sequence[int], multiple: int) -> None:
    """Run the module once and compare what it gives with what it says."""
    name, was_training = type(module).__name__, module.training
    sample = next(module.parameters(), torch.empty(0))
    height, width = 2 * multiple, 3 * multiple
    try:
        with torch.no_grad():
            maps = module.eval()(torch.zeros(1, 3, height, width, device=sample.device, dtype=sample.dtype))
    except Exception as error:  # whatever somebody's network raises
        raise DataError(
            f"{name} fails on an image of {width} x {height} pixels ({type(error).__name__}: {error}); a backbone must "
            "take images of any size"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(maps, list | tuple):
        raise DataError(f"{name} gives a {type(maps).__name__}; {EXPECTED}")
    found = [tuple(feature.shape) for feature in maps]
    stated = [(1, count, height // step, width // step) for count, step in zip(channels, strides, strict=True)]
    if found != stated:
        raise DataError(
            f"{name}: of an image of {width} x {height} pixels it gives maps of {found}, by its feature_info they are "
            f"{stated}; {EXPECTED}"
        )
