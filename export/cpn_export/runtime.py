"""Run an exported labeller with onnxruntime: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cpn_export.metadata import Kind, ModelInfo
from cpn_export.model_file import check_model_file
from cpn_fast.files.errors import DataError

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["cpu", "cuda", "tensorrt"]

PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Execution providers that onnxruntime tries in order; the first must be in use."""


MAPS: dict[Kind, str] = {"cam": "rcam", "segmentation": "probabilities"}
"""Name of the graph's output with the maps that the mask comes from."""


@dataclass(frozen=True)
class LabelledBatch:
    """What the graph says of B images of H x W pixels.

    Attributes:
        scores: float32 [B, K] class probabilities.
        mask: uint8 [B, H, W], 0 background, 1..K classes.
        maps: float32, None unless asked for: of a CAM network the normalised RCAM [B, K, H, W] in [0, 1), of a
            segmentation network the probabilities [B, K + 1, H, W] with background first.
    """

    scores: NDArray[np.float32]
    mask: NDArray[np.uint8]
    maps: NDArray[np.float32] | None = None


class OnnxLabeller:
    """An exported model, ready to label.

    Args:
        path: the `.onnx` file.
        provider: where to run: "cpu", "cuda" or "tensorrt".
        threads: CPU threads of one inference; 0 lets onnxruntime take every core.

    Raises:
        DataError: if the file is missing, not an exported labeller, or the provider cannot be used.
    """

    def __init__(self, path: Path, provider: Provider = "cpu", threads: int = 0) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file, expected a model written by `cpn export`")
        self.session = _open_session(path, provider, threads)
        self.info = ModelInfo.from_metadata(self.session.get_modelmeta().custom_metadata_map, str(path))

    def __call__(
        self,
        images: NDArray[np.uint8],  # [B, H, W, 3]
        labels: NDArray[np.float32],  # [B, K]
        with_maps: bool = False,
    ) -> LabelledBatch:
        """Label images of one size.

        Args:
            images: uint8 [B, H, W, 3] RGB.
            labels: float32 [B, K], 1 where the class is in the image. A row of -1 where that is not known: the scores
                of a CAM network stand in, a segmentation network chooses from all classes.
            with_maps: also return the maps, K * H * W floats an image.

        Raises:
            DataError: if shape or dtype differ from these.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"images are {images.dtype} {images.shape}, expected uint8 [B, H, W, 3]")
        expected = (len(images), len(self.info.classes))
        if labels.shape != expected:
            raise DataError(f"labels have shape {labels.shape}, expected {expected} (images, classes of the model)")
        names = ["scores", "mask", *([MAPS[self.info.kind]] if with_maps else [])]
        feeds = {"image": np.ascontiguousarray(images), "labels": labels.astype(np.float32, copy=False)}
        outputs = self.session.run(names, feeds)
        return LabelledBatch(*outputs)


def label_rows(labels: Sequence[tuple[int, ...] | None], num_classes: int) -> NDArray[np.float32]:
    """Label rows, float32 [len(labels), num_classes], from class indices; None lets the scores stand in."""
    rows = np.full((len(labels), num_classes), -1, dtype=np.float32)
    for row, present in zip(rows, labels, strict=True):
        if present is not None:
            row[:] = 0
            row[list(present)] = 1
    return rows


def _is_no_model(error: Exception) -> bool:
    """Whether onnxruntime could not even read the graph; it names its exceptions by what happened."""
    return type(error).__name__ in ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoModel")


def _installed_onnxruntime() -> Any:
    """The package `onnxruntime`, whichever distribution brought it."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise DataError(
            "running a model needs onnxruntime, which is not installed: pip install 'cpn-fast[cpu]', or "
            "'cpn-fast[gpu]' on a machine with an NVIDIA GPU (one of them, not both)"
        ) from error
    return onnxruntime


def _open_session(path: Path, provider: Provider, threads: int) -> onnxruntime.InferenceSession:
    """A session on exactly the provider asked for, or a DataError: never a silent fall back to the CPU."""
    onnxruntime = _installed_onnxruntime()
    wanted = PROVIDERS[provider][0]
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise DataError(
            f"--provider {provider}: this onnxruntime has no {wanted} (it has {', '.join(available)}); "
            "install cpn-fast[gpu] in its place, or use --provider cpu"
        )
    if provider != "cpu":
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Shapes change from batch to batch: a remembered memory plan per shape would only cost memory.
    options.enable_mem_pattern = False
    check_model_file(path)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(PROVIDERS[provider]))
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = str(error).splitlines()[0]
        if _is_no_model(error):
            raise DataError(
                f"{path}: damaged, or no ONNX model ({reason}); copy it again, or export the run again "
                "with `cpn export`"
            ) from error
        raise DataError(f"{path}: onnxruntime cannot open it with --provider {provider}: {reason}") from error
    if session.get_providers()[0] != wanted:
        raise DataError(
            f"--provider {provider}: onnxruntime could not start {wanted} on this machine (no GPU, or its CUDA, cuDNN "
            f"or TensorRT libraries are missing) and would run on {session.get_providers()[0]}; use --provider cpu"
        )
    return session
