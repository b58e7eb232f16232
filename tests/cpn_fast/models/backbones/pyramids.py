"""Other people's networks, as they come in: small modules with timm's `features_only` interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FeatureInfo:
    """The two methods of timm's class that are used."""

    def __init__(self, channels: Sequence[int], reduction: Sequence[int]) -> None:
        self._channels, self._reduction = list(channels), list(reduction)

    def channels(self) -> list[int]:
        return self._channels

    def reduction(self) -> list[int]:
        return self._reduction


class Pyramid(nn.Module):
    """Stages of a convolution without padding (which rounds sizes down, as ConvNeXt's do), batch norm and ReLU.

    Key names are those of timm's wrapper: `stages_0`, where the whole network says `stages.0`.
    """

    def __init__(self, channels: Sequence[int] = (4, 6, 8, 10), reduction: Sequence[int] = (4, 8, 16, 16)) -> None:
        super().__init__()
        self.feature_info = FeatureInfo(channels, reduction)
        inputs, stride = 3, 1
        for index, (outputs, reached) in enumerate(zip(channels, reduction, strict=True)):
            step = reached // stride
            stage = nn.Sequential(nn.Conv2d(inputs, outputs, step, step), nn.BatchNorm2d(outputs), nn.ReLU())
            self.add_module(f"stages_{index}", stage)
            inputs, stride = outputs, reached

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.children():
            x = stage(x)
            maps.append(x)
        return maps


def build() -> Pyramid:
    """What `--backbone MODULE:build` calls; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return Pyramid()


def broken() -> Pyramid:
    """One that cannot be built."""
    raise RuntimeError("no such weights")


NUMBER = 7
