"""Which backend serves a tensor: the one question that every public operator asks before it calls a kernel."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from cpn_kernels.constant import constant_in_graphs

Given = ParamSpec("Given")
Result = TypeVar("Result")

OLDEST = (8, 0)
"""The first compute capability with bfloat16 tensor cores; the kernels are compiled for it and what came after."""


@constant_in_graphs
def triton_ready() -> bool:
    """Whether Triton is installed and every CUDA device of this process is new enough for the kernels."""
    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        return False
    return all(torch.cuda.get_device_capability(index) >= OLDEST for index in range(torch.cuda.device_count()))


@constant_in_graphs
def exporting() -> bool:
    """Whether an export is under way, in which a custom operator has no form.

    Asked outside of the traced code: to torch 2.11 `torch.compiler.is_exporting()` is true in every compiled graph.
    """
    return torch.compiler.is_exporting()


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether a Triton kernel serves these inputs: all on CUDA, none empty, none float64 (which the reference takes).

    Args:
        tensors: the inputs of an operator; None is passed over.

    Returns:
        True where the kernel is to be taken. Never while exporting: a custom operator has no ONNX form.
    """
    if exporting():
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    if any(not x.is_cuda or x.dtype == torch.float64 or x.numel() == 0 for x in given):
        return False
    return triton_ready()


def on_its_device(
    function: Callable[Concatenate[Tensor, Given], Result],
) -> Callable[Concatenate[Tensor, Given], Result]:
    """Launch kernels on the device of the first argument: Triton launches on the current one, whatever it is given."""

    @functools.wraps(function)
    def launched(first: Tensor, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        if first.device.type != "cuda":  # Triton's interpreter
            return function(first, *args, **kwargs)
        with torch.cuda.device(first.device):
            return function(first, *args, **kwargs)

    return launched
