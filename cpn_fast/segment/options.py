"""What `cpn segment predict` and `cpn segment evaluate` both ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpn_fast.inference.options import check_counts
from cpn_fast.inference.reader import InferenceOptions
from cpn_fast.models.segmenter import SCALES
from cpn_fast.refine.crf_options import CrfPreset


@dataclass(frozen=True)
class SegmentInference:
    """Base of the settings of commands that run a trained segmentation network.

    Attributes:
        run: run folder that `cpn segment train` wrote.
        data: source of the images, e.g. `voc:PATH`, `folder:PATH`, `coco:PATH`, `demo:` or a bare path.
        split: which of its splits.
        scales: probabilities are averaged over the image at each of these scales.
        flip: also run the mirrored image.
        use_labels: limit each mask to background and the image's own labels, where it has any.
        max_side: longer images are reduced to this long side in pixels first, and the mask enlarged back.
        batch_size: images of equal size that go through the network together.
        workers: threads that read images, and as many that work on what the network found.
        device: where the network runs; auto = a GPU where there is one.
        crf: dense CRF on the probabilities.
        crf_preset: its numbers, those for predictions or those for AffinityNet's labels.
    """

    run: Annotated[Path, tyro.conf.Positional]
    data: str
    split: str = "val"
    scales: tuple[float, ...] = SCALES
    flip: bool = True
    use_labels: bool = False
    max_side: int = 1024
    batch_size: int = 1
    workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    crf: bool = False
    crf_preset: CrfPreset = "segmentation"

    def inference_options(self, with_mask: bool = False) -> InferenceOptions:
        """How images are read. Raises DataError for a count below 1."""
        check_counts(max_side=self.max_side, batch_size=self.batch_size, workers=self.workers)
        return InferenceOptions(
            self.max_side, self.batch_size, self.workers, with_mask=with_mask, use_labels=self.use_labels
        )
