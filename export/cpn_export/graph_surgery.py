"""Trace the parts of a labelling module once each and put them together as one ONNX graph.

The network runs at every scale. Traced scale by scale, each copy costs again, and more with every layer, since the
sizes inside it are ever longer formulas of the image's. So the network (and what else repeats) is traced once with
sizes of its own; the module around it is traced with calls in its place; and the calls are replaced by the parts'
nodes, which share one set of weights.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

DOMAIN = "cpn_fast.parts"
NETWORK = "Network"
TRACED_SIDE = 160
"""Least side in pixels that tracing assumes, so that no grid counts as one pixel wide. The graph checks nothing:
smaller images run too, and are tested."""

_NO_LIMIT = 2**62

Conversion = Callable[[ir.Model], ir.Model]
"""What a precision makes of the network's part, which takes `views` in float32 and gives float32."""


def unchanged(part: ir.Model) -> ir.Model:
    """The conversion to float32: none."""
    return part


def trace_network(net: nn.Module, outputs: Sequence[str]) -> ir.Model:
    """One pass of a network over normalised views, float [batch, 3, height, width], as a graph of its own.

    Args:
        net: on the CPU; gives as many tensors as `outputs` has names.
        outputs: names of what it gives.
    """
    batch, height, width = dims(1, TRACED_SIDE)
    views = torch.zeros(2, 3, TRACED_SIDE + 1, TRACED_SIDE + 35)
    part = traced(net, (views,), ["views"], outputs, ({0: batch, 2: height, 3: width},))
    # Batch norms are products with the weights: done here, the file holds the products, which int8 needs.
    fold_constants(part, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    RemoveUnusedNodesPass()(part)
    return part


def trace_around(module: nn.Module, num_classes: int, scales: Sequence[float], outputs: Sequence[str]) -> ir.Model:
    """A labelling module with calls of its parts, as a graph of image and labels.

    Args:
        module: takes uint8 [B, H, W, 3] and float [B, K].
        num_classes: K.
        scales: scale factors in the module.
        outputs: names of what it gives.
    """
    least = math.ceil(TRACED_SIDE / min(1.0, *scales))
    batch, height, width = dims(1, least)
    images = torch.zeros(2, least + 1, least + 35, 3, dtype=torch.uint8)
    rows = torch.full((2, num_classes), -1.0)
    shapes = ({0: batch, 1: height, 2: width}, {0: batch})
    return traced(module, (images, rows), ["image", "labels"], outputs, shapes)


def assemble(model: ir.Model, parts: Mapping[str, ir.Model]) -> ir.Model:
    """Replace the calls in `model` by the parts' nodes, in place, and tidy up.

    Args:
        model: from `trace_around`, with calls of `DOMAIN::name`.
        parts: name -> graph.

    Returns:
        `model`.
    """
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


def dims(least_batch: int, least_side: int) -> tuple[torch.export.Dim, torch.export.Dim, torch.export.Dim]:
    """Dynamic batch, height and width with these least values."""
    return (
        torch.export.Dim("batch", min=least_batch),
        torch.export.Dim("height", min=least_side),
        torch.export.Dim("width", min=least_side),
    )


def traced(
    module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str], dynamic_shapes: Any
) -> ir.Model:
    """`module` in eval mode as an ONNX graph, by torch's exporter."""
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
    for call in _calls_of(model, name):
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


def _calls_of(model: ir.Model, name: str) -> Sequence[ir.Node]:
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type == name]
