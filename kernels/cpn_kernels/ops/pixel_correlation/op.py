"""The Triton kernels as custom operators, so that torch.compile passes through and autograd knows the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_supported(embedding: int, channels: int, precision: str) -> bool:
    """Whether the kernels take so many embedding and map channels: more would spill registers.

    Args:
        embedding: E.
        channels: C.
        precision: of the products, "bf16" or "fp32".
    """
    if precision == "fp32" and embedding > 192:
        return embedding <= 256 and channels <= 64
    return embedding <= 256 and channels <= 128


def _settled(precision: str) -> str:
    """float32 products are tf32 where the user has allowed it; read as the operator runs, never while tracing."""
    return "tf32" if precision == "fp32" and torch.get_float32_matmul_precision() != "highest" else precision


@torch.library.custom_op("cpn::pixel_correlation", mutates_args=())
def pixel_correlation_op(
    embedding: Tensor, queries: Tensor | None, maps: Tensor, eps: float, precision: str
) -> tuple[Tensor, Tensor]:
    """Output [B, C, M] and the sums of affinities plus eps [B, M], float32."""
    from cpn_kernels.ops.pixel_correlation import launch

    return launch.forward(embedding, queries, maps, eps, _settled(precision))


@pixel_correlation_op.register_fake
def _(embedding: Tensor, queries: Tensor | None, maps: Tensor, eps: float, precision: str) -> tuple[Tensor, Tensor]:
    count = (embedding if queries is None else queries).shape[2]
    output = maps.new_empty((maps.shape[0], maps.shape[1], count), dtype=torch.float32)
    return output, maps.new_empty((maps.shape[0], count), dtype=torch.float32)


@torch.library.custom_op("cpn::pixel_correlation_gradient", mutates_args=())
def pixel_correlation_gradient_op(
    gradient: Tensor,
    embedding: Tensor,
    queries: Tensor | None,
    maps: Tensor,
    output: Tensor,
    totals: Tensor,
    role: str,
    precision: str,
) -> Tensor:
    """Gradient of the input that `role` names, float32; see `launch.backward`."""
    from cpn_kernels.ops.pixel_correlation import launch

    return launch.backward(gradient, embedding, queries, maps, output, totals, role, _settled(precision))


@pixel_correlation_gradient_op.register_fake
def _(
    gradient: Tensor,
    embedding: Tensor,
    queries: Tensor | None,
    maps: Tensor,
    output: Tensor,
    totals: Tensor,
    role: str,
    precision: str,
) -> Tensor:
    like = maps if role == "maps" else queries if role == "query" and queries is not None else embedding
    return torch.empty(like.shape, dtype=torch.float32, device=like.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    embedding, queries, maps, _, precision = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(embedding, queries, maps, *output)
    ctx.precision = precision


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    embedding, queries, maps, output, totals = ctx.saved_tensors

    def of(role: str, like: Tensor) -> Tensor:
        return pixel_correlation_gradient_op(
            gradient, embedding, queries, maps, output, totals, role, ctx.precision
        ).to(like.dtype)

    return (
        of("both" if queries is None else "key", embedding) if ctx.needs_input_grad[0] else None,
        of("query", queries) if queries is not None and ctx.needs_input_grad[1] else None,
        of("maps", maps) if ctx.needs_input_grad[2] else None,
        None,
        None,
    )


pixel_correlation_op.register_autograd(_backward, setup_context=_keep)
