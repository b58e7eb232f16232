"""The loss kernels as they are launched, for compilation without a GPU."""

from __future__ import annotations

import itertools
from typing import Any

import triton

from cpn_kernels.offline import Case
from cpn_kernels.ops.cp_loss import launch, triton_gradient, triton_kernel
from cpn_kernels.ops.cp_loss.options import CpLossOptions

_SHAPE = "cam_k rcam_k batch classes grid_h grid_w out_h out_w"
_MAPS = dict.fromkeys(["cam", "rcam", "visible", "stats"], "*fp32") | {"labels": "*fp32"}
_STRIDES = dict.fromkeys(_SHAPE.split(), "i32") | {"cam_n": "i32", "rcam_n": "i32"}
_STEP = {"cam_p": 1, "rcam_p": 1}

BF16 = "bf16 channels_last"
"""The maps of a step under bf16 autocast in channels_last, a GPU's default: the CAM is the classifier's output, classes
beside one another; the RCAM is `pixel_correlation`'s, float32, positions beside one another."""

_BF16_TYPES = {"cam": "*bf16", "cam_p": "i32"}
_BF16_STEP = {"cam_k": 1, "rcam_p": 1}


def _case(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> Case:
    options = launch.UNFUSED
    if "SPAN" in constants and "UPSAMPLE" in constants:
        options = launch.TILED if "KP" in constants else launch.STATS
    common = name in ("stats[grid]", f"stats[grid, {BF16}]", "result") or name.endswith(
        ("[20 classes, grid]", f"[20 classes, grid, {BF16}]", "[0, 20 classes, grid]", f"[0, 20 classes, grid, {BF16}]")
    )
    return Case(f"cp_loss.{name}", kernel, types, constants, dict(options), common=common)


def _inputs(half: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of the arguments that most kernels share, and constant strides: of float32 maps, or of those of `BF16`."""
    types: dict[str, str] = _BF16_TYPES if half else {}
    step: dict[str, Any] = dict(_BF16_STEP if half else _STEP)
    found = _MAPS | _STRIDES | types
    return {name: kind for name, kind in found.items() if name not in step}, step


def _sized(classes: int, upsample: bool, options: CpLossOptions, label: str, half: bool = False) -> list[Case]:
    tile = launch.tile_constants(classes, upsample)
    gradient_tile = launch.tile_constants(classes, upsample, gradient=True)
    norm = launch.norm_constants(options)
    inputs, step = _inputs(half)
    found = [
        _case(
            f"triplet[{label}]",
            triton_kernel.triplet_kernel,
            inputs | {"sums": "*fp32"},
            tile | norm | step | {"REFINED": True},
        )
    ]
    for level in range(triton_kernel.LEVELS.value):
        found.append(
            _case(
                f"rank[{level}, {label}]",
                triton_kernel.rank_kernel,
                inputs | {"histograms": "*i32", "sums": "*fp32", "wanted": "i32", "fraction_bits": "i64"},
                tile | norm | launch.pool_constants(options) | step | {"LEVEL": level},
            )
        )
    backward = inputs | {"ranks": "*fp32", "upstream": "*fp32", "slopes": "*fp32"}
    written = dict.fromkeys(("cam_gradient", "rcam_gradient", "corners"), "*fp32")
    found.append(
        _case(
            f"slopes[{label}]",
            triton_gradient.slopes_kernel,
            backward,
            gradient_tile | norm | launch.pool_constants(options) | launch.gradient_constants(options, True) | step,
        )
    )
    found.append(
        _case(
            f"gradient[{label}]",
            triton_gradient.gradient_kernel,
            backward | written,
            gradient_tile | norm | launch.pool_constants(options) | launch.gradient_constants(options, True) | step,
        )
    )
    return found


def offline_cases(capability: tuple[int, int]) -> list[Case]:
    """VOC's and COCO's classes at the grid and upsampled, VOC's in bfloat16 too, and the other options once."""
    shape = dict.fromkeys(["batch", "classes", "grid_h", "grid_w"], "i32")
    found = []
    for upsample, half in itertools.product((False, True), (False, True)):
        inputs, step = _inputs(half)
        found.append(
            _case(
                f"stats[{'input' if upsample else 'grid'}{f', {BF16}' if half else ''}]",
                triton_kernel.stats_kernel,
                {key: value for key, value in inputs.items() if key != "visible"},
                {"REFINED": False, "UPSAMPLE": upsample, "SPAN": launch.STATS_SPAN} | step,
            )
        )
    found.append(
        _case(
            "result",
            triton_kernel.result_kernel,
            {"labels": "*fp32", "histograms": "*i32", "wanted": "i32", "fraction_bits": "i64"}
            | dict.fromkeys(("triplet_sums", "sums", "losses", "ranks"), "*fp32")
            | dict.fromkeys(("batch", "classes", "places", "programs"), "i32"),
            {
                "TCP": True,
                "CPCR": True,
                "PRESENT": True,
                "KP": launch.padded(80),
                "PARTS": triton.next_power_of_2(launch.MOST_PROGRAMS),
            },
        )
    )
    found.append(
        _case(
            "collect",
            triton_gradient.collect_kernel,
            dict.fromkeys(("corners", "labels", "cam_gradient", "rcam_gradient"), "*fp32") | shape,
            {"RECEIVERS": (1, 2, 3, 4, 5), "COUNT": 5, "SPAN": launch.COLLECT_SPAN},
        )
    )
    default, released = (
        CpLossOptions(),
        CpLossOptions(tcp_target="pair", cpcr_target="released", ohem_pool="all", refined_pair_gradient=True),
    )
    for classes in (20, 80):
        for upsample in (False, True):
            found += _sized(classes, upsample, default, f"{classes} classes, {'input' if upsample else 'grid'}")
    for upsample in (False, True):
        found += _sized(20, upsample, default, f"20 classes, {'input' if upsample else 'grid'}, {BF16}", half=True)
    found += _sized(20, True, released, "20 classes, input, released")
    dense = CpLossOptions(map_norm="max", pair_norm="shared", tcp_target="pair", ohem_pool="all", cpcr_target="dense")
    return found + _sized(20, False, dense, "20 classes, grid, dense, max, shared, all")
