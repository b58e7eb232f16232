"""Trace the parts of a labeller once each and put them together as one ONNX graph.

The network runs at every scale. Traced scale by scale, each copy costs again, and more with every layer, since the
sizes inside it are ever longer formulas of the image's. So the network and its refinement are traced once with sizes of
their own; the labeller around them is traced with calls in their place; and the calls are replaced by the parts' nodes,
which share one set of weights.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    InlinePass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from torch import Tensor, nn

from cpn_fast.models.cam import CamNet, CamOutput
from cpn_fast.models.labeller import Labeller
from cpn_fast.models.pcm import FEATURE_CHANNELS
from cpn_kernels.cam_norm import MapNorm

DOMAIN = "cpn_fast.parts"
NETWORK, REFINEMENT = "Network", "Refinement"
TRACED_SIDE = 160
"""Least side in pixels that tracing assumes, so that no grid counts as one pixel wide. The graph checks nothing:
smaller images run too, and are tested."""


class _Network(nn.Module):
    """One pass over normalised views: cam, scores and, with refinement, features."""

    def __init__(self, net: CamNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        output = self.net(views)
        return (output.cam, output.scores) if self.net.refinement == "none" else tuple(output)


class _Refinement(nn.Module):
    """The refinement of one pass."""

    def __init__(self, net: CamNet, map_norm: MapNorm) -> None:
        super().__init__()
        self.net, self.map_norm = net, map_norm

    def forward(self, cam: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return self.net.refine(cam, features, labels, self.map_norm)


class _Calls(nn.Module):
    """Stands in for a CamNet while the labeller is traced: calls instead of computing."""

    def __init__(self, net: CamNet) -> None:
        super().__init__()
        self.refinement = net.refinement
        self.num_classes = net.num_classes
        self.stride = net.backbone.strides[2]
        self.register_buffer("mean", net.mean)

    def forward(self, views: Tensor) -> CamOutput:
        count, _, height, width = views.shape
        grid = [(side + self.stride - 1) // self.stride for side in (height, width)]
        shapes: list[list[Any]] = [[count, self.num_classes, *grid], [count, self.num_classes]]
        if self.refinement != "none":
            shapes.append([count, FEATURE_CHANNELS, *grid])
        dtypes = [torch.float32] * len(shapes)
        outputs = list(
            torch.onnx.ops.symbolic_multi_out(f"{DOMAIN}::{NETWORK}", (views,), dtypes=dtypes, shapes=shapes, version=1)
        )
        if self.refinement == "none":
            outputs.append(outputs[0][:, :0])
        return CamOutput(*outputs)

    def refine(self, cam: Tensor, features: Tensor, labels: Tensor, map_norm: MapNorm) -> Tensor:
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


def labeller_graph(labeller: Labeller) -> ir.Model:
    """The ONNX graph of a labeller with dynamic batch, height and width.

    Args:
        labeller: on the CPU.

    Returns:
        A model with inputs image uint8 [batch, height, width, 3] and labels float [batch, K], and outputs rcam float
        [batch, K, height, width], scores float [batch, K] and mask uint8 [batch, height, width].
    """
    net = labeller.net
    parts = {NETWORK: _trace_network(net)}
    if net.refinement != "none":
        parts[REFINEMENT] = _trace_refinement(net, labeller.map_norm)
    model = _trace_labeller(labeller)
    for name, part in parts.items():
        _attach(model, name, part)
    for clean in (
        InlinePass(),
        CommonSubexpressionEliminationPass(),
        DeduplicateInitializersPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
        ClearMetadataAndDocStringPass(),  # stack traces of this machine
    ):
        clean(model)
    return model


def _trace_network(net: CamNet) -> ir.Model:
    batch, height, width = _dims(1, TRACED_SIDE)
    views = torch.zeros(2, 3, TRACED_SIDE + 1, TRACED_SIDE + 35)
    outputs = ["cam", "scores"] + ([] if net.refinement == "none" else ["features"])
    return _traced(_Network(net), (views,), ["views"], outputs, ({0: batch, 2: height, 3: width},))


def _trace_refinement(net: CamNet, map_norm: MapNorm) -> ir.Model:
    batch, height, width = _dims(1, 2)
    cam, features = torch.zeros(2, net.num_classes, 11, 13), torch.zeros(2, FEATURE_CHANNELS, 11, 13)
    maps = {0: batch, 2: height, 3: width}
    return _traced(
        _Refinement(net, map_norm),
        (cam, features, torch.ones(2, net.num_classes)),
        ["cam", "features", "labels"],
        ["refined"],
        (maps, maps, {0: batch}),
    )


def _trace_labeller(labeller: Labeller) -> ir.Model:
    """The labeller around the network, with calls of the parts."""
    least = math.ceil(TRACED_SIDE / min(1.0, *labeller.scales))
    batch, height, width = _dims(1, least)
    calls: Any = _Calls(labeller.net)
    around = Labeller(calls, labeller.scales, labeller.flip, labeller.beta, labeller.threshold, labeller.map_norm)
    images = torch.zeros(2, least + 1, least + 35, 3, dtype=torch.uint8)
    rows = torch.full((2, labeller.net.num_classes), -1.0)
    return _traced(
        _Graph(around),
        (images, rows),
        ["image", "labels"],
        ["rcam", "scores", "mask"],
        ({0: batch, 1: height, 2: width}, {0: batch}),
    )


def _dims(least_batch: int, least_side: int) -> tuple[torch.export.Dim, torch.export.Dim, torch.export.Dim]:
    return (
        torch.export.Dim("batch", min=least_batch),
        torch.export.Dim("height", min=least_side),
        torch.export.Dim("width", min=least_side),
    )


def _traced(
    module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], dynamic_shapes: Any
) -> ir.Model:
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # "no torchvision"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*axis name: .* will not be used")  # inputs share their axes
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model


def _attach(model: ir.Model, name: str, part: ir.Model) -> None:
    """Make `part` a function of `model`; its weights become initializers of `model`, which every call is given."""
    graph = part.graph
    _forget_sizes(graph)
    weights: list[ir.Value] = list(graph.initializers.values())
    graph.initializers.clear()
    shared = []
    for weight in weights:
        tensor = weight.const_value
        assert tensor is not None
        value = ir.Value(name=f"{name}.{weight.name}", shape=weight.shape, type=weight.type, const_value=tensor)
        model.graph.register_initializer(value)
        shared.append(value)
        weight.const_value = None
        graph.inputs.append(weight)
    function = ir.Function(DOMAIN, name, graph=graph, attributes=[])
    model.functions[function.identifier()] = function
    for call in _calls(model, name):
        first = len(call.inputs)
        call.resize_inputs(first + len(shared))
        for index, value in enumerate(shared, start=first):
            call.replace_input_with(index, value)


def _forget_sizes(graph: ir.Graph) -> None:
    """Keep ranks and fixed sizes, drop the names of the others: `height` means another size in every call, and
    onnxruntime lets values whose sizes have equal names share memory."""
    subgraphs = [subgraph for subgraph in graph.subgraphs() if subgraph is not graph]
    inputs = [value for owner in (graph, *subgraphs) for value in owner.inputs]
    for value in (*inputs, *(value for node in graph.all_nodes() for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else None for size in value.shape])


def _calls(model: ir.Model, name: str) -> Sequence[ir.Node]:
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type == name]
