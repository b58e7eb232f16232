"""Run an exported labeller with onnxruntime: no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpn_export.metadata import Kind, ModelInfo
from cpn_export.providers import Provider as Provider
from cpn_export.providers import open_session, run_bound
from cpn_fast.files.errors import DataError

MAPS: dict[Kind, str] = {"cam": "rcam", "segmentation": "probabilities"}
"""Name of the graph's output with the maps that the mask comes from."""


PROBE = 64
"""Side in pixels of the image of noise with which float16 is tried out."""

FLOAT32 = "export the run with --precision float32"


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
    """An exported model, ready to label. Sent to another process, it is opened again there.

    Args:
        path: the `.onnx` file.
        provider: where to run; "auto" = the first of CUDA, CoreML, DirectML, OpenVINO and the CPU that starts.
        threads: CPU threads of one inference; 0 lets onnxruntime take every core.
        elsewhere: where to run in a process that it is sent to; None = as here.

    Attributes:
        running_on: the provider that is in use, in words.
        memory: device whose memory onnxruntime is given and gives arrays in; None = the host's.
        passed_over: of "auto", providers that are there and did not start, with the reasons.

    Raises:
        DataError: if the file is missing, not an exported labeller, the provider cannot be used, or a float16 network
            overflows on it.
    """

    def __init__(
        self, path: Path, provider: Provider = "cpu", threads: int = 0, elsewhere: Provider | None = None
    ) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file, expected a model written by `cpn export`")
        self._path, self._threads, self._elsewhere = path, threads, elsewhere or provider
        opened = open_session(path, provider, threads)
        self.session, self.provider = opened.session, opened.provider
        self.running_on, self.passed_over, self.memory = str(opened), opened.passed_over, opened.memory
        self.info = ModelInfo.from_metadata(self.session.get_modelmeta().custom_metadata_map, str(path))
        if self.info.precision == "float16":
            self._check_range(path)

    def __reduce__(self) -> tuple[Any, ...]:
        """By the content of the file, which other machines may not have."""
        return _opened_again, (self._path.read_bytes(), self._elsewhere, self._threads)

    def _check_range(self, path: Path) -> None:
        """Refuse a float16 network that overflows on this provider, where the first image would find out."""
        noise = np.random.default_rng(0).integers(0, 256, (1, PROBE, PROBE, 3), dtype=np.uint8)
        try:
            found = self(noise, label_rows([None], len(self.info.classes)), with_maps=True)
        except DataError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{path}: float16 does not run on {self.running_on}: {reason}; {FLOAT32}") from error
        assert found.maps is not None
        if not (np.isfinite(found.scores).all() and np.isfinite(found.maps).all()):
            raise DataError(
                f"{path}: its float16 network gives NaN or infinity on {self.running_on}: numbers above 65,504 "
                f"overflow; {FLOAT32}"
            )

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
        feeds: dict[str, NDArray[Any]] = {
            "image": np.ascontiguousarray(images),
            "labels": labels.astype(np.float32, copy=False),
        }
        return LabelledBatch(*run_bound(self.session, names, feeds, self.memory))


def _opened_again(content: bytes, provider: Provider, threads: int) -> OnnxLabeller:
    """A model that was sent here, with the processor's threads that this process has been given."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        return OnnxLabeller(path, provider, threads or int(os.environ.get("OMP_NUM_THREADS", "0")))


def label_rows(labels: Sequence[tuple[int, ...] | None], num_classes: int) -> NDArray[np.float32]:
    """Label rows, float32 [len(labels), num_classes], from class indices; None lets the scores stand in."""
    rows = np.full((len(labels), num_classes), -1, dtype=np.float32)
    for row, present in zip(rows, labels, strict=True):
        if present is not None:
            row[:] = 0
            row[list(present)] = 1
    return rows
