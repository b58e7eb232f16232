"""The loss kernels as they are launched, for compilation without a GPU."""

from __future__ import annotations

from typing import Any

import triton

from cpn_kernels.offline import Case
from cpn_kernels.ops.cp_loss import launch, triton_gradient, triton_kernel
from cpn_kernels.ops.cp_loss.options import CpLossOptions

_SHAPE = "cam_k rcam_k batch classes grid_h grid_w out_h out_w"
_MAPS = dict.fromkeys(["cam", "rcam", "visible", "stats"], "*fp32") | {"labels": "*fp32"}
_STRIDES = dict.fromkeys(_SHAPE.split(), "i32") | {"cam_n": "i32", "rcam_n": "i32"}
_STEP = {"cam_p": 1, "rcam_p": 1}


def _case(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> Case:
    options = launch.UNFUSED
    if "SPAN" in constants and "UPSAMPLE" in constants:
        options = launch.TILED if "KP" in constants else launch.STATS
    common = name in ("stats[grid]", "result") or name.endswith("[20 classes, grid]") or "[0, 20 classes, grid]" in name
    return Case(f"cp_loss.{name}", kernel, types, constants, dict(options), common=common)


def _sized(classes: int, upsample: bool, options: CpLossOptions, label: str) -> list[Case]:
    tile = {"UPSAMPLE": upsample, "KP": launch.padded(classes), "SPAN": launch.span(classes)}
    norm = launch.norm_constants(options)
    inputs = _MAPS | _STRIDES
    found = [
        _case(
            f"triplet[{label}]",
            triton_kernel.triplet_kernel,
            inputs | {"sums": "*fp32"},
            tile | norm | _STEP | {"REFINED": True},
        )
    ]
    for level in range(triton_kernel.LEVELS.value):
        found.append(
            _case(
                f"rank[{level}, {label}]",
                triton_kernel.rank_kernel,
                inputs | {"histograms": "*i32", "sums": "*fp32", "wanted": "i32", "fraction_bits": "i64"},
                tile | norm | launch.pool_constants(options) | _STEP | {"LEVEL": level},
            )
        )
    backward = inputs | {"ranks": "*fp32", "upstream": "*fp32", "slopes": "*fp32"}
    written = dict.fromkeys(("cam_gradient", "rcam_gradient", "corners"), "*fp32")
    found.append(
        _case(
            f"slopes[{label}]",
            triton_gradient.slopes_kernel,
            backward,
            tile | norm | launch.pool_constants(options) | launch.gradient_constants(options, True) | _STEP,
        )
    )
    found.append(
        _case(
            f"gradient[{label}]",
            triton_gradient.gradient_kernel,
            backward | written,
            tile | norm | launch.pool_constants(options) | launch.gradient_constants(options, True) | _STEP,
        )
    )
    return found


def offline_cases(capability: tuple[int, int]) -> list[Case]:
    """VOC's and COCO's classes at the grid and upsampled, and the other options once."""
    shape = dict.fromkeys(["batch", "classes", "grid_h", "grid_w"], "i32")
    stats = {key: value for key, value in (_MAPS | _STRIDES).items() if key != "visible"}
    found = [
        _case(
            f"stats[{'input' if upsample else 'grid'}]",
            triton_kernel.stats_kernel,
            stats,
            {"REFINED": False, "UPSAMPLE": upsample, "SPAN": launch.STATS_SPAN} | _STEP,
        )
        for upsample in (False, True)
    ]
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
            dict.fromkeys(("corners", "cam_gradient", "rcam_gradient"), "*fp32") | shape,
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
    found += _sized(20, True, released, "20 classes, input, released")
    dense = CpLossOptions(map_norm="max", pair_norm="shared", tcp_target="pair", ohem_pool="all", cpcr_target="dense")
    return found + _sized(20, False, dense, "20 classes, grid, dense, max, shared, all")
