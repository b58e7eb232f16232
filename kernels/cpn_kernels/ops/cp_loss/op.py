"""The loss kernels as custom operators, so that torch.compile passes through and autograd knows the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cpn_kernels.ops.cp_loss.options import OPERATOR_ARGUMENTS, CpLossOptions

_INPUTS = "Tensor cam, Tensor? rcam, Tensor labels, Tensor visible"


def _size(size: Sequence[int]) -> tuple[int, int] | None:
    return (size[0], size[1]) if size else None


@torch.library.custom_op(
    "cpn::cp_loss",
    mutates_args=(),
    schema=f"({_INPUTS}, int[] size, {OPERATOR_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def cp_loss_op(
    cam: Tensor, rcam: Tensor | None, labels: Tensor, visible: Tensor, size: Sequence[int], *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [2], stats and ranks; `size` is empty for the grid itself, `options` are those of `CpLossOptions`."""
    from cpn_kernels.ops.cp_loss import launch

    return launch.forward(cam, rcam, labels, visible, _size(size), CpLossOptions(*options))


@cp_loss_op.register_fake
def _(
    cam: Tensor, rcam: Tensor | None, labels: Tensor, visible: Tensor, size: Sequence[int], *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    images, classes = labels.shape

    def made(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=cam.device)

    return made(2), made(3 if rcam is None else 6, images, classes, 4), made(images, 2, 3)


@torch.library.custom_op(
    "cpn::cp_loss_gradient",
    mutates_args=(),
    schema=(
        f"(Tensor upstream, {_INPUTS}, Tensor stats, Tensor ranks, int[] size, {OPERATOR_ARGUMENTS})"
        " -> (Tensor, Tensor)"
    ),
)
def cp_loss_gradient_op(
    upstream: Tensor,
    cam: Tensor,
    rcam: Tensor | None,
    labels: Tensor,
    visible: Tensor,
    stats: Tensor,
    ranks: Tensor,
    size: Sequence[int],
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """Gradients of cam and rcam (empty without rcam)."""
    from cpn_kernels.ops.cp_loss import launch

    return launch.backward(upstream, cam, rcam, labels, visible, stats, ranks, _size(size), CpLossOptions(*options))


@cp_loss_gradient_op.register_fake
def _(
    upstream: Tensor,
    cam: Tensor,
    rcam: Tensor | None,
    labels: Tensor,
    visible: Tensor,
    stats: Tensor,
    ranks: Tensor,
    size: Sequence[int],
    *options: Any,
) -> tuple[Tensor, Tensor]:
    found = torch.empty(cam.shape, dtype=torch.float32, device=cam.device)
    return found, found.new_empty(0 if rcam is None else cam.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    cam, rcam, labels, visible, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(cam, rcam, labels, visible, *output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    cam, rcam, labels, visible, stats, ranks = ctx.saved_tensors
    gradients = cp_loss_gradient_op(upstream, cam, rcam, labels, visible, stats, ranks, *ctx.options)
    return (
        gradients[0].to(cam.dtype) if ctx.needs_input_grad[0] else None,
        gradients[1].to(rcam.dtype) if ctx.needs_input_grad[1] else None,
        *[None] * (2 + len(ctx.options)),
    )


cp_loss_op.register_autograd(_backward, setup_context=_keep)
