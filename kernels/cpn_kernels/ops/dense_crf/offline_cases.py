"""The dense CRF's kernels as they are launched, for compilation without a GPU."""

from __future__ import annotations

from cpn_kernels.offline import Case
from cpn_kernels.ops.dense_crf import triton_kernel
from cpn_kernels.ops.dense_crf.launch import block_rows, row_width
from cpn_kernels.ops.dense_crf.limits import CORNERS

_FLOATS = dict.fromkeys(("log_probabilities", "q", "weights", "values", "more_weights", "more_values"), "*fp32")
_UPDATE = _FLOATS | dict.fromkeys(("points", "more_points"), "*i32") | dict.fromkeys(("compat", "more_compat"), "fp32")
_SUM = dict.fromkeys(("source", "weights", "target"), "*fp32") | dict.fromkeys(("rows", "begins"), "*i32")
_BLUR = {"source": "*fp32", "neighbours": "*i32", "target": "*fp32", "axis": "i32"}


def offline_cases(capability: tuple[int, int]) -> list[Case]:
    """Rows of one number, which normalise a lattice; VOC's and COCO's classes; and as many as the kernels take.

    They are no part of a training step; CI compiles three of VOC's classes.
    """
    found = []
    for classes in (1, 21, 81, 256):
        width = row_width(classes)
        block = {"ROWS": block_rows(width), "WIDTH": width}
        for corners in ((0, 0), (3, CORNERS)):
            found.append(
                Case(
                    f"dense_crf.update[{classes} classes, {corners[0]} + {corners[1]} corners]",
                    triton_kernel.update_kernel,
                    _UPDATE | {"pixels": "i32"},
                    block | {"CORNERS": corners[0], "MORE_CORNERS": corners[1]},
                    common=classes == 21 and corners[0] > 0,
                )
            )
        for weighted in (True, False):
            found.append(
                Case(
                    f"dense_crf.sum[{classes} classes, {'splat' if weighted else 'parts'}]",
                    triton_kernel.sum_kernel,
                    _SUM | {"count": "i32"},
                    block | {"WEIGHTED": weighted},
                    common=classes == 21 and weighted,
                )
            )
        blur = _BLUR | {"count": "i32"}
        name = f"dense_crf.blur[{classes} classes]"
        found.append(Case(name, triton_kernel.blur_kernel, blur, block, common=classes == 21))
    return found
