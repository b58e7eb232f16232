"""The ONNX graph of a `Segmenter`: the network traced once, called at every scale."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from cpn_export.graph_surgery import DOMAIN, NETWORK, Conversion, assemble, trace_around, trace_network, unchanged
from cpn_fast.models.deeplab import DeepLab
from cpn_fast.models.segmenter import Segmented, Segmenter


class _Calls(nn.Module):
    """Stands in for a DeepLab while the segmenter is traced: calls instead of computing."""

    def __init__(self, net: DeepLab) -> None:
        super().__init__()
        self.channels = net.num_classes + 1
        self.stride = net.backbone.strides[2]
        self.register_buffer("mean", net.mean)

    def forward(self, views: Tensor) -> Tensor:
        count, _, height, width = views.shape
        grid = [(side + self.stride - 1) // self.stride for side in (height, width)]
        shape = [count, self.channels, *grid]
        return torch.onnx.ops.symbolic(f"{DOMAIN}::{NETWORK}", (views,), dtype=torch.float32, shape=shape, version=1)


def segmenter_graph(segmenter: Segmenter, conversion: Conversion = unchanged) -> ir.Model:
    """The ONNX graph of a segmenter with dynamic batch, height and width.

    Args:
        segmenter: on the CPU.
        conversion: of the network.

    Returns:
        A model with inputs image uint8 [batch, height, width, 3] and labels float [batch, K], and outputs probabilities
        float [batch, K + 1, height, width], scores float [batch, K] and mask uint8 [batch, height, width].
    """
    net = segmenter.net
    part = conversion(trace_network(net, ["logits"]))
    calls: Any = _Calls(net)
    around = Segmenter(calls, segmenter.scales, segmenter.flip)
    model = trace_around(around, net.num_classes, segmenter.scales, Segmented._fields)
    return assemble(model, {NETWORK: part})
