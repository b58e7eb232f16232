"""Launches of the loss kernels: options, workspace and grids. None of them waits for the device."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
import triton
from torch import Tensor

from cpn_kernels.backend import on_its_device
from cpn_kernels.ops.cp_loss import triton_gradient, triton_kernel
from cpn_kernels.ops.cp_loss.options import CpLossOptions

INTERPRETED = triton.knobs.runtime.interpret

STATS_SPAN = 1024
"""Positions of a step of `stats_kernel`."""

COLLECT_SPAN = 256
"""Grid points of one program of `collect_kernel`."""

MOST_PROGRAMS = 128
"""Programs that share an image; each adds up its own part."""

UNFUSED: dict[str, Any] = {"enable_fp_fusion": False}
"""All passes round alike: see `triton_tiles`."""

TILED = UNFUSED | {"num_warps": 8, "maxnreg": 255}
"""Of the kernels that hold tiles of several maps: with fewer warps they spill registers, and without the explicit bound
the assembler stops at 128 of them and spills the rest."""

STATS: dict[str, Any] = UNFUSED | {"maxnreg": 255}


def norm_constants(options: CpLossOptions) -> dict[str, Any]:
    """Constants of every kernel that normalises."""
    return {"MINMAX": options.map_norm == "minmax", "SHARED": options.pair_norm == "shared"}


def pool_constants(options: CpLossOptions) -> dict[str, Any]:
    """Constants of every kernel that compares views."""
    return {"PRESENT": options.ohem_pool == "present", "TARGET": options.cpcr_target}


def receivers(options: CpLossOptions, refined: bool) -> tuple[int, ...]:
    """Rows of stats that receive a gradient: the side of L_tcp that is no target, and with it the RCAM."""
    cam = (0,) if options.tcp_target == "pair" else (1, 2)
    return (*cam, 3, 4, 5) if refined else cam


def gradient_constants(options: CpLossOptions, refined: bool) -> dict[str, Any]:
    """Constants of the backward passes."""
    return {
        "RECEIVERS": receivers(options, refined),
        "COUNT": len(receivers(options, refined)),
        "TCP": options.tcp,
        "CPCR": options.cpcr and refined,
        "PAIR": options.refined_pair_gradient,
    }


def padded(classes: int) -> int:
    """Rows of a tile."""
    return max(2, triton.next_power_of_2(classes))


def span(classes: int) -> int:
    """Positions of a tile: as many as keep its maps in registers."""
    return 32 if INTERPRETED else max(8, 1024 // padded(classes))


def slots(classes: int) -> int:
    """Rows of a tile that holds the present classes alone: images of more classes take tiles of all."""
    return min(padded(classes), 4 if padded(classes) <= 32 else 8)


def tile_constants(classes: int, upsample: bool, gradient: bool = False) -> dict[str, Any]:
    """Sizes of the tiles of a kernel, of all classes and of the present ones alone.

    A forward pass takes as many positions as keep its maps in registers: its histogram costs the same for each tile.
    The gradient, whose code is long, takes one element a thread; at stride 8 most grid cells then are one tile.
    """
    rows, few = padded(classes), slots(classes)
    elements = 256 if gradient or not upsample else 1024
    return {
        "UPSAMPLE": upsample,
        "KP": rows,
        "SPAN": 32 if INTERPRETED else max(8, 256 // rows) if gradient else span(classes),
        "SLOTS": few,
        "SLOTS_SPAN": 32 if INTERPRETED else elements // few,
    }


def _plane(maps: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Maps whose positions lie one stride apart (both memory formats do), and strides of image, class, position."""
    if maps.stride(2) != maps.shape[3] * maps.stride(3):
        maps = maps.contiguous()
    return maps, (maps.stride(0), maps.stride(1), maps.stride(3))


class _Call:
    """The arguments that most kernels share."""

    def __init__(
        self, cam: Tensor, rcam: Tensor | None, labels: Tensor, visible: Tensor, size: tuple[int, int] | None
    ) -> None:
        self.refined = rcam is not None
        self.cam, cam_strides = _plane(cam)
        self.rcam, rcam_strides = (self.cam, cam_strides) if rcam is None else _plane(rcam)
        self.labels, self.visible = labels.contiguous(), visible.contiguous()
        self.batch, self.classes = labels.shape
        grid = cam.shape[2], cam.shape[3]
        self.grid = grid
        self.out = grid if size is None else size
        self.upsample = size is not None and size != grid
        self.places = self.out[0] * self.out[1]
        self.tail = (*cam_strides, *rcam_strides, self.batch, self.classes, *grid, *self.out)
        self.span = span(self.classes)
        self.programs = min(triton.cdiv(self.places, self.span), 2 if INTERPRETED else MOST_PROGRAMS)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.cam.device)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.cam.device)

    def tile(self, gradient: bool = False) -> dict[str, Any]:
        return tile_constants(self.classes, self.upsample, gradient) | TILED


