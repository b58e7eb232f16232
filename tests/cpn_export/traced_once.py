"""Parts of exported graphs, each traced once: exports of a network in several precisions begin with the same graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import onnx_ir as ir
import pytest
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from cpn_export import cam_graph, graph_surgery

_OF_EVERY_MODULE = set(vars(nn.Module()))


@contextmanager
def equal_parts_traced_once() -> Iterator[None]:
    """Inside, an export gets a copy where a module of equal code, options and weights was traced before."""
    trace = graph_surgery.traced
    kept: dict[str, ir.Model] = {}

    def traced(module: nn.Module, example: Any, inputs: Any, outputs: Any, dynamic_shapes: Any) -> ir.Model:
        shapes = [(tuple(one.shape), one.dtype) for one in example]
        sizes = [
            [(axis, size.__name__, size.min, size.max) for axis, size in one.items()]  # type: ignore[attr-defined]
            for one in dynamic_shapes
        ]
        key = fingerprint(module.eval(), shapes, inputs, outputs, sizes)
        if key not in kept:
            kept[key] = trace(module, example, inputs, outputs, dynamic_shapes)
        return kept[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_surgery, "traced", traced)
        patch.setattr(cam_graph, "traced", traced)
        # Its table of operators is made anew at every export, half of the time that a small module takes.
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


def fingerprint(module: nn.Module, *asked: object) -> str:
    """Digest of all that a module's graph can depend on: classes, attributes and tensors of it and what it holds."""
    digest = hashlib.sha256(repr(asked).encode())
    for name, part in module.named_modules():
        digest.update(f"|{name} {type(part)!r} {id(type(part))}".encode())
        for key, value in sorted(vars(part).items()):
            if key not in _OF_EVERY_MODULE:
                digest.update(f"|{key}".encode() + _bytes_of(value))
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"|{name}".encode() + _bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(value: object) -> bytes:
    """A tensor's type, shape and numbers, the attributes of a plain object; of anything else what it shows.

    What shows nothing of what it holds shows where it lies, and so is equal to itself alone.
    """
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}".encode() + value.detach().contiguous().numpy().tobytes()
    if type(value).__repr__ is object.__repr__ and hasattr(value, "__dict__"):
        inner = (f"|{key}".encode() + _bytes_of(one) for key, one in sorted(vars(value).items()))
        return f"{type(value)!r}(".encode() + b"".join(inner) + b")"
    return repr(value).encode()
