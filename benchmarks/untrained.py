"""Untrained networks whose maps are neither 0 nor huge."""

from __future__ import annotations

import torch

from cpn_kernels.ops.cp_triplet import normalise_images


def calibrate(net: torch.nn.Module, images: torch.Tensor) -> None:
    """Give batch norms the statistics of these images, uint8 [B, H, W, 3].

    Without it the activations of an untrained network die out layer by layer, and any two outputs would agree.
    """
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.training = True
    with torch.no_grad():
        net(normalise_images(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


def without_dropout(net: torch.nn.Module) -> None:
    """Switch every dropout off: three passes draw other bits than one batch, and no two losses could be compared."""
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