@on_its_device
def forward(
    cam: Tensor,
    rcam: Tensor | None,
    labels: Tensor,
    visible: Tensor,
    size: tuple[int, int] | None,
    options: CpLossOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [2] (L_tcp, L_cpcr), and what the gradient needs: stats [maps, B, K, 4], ranks [B, 2, 3]; float32."""
    call = _Call(cam, rcam, labels, visible, size)
    stats = call.empty(6 if call.refined else 3, call.batch, call.classes, 4)
    for refined in (False, True)[: 1 + call.refined]:
        triton_kernel.stats_kernel[(call.classes, call.batch, 3)](
            call.cam,
            call.rcam,
            call.labels,
            stats,
            *call.tail,
            REFINED=refined,
            UPSAMPLE=call.upsample,
            SPAN=min(STATS_SPAN, 64) if INTERPRETED else STATS_SPAN,
            **STATS,
        )
    inputs = (call.cam, call.rcam, call.labels, call.visible, stats)
    triplet_sums = call.empty(call.batch, call.programs)
    if options.tcp:
        triton_kernel.triplet_kernel[(call.programs, call.batch)](
            *inputs, triplet_sums, *call.tail, REFINED=call.refined, **norm_constants(options), **call.tile()
        )
    cpcr = options.cpcr and call.refined
    levels = triton_kernel.LEVELS.value if cpcr else 0
    histograms = call.zeros(levels, call.batch, 2, triton_kernel.BINS.value, dtype=torch.int32)
    sums = call.empty(levels, call.batch, 2, call.programs)
    share_bits = struct.unpack("<q", struct.pack("<d", options.ohem))[0]
    # The product in the reference's order: another one could round to another count.
    wanted = max(1, math.floor(options.ohem * (call.classes + 1) * call.out[0] * call.out[1]))
    for level in range(levels):
        triton_kernel.rank_kernel[(call.programs, call.batch, 2)](
            *inputs,
            histograms,
            sums,
            wanted,
            share_bits,
            *call.tail,
            LEVEL=level,
            **norm_constants(options),
            **pool_constants(options),
            **call.tile(),
        )
    losses, ranks = call.empty(call.batch, 3), call.zeros(call.batch, 2, 3)
    triton_kernel.result_kernel[(call.batch,)](
        call.labels,
        triplet_sums,
        histograms,
        sums,
        losses,
        ranks,
        wanted,
        share_bits,
        call.batch,
        call.classes,
        call.places,
        call.programs,
        TCP=options.tcp,
        CPCR=cpcr,
        PRESENT=options.ohem_pool == "present",
        KP=padded(call.classes),
        PARTS=triton.next_power_of_2(call.programs),
        **UNFUSED,
    )
    mean = losses.mean(dim=0)
    return torch.stack([mean[0], mean[1] + mean[2]]), stats, ranks


@on_its_device
def backward(
    upstream: Tensor,
    cam: Tensor,
    rcam: Tensor | None,
    labels: Tensor,
    visible: Tensor,
    stats: Tensor,
    ranks: Tensor,
    size: tuple[int, int] | None,
    options: CpLossOptions,
) -> tuple[Tensor, Tensor]:
    """Gradients [3B, K, h, w] of cam and rcam (empty without rcam), float32.

    Args:
        upstream: dL of (L_tcp, L_cpcr), [2].
        cam: forward's, as are the next three.
        rcam: as given.
        labels: as given.
        visible: as given.
        stats: of the forward pass.
        ranks: of the forward pass.
        size: as given.
        options: as given.
    """
    call = _Call(cam, rcam, labels, visible, size)
    maps = receivers(options, call.refined)
    constants = norm_constants(options) | pool_constants(options) | gradient_constants(options, call.refined)
    inputs = (call.cam, call.rcam, call.labels, call.visible, stats, ranks, upstream.float().contiguous())
    slopes = call.zeros(call.programs, call.batch, len(maps), call.classes, 2)
    triton_gradient.slopes_kernel[(call.programs, call.batch)](
        *inputs, slopes, *call.tail, **constants, **call.tile(gradient=True)
    )
    cam_gradient = call.zeros(*cam.shape)  # a view that is L_tcp's target is a constant in both losses
    rcam_gradient = call.zeros(*cam.shape) if call.refined else call.empty(0)
    cells = max(call.grid[0] - 1, 1) * max(call.grid[1] - 1, 1)
    corners = call.empty(call.batch, len(maps), call.classes, 4, cells) if call.upsample else call.empty(0)
    tile = call.tile(gradient=True)
    programs = cells if call.upsample else triton.cdiv(call.places, tile["SLOTS_SPAN"])
    triton_gradient.gradient_kernel[(programs, call.batch)](
        *inputs, slopes.sum(dim=0), cam_gradient, rcam_gradient, corners, *call.tail, **constants, **tile
    )
    if call.upsample:
        points = call.grid[0] * call.grid[1]
        triton_gradient.collect_kernel[(triton.cdiv(points, COLLECT_SPAN), call.batch * len(maps), call.classes)](
            corners,
            call.labels,
            cam_gradient,
            rcam_gradient,
            call.batch,
            call.classes,
            *call.grid,
            RECEIVERS=maps,
            COUNT=len(maps),
            SPAN=COLLECT_SPAN,
        )
    return cam_gradient, rcam_gradient
