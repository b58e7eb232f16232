"""Methods: each says which views it takes of a batch and which losses it puts on the maps."""

from __future__ import annotations

from torch import nn

from cpn_fast.config import TrainConfig
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


def create_method(
    config: TrainConfig, net: CamNet, colour: tuple[float, float, float] | None = None
) -> nn.Module:
    """The module that turns a batch into losses.

    Args:
        config: `method` and `options` are used.
        net: its network.
        colour: RGB in [0, 1] of hidden pixels, the training set's mean with `--hidden-colour dataset`.

    Returns:
        A module; `module(images, patches, keys, labels)` (the fields of a Batch) gives a dict of tensors: `loss` with
        gradient; detached parts `cls`, `tcp`, `cpcr`, `er`, `ecr`, `min_pool` that apply; `scores` [B, K] logits; and
        normalised foreground maps `cam`, `rcam` [B, K, h, w] for watching.
    """
    return METHODS[config.method](net, config.options, colour)


__all__ = ["METHODS", "CamMethod", "CpnMethod", "SeamMethod", "create_method"]
