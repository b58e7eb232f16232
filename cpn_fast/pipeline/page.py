"""The pipeline's report: what each stage did, took and measured, and pictures of every stage beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpn_fast.data.sources.spread import spread
from cpn_fast.data.types import Record, Source
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.masks import read_mask
from cpn_fast.files.output_folder import raise_io_errors_as
from cpn_fast.files.progress import duration
from cpn_fast.pipeline.plan import PipelineConfig
from cpn_fast.pipeline.state import StageResult
from cpn_fast.report import page
from cpn_fast.report.charts import bar_chart
from cpn_fast.report.pictures import Row, mask_uri, photo_uri

if TYPE_CHECKING:
    from markupsafe import Markup

IMAGES = 8
FOLDERS = {"label": ("mask", "masks"), "refine": ("refined mask", "masks-refined")}
COLUMNS = ("image", "ground truth", "mask", "refined mask", "segmentation")


def write_page(config: PipelineConfig, source: Source, results: Sequence[StageResult]) -> Path:
    """Write OUTPUT/report.html.

    Args:
        config: the pipeline's settings.
        source: its data.
        results: its stages.

    Returns:
        The page's path.

    Raises:
        DataError: if an image of a picture cannot be read, or the page cannot be written.
    """
    scored = [result for result in results if result.scores.get("miou") is not None]
    figures = {f"mIoU %, {result.stage.name}": f"{100 * result.scores['miou']:.1f}" for result in scored}
    figures["time"] = duration(sum(result.state.seconds for result in results))
    figures["peak memory"] = f"{max(result.state.peak_memory_mib for result in results) / 1024:.1f} GiB"
    sections = [page.tiles(figures), _stages(results), _pictures(config, source, results), _classes(source, scored)]
    sections += [page.settings(f"Settings of {result.stage.name}", result.state.settings) for result in results]
    path, train = config.output / "report.html", config.train
    subtitle = f"{train.method} on {source.spec}, backbone {train.backbone}, seed {train.loop.seed}"
    with raise_io_errors_as(config.output, path.name):
        atomic_write_text(path, page.page(f"Pipeline {config.output.resolve().name}", subtitle, sections))
    return path


def _stages(results: Sequence[StageResult]) -> Markup:
    rows = [
        (
            result.stage.name,
            duration(result.state.seconds),
            f"{result.state.peak_memory_mib / 1024:.1f} GiB",
            _percent(result.scores, "miou"),
            _percent(result.scores, "background"),
            _percent(result.scores, "foreground"),
            result.stage.text,
        )
        for result in results
    ]
    columns = ("stage", "time", "peak memory", "mIoU %", "background", "foreground", "command")
    return page.table("Stages", columns, rows, "Times and memory of the stage's own process, over all its attempts.")


def _percent(scores: Mapping[str, Any], key: str) -> str:
    return "" if scores.get(key) is None else f"{100 * scores[key]:.1f}"


def _classes(source: Source, scored: Sequence[StageResult]) -> Markup:
    names = ["background", *source.classes]
    bars = {
        result.stage.name: [100 * (result.scores["per_class"].get(name) or 0.0) for name in names] for result in scored
    }
    return page.charts("Classes", {"IoU % per class": bar_chart(names, bars)} if scored else {})


def _pictures(config: PipelineConfig, source: Source, results: Sequence[StageResult]) -> Markup:
    """A few images of the training split with every mask that was made of them."""
    names = [result.stage.name for result in results]
    records = spread(source.records(config.train.split), IMAGES)
    rows = [_row(config, source, record, names) for record in records]
    if "segment" in names:
        _add_segmentations(config, source, records, rows)
    text = f"Images of split {config.train.split}; the masks are those that the stages wrote."
    return page.picture_rows(rows, source.classes, text, COLUMNS)


def _row(config: PipelineConfig, source: Source, record: Record, stages: Sequence[str]) -> Row:
    sample = source.read(record, with_mask=True)
    pictures = {"image": photo_uri(sample.image)}
    if sample.mask is not None:
        pictures["ground truth"] = mask_uri(sample.mask)
    for stage, (column, folder) in FOLDERS.items():
        path = config.output / folder / "SegmentationClass" / f"{record.id}.png"
        if stage in stages and path.is_file():
            pictures[column] = mask_uri(read_mask(path, len(source.classes)))
    return Row(record.id, record.labels or (), record.labels is not None, pictures)


def _add_segmentations(config: PipelineConfig, source: Source, records: Sequence[Record], rows: list[Row]) -> None:
    """Draw what the segmentation model says of the images, at a single scale."""
    import torch

    from cpn_fast.files.max_side import enlarge, reduce_image
    from cpn_fast.models.segmenter import Segmenter
    from cpn_fast.runs.folder import RunFolder

    segmenter = Segmenter(RunFolder(config.output / "segment").load_deeplab(), scales=(1.0,), flip=False)
    for record, row in zip(records, rows, strict=True):
        image = source.read(record).image
        small = torch.tensor(reduce_image(image, config.train.augment.crop * 2))[None]
        with torch.inference_mode():
            mask = segmenter(small, torch.full((1, len(source.classes)), -1.0)).mask[0].numpy()
        row.pictures["segmentation"] = mask_uri(enlarge(mask, *image.shape[:2]))
