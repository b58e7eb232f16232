"""Options of `cpn segment train`, `predict` and `evaluate`; free of torch, so that --help is there at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cpn_fast.cluster.options import EngineOptions
from cpn_fast.config.scales import SEGMENT_SCALES
from cpn_fast.config.training import SegmentConfig
from cpn_fast.files.sink import Sink
from cpn_fast.inference.options import check_positive
from cpn_fast.refine.crf_options import CrfOptions, CrfPreset
from cpn_fast.training.options import parse_training

if TYPE_CHECKING:
    from cpn_fast.inference.reader import InferenceOptions

DESCRIPTION = "Train DeepLab-LargeFOV on a folder of pseudo masks. --resume takes the run's own settings."


def parse(argv: Sequence[str], recipe: Callable[[SegmentConfig], SegmentConfig] | None = None) -> SegmentConfig:
    """Settings from the command line: the recipe's, then those given; on --resume the run's own, then those given.

    Args:
        argv: arguments without the program's name.
        recipe: fills in what the caller would have otherwise than the defaults.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run.
    """
    blank = SegmentConfig(data=tyro.MISSING, output=tyro.MISSING, masks=tyro.MISSING)
    return parse_training(argv, blank, recipe, "cpn segment train", DESCRIPTION)


@dataclass(frozen=True)
class SegmentInference:
    """Base of the settings of commands that run a trained segmentation network.

    Attributes:
        run: run folder that `cpn segment train` wrote.
        data: source of the images, e.g. `voc:PATH`, `folder:PATH`, `classes:PATH`, `coco:PATH`, `demo:` or a bare path.
        split: which of its splits.
        scales: probabilities are averaged over the image at each of these scales.
        flip: also run the mirrored image.
        use_labels: limit each mask to background and the image's own labels, where it has any.
        max_side: longer images are reduced to this long side in pixels first, and the mask enlarged back.
        batch_size: images of equal size that go through the network together.
        workers: threads that read images, and as many that work on what the network found.
        device: where the network and the CRF run; auto = a GPU where there is one.
        crf: dense CRF on the probabilities.
        crf_preset: its numbers, those for predictions or those for AffinityNet's labels.
    """

    run: Annotated[Path, tyro.conf.Positional]
    data: str
    split: str = "val"
    scales: tuple[float, ...] = SEGMENT_SCALES
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
        from cpn_fast.inference.reader import InferenceOptions

        check_positive(max_side=self.max_side, batch_size=self.batch_size, workers=self.workers)
        return InferenceOptions(
            self.max_side, self.batch_size, self.workers, with_mask=with_mask, use_labels=self.use_labels
        )


@dataclass(frozen=True)
class PredictConfig(EngineOptions, CrfOptions, SegmentInference):
    """Write the masks that a segmentation run predicts.

    Attributes:
        output: folder for SegmentationClass/ID.png, labelmap.txt, manifest.jsonl and settings.json.
        voc_zip: also pack the split's masks as VOC's evaluation server wants them; every part of it has to be there.
        shard: `i/n` predicts the i-th of n parts.
        sink: where masks go: "files", a PNG each, or shards of many, "wds" (tars) or "parquet".
        shard_size: masks of a shard.
        overwrite: predict everything again, also with other settings.
        allow_failures: exit with status 0, not 3, also where some images could not be predicted.
    """

    output: Path = field(kw_only=True)
    voc_zip: Path | None = None
    shard: str | None = None
    sink: Sink = "files"
    shard_size: int = 1000
    overwrite: bool = False
    allow_failures: bool = False


@dataclass(frozen=True)
class SegmentEvaluateConfig(EngineOptions, CrfOptions, SegmentInference):
    """Score a segmentation run; one pass gives the table: scale 1 alone, all scales, and with --crf after the CRF.

    Attributes:
        output: folder for metrics.json; None = the run.
    """

    output: Path | None = None
