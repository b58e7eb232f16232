"""Methods: each says which views it takes of a batch and which losses it puts on the maps."""

from __future__ import annotations

import torch
from torch import nn

from cpn_fast.config.training import TrainConfig
from cpn_fast.methods.cam import CamMethod
from cpn_fast.methods.cpn import CpnMethod
from cpn_fast.methods.seam import SeamMethod
from cpn_fast.models.cam import CamNet

METHODS: dict[str, type[CamMethod] | type[SeamMethod] | type[CpnMethod]] = {
    "cam": CamMethod,
    "seam": SeamMethod,
    "seam_prcm": SeamMethod,
    "cpn": CpnMethod,
}


def create_method(config: TrainConfig, net: CamNet, colour: tuple[float, float, float] | None = None) -> nn.Module:
    """The module that turns a batch into losses.

    Args:
        config: `method` and `options` are used.
        net: its network.
        colour: RGB in [0, 1] of hidden pixels, set as the network's `mean`: the training set's with
            `--hidden-colour dataset`; None leaves it (ImageNet's, or what its weights brought).

    Returns:
        A module; `module(images, patches, keys, labels, warm_up=False)` (the fields of a Batch, and whether to train as
        a plain classifier) gives a dict of tensors: `loss` with gradient; detached parts `cls`, `tcp`, `cpcr`, `er`,
        `ecr`, `min_pool` that apply; `scores` [B, K] logits; and normalised foreground maps `cam`, `rcam` [B, K, h, w]
        for watching.
    """
    if colour is not None:
        net.mean.copy_(torch.tensor(colour))
    return METHODS[config.method](net, config.options)


__all__ = ["METHODS", "CamMethod", "CpnMethod", "SeamMethod", "create_method"]
