"""The pixel correlation kernels as they are launched, for compilation without a GPU."""

from __future__ import annotations

from cpn_kernels.offline import Case
from cpn_kernels.ops.pixel_correlation import launch
from cpn_kernels.ops.pixel_correlation import triton_kernel as kernels
from cpn_kernels.ops.pixel_correlation.op import is_supported

SIZES = ((192, 21), (192, 81), (256, 64), (256, 128))
"""Embedding and map channels: VOC, COCO, and the largest that the kernels take, in float32 and in bfloat16."""


def _types(names: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


def _pack_case(source: str, normalise: bool, half: bool, width: int, piece: int) -> Case:
    return Case(
        f"pixel_correlation.pack[{source}, {'unit' if normalise else 'plain'}, {width}, {'bf16' if half else 'fp32'}]",
        kernels.pack_kernel,
        {"source": f"*{source}", "packed": "*bf16" if half else "*fp32", "lengths": "*fp32"}
        | _types("stride_b stride_r pixels rows", "i32"),
        {
            "stride_n": 1,
            "NORMALISE": normalise,
            "ROUND": half,
            "WIDTH": width,
            "PIECE": piece,
            "BLOCK": launch.PACK_BLOCK,
        },
    )


def _product_cases(shape: launch.Shape, capability: tuple[int, int]) -> list[Case]:
    packed = "*bf16" if shape.half else "*fp32"
    label = f"{shape.precision}, {shape.width}, {shape.channels}"
    arguments = shape.arguments(interpreted=False)
    ahead, back = launch.forward_tiles(shape, capability), launch.backward_tiles(shape, capability)
    found = [
        Case(
            f"pixel_correlation.{'forward' if divide else 'maps_gradient'}[{label}]",
            kernels.correlate_kernel,
            _types("queries keys values", packed)
            | _types("output totals", "*fp32")
            | _types("query_count key_count channels", "i32")
            | {"eps": "fp32"},
            arguments | {"DIVIDE": divide, "BLOCK_Q": ahead.rows, "BLOCK_K": ahead.others},
            {"num_warps": ahead.warps, "num_stages": ahead.stages, "maxnreg": launch.REGISTERS},
            tensor_core=True,
            common=divide and (shape.width, shape.channels) == (192, 32),
        )
        for divide in (True, False)
    ]
    for role, is_key, is_query in (("both", True, True), ("key", True, False), ("query", False, True)):
        found.append(
            Case(
                f"pixel_correlation.gradient[{role}, {label}]",
                kernels.gradient_kernel,
                _types("rows others row_values other_values row_scaled other_scaled", packed)
                | _types("row_offsets other_offsets lengths gradient", "*fp32")
                | _types("row_count other_count embedding", "i32"),
                arguments
                | {
                    "ROW_IS_KEY": is_key,
                    "ROW_IS_QUERY": is_query,
                    "BLOCK_R": back.rows,
                    "BLOCK_O": back.others,
                },
                {"num_warps": back.warps, "num_stages": back.stages, "maxnreg": launch.REGISTERS},
                tensor_core=True,
                common=role == "both" and (shape.width, shape.channels) == (192, 32),
            )
        )
    return found


def offline_cases(capability: tuple[int, int]) -> list[Case]:
    """All kernels for VOC, COCO and the largest sizes, in every precision."""
    found = [
        _pack_case("bf16", True, True, 192, 64),
        _pack_case("fp32", True, False, 192, 64),
        _pack_case("fp32", False, True, 32, 32),
        _pack_case("fp32", False, False, 128, 128),
    ]
    for half in (True, False):
        found.append(
            Case(
                f"pixel_correlation.pack_gradient[{'bf16' if half else 'fp32'}]",
                kernels.pack_gradient_kernel,
                {"scaled": "*bf16" if half else "*fp32"}
                | _types("gradient output totals offsets", "*fp32")
                | _types("stride_b stride_c query_count channels", "i32"),
                {"stride_m": 1, "ROUND": half, "CHANNELS": 128, "BLOCK": launch.PACK_GRADIENT_BLOCK},
            )
        )
    for embedding, channels in SIZES:
        for precision in ("bf16", "tf32", "fp32"):
            if not is_supported(embedding, channels, "bf16" if precision == "bf16" else "fp32"):
                continue
            found += _product_cases(launch.kernel_shape(embedding, channels, precision), capability)
    return found
