"""The network of an exported model in fewer bits: float16, or int8 with ranges calibrated on given images.

Only the network is converted. What is around it (preprocessing, resizing, refinement, softmax, normalisation of maps)
stays in float32, and so do the inputs and outputs of the file.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpn_export.graph_surgery import Conversion, unchanged
from cpn_export.metadata import Precision
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import list_images, read_image
from cpn_fast.files.max_side import reduce_image
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.models.labeller import scaled_views
from cpn_kernels.ops.cp_triplet import normalise_images

QUANTISED = ("Conv", "Relu", "Clip", "Add", "MaxPool")
QUANTISED_WITH_ATTENTION = ("Conv", "MatMul")
"""Of a transformer: products with weights. What its blocks add up, and what attention multiplies, has too wide a range
for 8 bits."""
LEAST_IMAGES = 16
"""Fewer give ranges that other images often leave: values beyond a range are cut off."""
LEAST_CONTRAST = 8
"""Of 255: an image whose every channel spans less says nothing of the ranges."""
LARGEST_HALF = float(np.finfo(np.float16).max)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What the ranges of int8 are taken from.

    Attributes:
        folder: images like those to be labelled, searched recursively.
        images: so many of them, evenly spread over the sorted folder; each runs at one scale, in turn.
        max_side: longer images are reduced to this long side in pixels, as for labelling.
        reduce_range: weights of 7 bits.
    """

    folder: Path
    images: int
    max_side: int
    reduce_range: bool = False


def conversion_of(
    precision: Precision,
    mean: Tensor,
    scales: Sequence[float],
    calibration: Calibration | None,
    side: int | None = None,
    progress: Progress = SILENT,
) -> Conversion:
    """How the network is converted to a precision.

    Args:
        precision: "float32", "float16" or "int8".
        mean: float [3], the network's RGB mean in [0, 1].
        scales: at which the network runs.
        calibration: for "int8".
        side: long side in pixels that scale 1 brings an image to; None = its own.
        progress: where the calibration is shown.

    Raises:
        DataError: "int8" without a calibration, or one without images.
    """
    if precision == "float32":
        return unchanged
    if precision == "float16":
        return half_precision
    if calibration is None:
        raise DataError("--precision int8 needs images to calibrate on; expected --calibrate FOLDER")
    paths = _chosen(list_images(calibration.folder), calibration)

    def convert(part: ir.Model) -> ir.Model:
        with progress.items("calibrating", len(paths)) as advance:
            return quantised(part, _views(paths, mean, scales, side, calibration, advance), calibration.reduce_range)

    return convert


def half_precision(part: ir.Model) -> ir.Model:
    """A part in float16 by onnxruntime's converter; inputs and outputs stay in float32.

    Raises:
        DataError: if a weight is too large for float16.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    for name, weight in part.graph.initializers.items():
        if weight.const_value is None or not weight.const_value.dtype.is_floating_point():
            continue  # an integer says where a slice ends
        largest = float(np.abs(weight.const_value.numpy()).max(initial=0))
        if largest > LARGEST_HALF:
            raise DataError(
                f"--precision float16: weight {name} has {largest:g}, expected at most {LARGEST_HALF:g}; use float32"
            )
    converted = ir.from_proto(convert_float_to_float16(ir.to_proto(part), keep_io_types=True))
    converted.graph.sort()  # the converter puts its casts at the end
    return converted


def quantised(part: ir.Model, views: Iterator[NDArray[np.float32]], reduce_range: bool = False) -> ir.Model:
    """A part in int8: weights per output channel, activations by the range that each takes on `views`.

    The convolution that gives an output, which is the classifier, stays in float32: 8 bits over the whole range of its
    logits would be steps that the masks show.

    Args:
        part: the network, with the one input `views`.
        views: normalised, float32 [1, 3, H, W]; sizes may differ.
        reduce_range: weights of 7 bits. An x86 CPU without VNNI adds pairs of products in 16 bits, which overflow with
            8-bit weights.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            view = next(views, None)
            return None if view is None else {"views": view}

    with tempfile.TemporaryDirectory() as folder:
        traced, prepared, result = (Path(folder, f"{name}.onnx") for name in ("traced", "prepared", "int8"))
        ir.save(part, traced)
        quant_pre_process(traced, prepared, skip_symbolic_shape=True)
        graph = ir.load(prepared).graph
        classifiers = [node.name for node in graph if node.op_type == "Conv" and node.outputs[0] in graph.outputs]
        attends = any(node.op_type == "Softmax" for node in graph)
        quantize_static(
            prepared,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED_WITH_ATTENTION if attends else QUANTISED,
            nodes_to_exclude=classifiers,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return ir.load(result)


def _chosen(paths: Sequence[Path], calibration: Calibration) -> list[Path]:
    if not paths:
        raise DataError(f"{calibration.folder}: no images (by suffix) found; expected some to calibrate int8 on")
    count = min(calibration.images, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def _views(
    paths: Sequence[Path],
    mean: Tensor,
    scales: Sequence[float],
    side: int | None,
    calibration: Calibration,
    advance: Callable[[int], None],
) -> Iterator[NDArray[np.float32]]:
    """Normalised views of the images that can be read, at one scale after the other; warns of too few that vary."""
    read = plain = 0
    for path in paths:
        try:
            image = reduce_image(read_image(path), calibration.max_side)
        except DataError as error:
            logger.warning("excluded from the calibration: %s", error)
            continue
        view = normalise_images(torch.from_numpy(image)[None], mean)
        yield scaled_views(view, scales[read % len(scales)], flip=False, side=side).numpy()
        read += 1
        plain += int(np.ptp(image, axis=(0, 1)).max() < LEAST_CONTRAST)
        advance(1)
    if not read:
        raise DataError(
            f"{calibration.folder}: none of {len(paths)} images could be read; expected some to calibrate on"
        )
    if read - plain < LEAST_IMAGES:
        logger.warning(
            "%s: calibrated on %d image(s), %d of them plain (one colour all over); expected at least %d that are not, "
            "like those to be labelled. Masks of int8 may differ much from float32's; add images and export again",
            calibration.folder,
            read,
            plain,
            LEAST_IMAGES,
        )
