"""Options of `cpn train` and `cpn label`; free of torch, so that its --help is there at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cpn_fast.cluster.options import EngineOptions
from cpn_fast.config.presets import preset_defaults
from cpn_fast.config.refine import Refine, RefineAt, ScalesOf
from cpn_fast.config.training import PresetName, TrainConfig, replace_dotted
from cpn_fast.files.errors import DataError
from cpn_fast.files.sink import Sink
from cpn_fast.training.options import parse_training, value_of

DESCRIPTION = (
    "Train CAM, SEAM or CPN from image labels. --preset sets the defaults shown here, other options override it; "
    "--resume takes the run's own settings."
)


def parse(
    argv: Sequence[str], recipe: Callable[[TrainConfig], TrainConfig] | None = None, preset: PresetName = "default"
) -> TrainConfig:
    """Settings from the command line: the preset's, the recipe's, then the options given; on --resume the run's own.

    Args:
        argv: arguments without the program's name.
        recipe: fills in what the caller would have otherwise than the preset.
        preset: where the arguments name none.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run.
    """
    blank = TrainConfig(data=tyro.MISSING, output=tyro.MISSING, preset=preset)
    try:
        default = replace_dotted(blank, preset_defaults(value_of(argv, "--preset") or preset))
    except ValueError as error:
        raise DataError(f"--preset: {error}") from error
    return parse_training(argv, default, recipe, "cpn train", DESCRIPTION)


@dataclass(frozen=True)
class LabelConfig(EngineOptions):
    """Write pseudo masks with a trained run: `cpn label RUN PHOTO.jpg`, `cpn label RUN FOLDER`, or with --data.

    Attributes:
        run: run folder of the trained network.
        data: source of the images with their labels, e.g. `voc:PATH`, `folder:PATH`, `classes:PATH`, `coco:PATH`,
            `demo:` or a bare path.
        output: folder for SegmentationClass/ID.png, labelmap.txt, manifest.jsonl and the contact sheet; None =
            `NAME-masks` in the current folder, by the first of the images or by the data.
        split: split to label; None = train where the source has it and has masks, else all its images.
        scales: the image is run at each of these scales and the maps are summed; None = 1, 1.5 and 2
            times the mean long side of the run's training (presets paper, released: 0.5 1 1.5 2 of the image).
        scales_of: whether scales are factors of the "image", or of the mean long side of the run's "training"; None =
            of the image where they are given.
        flip: also run the mirrored image.
        beta: background score of the mask, 0..1; None = the best that `cpn evaluate` found for the run. Without that
            0.45 of refined maps, 0.25 of plain ones, and of a pixel head's maps the score above which lies as much of
            the images as did of the maps that labelled its pixels (0.5 for fewer than 16 images, or other masks).
        void_band: pixels whose best foreground score lies within become void (255).
        void_margin: the same as a distance below and above the background score, e.g. 0.15 0.1.
        refine: how RCAM is made of CAM: "raw" spreads it over pixels that look alike by the backbone's own features,
            "learnt" by the refinement heads that the run trained, "none" leaves it; "pixels" takes the maps of the head
            that learned pixel labels instead, "pixels-raw" spreads them; None = raw (presets paper, released: learnt;
            after pixel labels: pixels-raw).
        refine_at: refine the "fused" CAM of all scales once, or that of each "scale"; None = fused (presets paper,
            released: scale).
        affinity_power: exponent of the affinities of refinement; None = 2 for "pixels-raw", else 1.
        pairs: also run so many complementary pairs of the image at every scale, and add what their views show: more of
            the object, at two passes more for each.
        maps: which maps make the mask; auto = RCAM where there is refinement, else CAM.
        max_side: longer images are reduced to this long side in pixels first, and the mask enlarged back.
        threshold: class probability above which a class counts as present without image labels (the best always does).
        use_labels: False ignores image labels.
        soft_maps: also write the class maps, compact, to SoftMaps/ID.npz.
        shard: `i/n` labels the i-th of n parts.
        sink: where masks go: "files", a PNG each, or shards of many, "wds" (tars) or "parquet".
        shard_size: masks of a shard.
        overwrite: label everything again, also with other settings.
        allow_failures: exit with status 0, not 3, also where some images could not be labelled.
        batch_size: images of equal size that go through the network together.
        workers: threads that read images, and as many that write masks.
        device: where the network runs; auto = a GPU where there is one.
        compile: torch.compile the network, for all image sizes at once; the first images then take longer.
        sheet: number of least confident masks on the contact sheet; 0 = none.
        images: image files and folders, instead of --data. One folder that holds a data set is read with its labels.
    """

    run: Annotated[Path, tyro.conf.Positional]
    data: str | None = None
    output: Path | None = None
    split: str | None = None
    scales: tuple[float, ...] | None = None
    scales_of: ScalesOf | None = None
    flip: bool = True
    refine: Refine | None = None
    refine_at: RefineAt | None = None
    affinity_power: float | None = None
    pairs: int = 0
    beta: float | None = None
    void_band: tuple[float, float] | None = None
    void_margin: tuple[float, float] | None = None
    maps: Literal["auto", "rcam", "cam"] = "auto"
    max_side: int = 1024
    threshold: float = 0.5
    use_labels: bool = True
    soft_maps: bool = False
    shard: str | None = None
    sink: Sink = "files"
    shard_size: int = 1000
    overwrite: bool = False
    allow_failures: bool = False
    batch_size: int = 1
    workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    sheet: int = 24
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
