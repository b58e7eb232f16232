"""The ONNX graph of a `Labeller`: network and refinement traced once, called at every scale."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from cpn_export.graph_surgery import (
    DOMAIN,
    NETWORK,
    Conversion,
    assemble,
    dims,
    trace_around,
    trace_network,
    traced,
    unchanged,
)
from cpn_fast.config.refine import OF_PIXEL_HEAD, OF_RAW_FEATURES
from cpn_fast.models.cam import CamOutput
from cpn_fast.models.labeller import Labeller
from cpn_fast.models.pcm import FEATURE_CHANNELS

REFINEMENT = "Refinement"


class _Network(nn.Module):
    """One pass over normalised views: cam, scores and, with refinement, the features that it takes.

    Of the pixel head these are its logits, and behind them those by which they are spread.
    """

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        self.net, self.refined, self.how = labeller.net, labeller.refined, labeller.refine.refine

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        output = self.net(views, self.how in OF_RAW_FEATURES)
        if not self.refined:
            return output.cam, output.scores
        taken = [output.pixels] if self.how in OF_PIXEL_HEAD else []
        taken += [] if self.how == "pixels" else [output.features]
        return output.cam, output.scores, torch.cat(taken, dim=1)


class _Refinement(nn.Module):
    """The refinement of one map."""

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        self.labeller = labeller

    def forward(self, cam: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return self.labeller.refine_map(cam, features, labels)


class _Calls(nn.Module):
    """Stands in for a CamNet while the labeller is traced: calls instead of computing."""

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        net = labeller.net
        self.refinement, self.refined = net.refinement, labeller.refined
        self.num_classes = net.num_classes
        self.pixel_channels = self.num_classes + 1 if labeller.refine.refine in OF_PIXEL_HEAD else 0
        self.feature_channels = self.pixel_channels + feature_channels(labeller)
        self.stride = net.backbone.strides[2]
        self.register_buffer("mean", net.mean)

    def forward(self, views: Tensor, raw: bool = False) -> CamOutput:
        count, _, height, width = views.shape
        grid = [(side + self.stride - 1) // self.stride for side in (height, width)]
        shapes: list[list[Any]] = [[count, self.num_classes, *grid], [count, self.num_classes]]
        if self.refined:
            shapes.append([count, self.feature_channels, *grid])
        dtypes = [torch.float32] * len(shapes)
        outputs = list(
            torch.onnx.ops.symbolic_multi_out(f"{DOMAIN}::{NETWORK}", (views,), dtypes=dtypes, shapes=shapes, version=1)
        )
        if not self.refined:
            outputs.append(outputs[0][:, :0])
        cam, scores, taken = outputs
        pixels = taken[:, : self.pixel_channels] if self.pixel_channels else None
        return CamOutput(cam, scores, taken[:, self.pixel_channels :], pixels)


class _CallingLabeller(Labeller):
    """A labeller whose refinement is a call too."""

    def refine_map(self, cam: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{REFINEMENT}", (cam, features, labels), dtype=torch.float32, shape=cam.shape, version=1
        )


class _Graph(nn.Module):
    """The labeller with the inputs and outputs of the ONNX file."""

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        self.labeller = labeller

    def forward(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        labelled = self.labeller(image, labels)
        return labelled.rcam, labelled.scores, labelled.mask


def labeller_graph(labeller: Labeller, conversion: Conversion = unchanged) -> ir.Model:
    """The ONNX graph of a labeller with dynamic batch, height and width.

    Args:
        labeller: on the CPU.
        conversion: of the network, without its refinement.

    Returns:
        A model with inputs image uint8 [batch, height, width, 3] and labels float [batch, K], and outputs rcam float
        [batch, K, height, width], scores float [batch, K] and mask uint8 [batch, height, width].
    """
    net = labeller.net
    outputs = ["cam", "scores"] + (["features"] if labeller.refined else [])
    parts = {NETWORK: conversion(trace_network(_Network(labeller), outputs))}
    if labeller.refined and labeller.refine.refine != "pixels":
        parts[REFINEMENT] = _trace_refinement(labeller)
    calls: Any = _Calls(labeller)
    around = _CallingLabeller(
        calls, labeller.scales, labeller.flip, labeller.beta, labeller.threshold, labeller.map_norm, labeller.resize,
        labeller.refine, labeller.side, len(labeller.shown),
    )  # fmt: skip
    model = trace_around(_Graph(around), net.num_classes, labeller.scales, ["rcam", "scores", "mask"])
    return assemble(model, parts)


def feature_channels(labeller: Labeller) -> int:
    """Channels of the features by which a labeller's refinement compares pixels."""
    if labeller.refine.refine == "pixels":
        return 0
    raw = labeller.refine.refine in OF_RAW_FEATURES
    return sum(labeller.net.backbone.channels[:2]) if raw else FEATURE_CHANNELS


def _trace_refinement(labeller: Labeller) -> ir.Model:
    batch, height, width = dims(1, 2)
    count = labeller.net.num_classes
    maps_of = count + 1 if labeller.refine.refine == "pixels-raw" else count
    cam, features = torch.zeros(2, maps_of, 11, 13), torch.zeros(2, feature_channels(labeller), 11, 13)
    maps = {0: batch, 2: height, 3: width}
    return traced(
        _Refinement(labeller),
        (cam, features, torch.ones(2, count)),
        ["cam", "features", "labels"],
        ["refined"],
        (maps, maps, {0: batch}),
    )
