"""Does the exported model label as the run does? `python -m cpn_export.parity RUN MODEL.onnx --data DATA`."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from cpn_export.agreement import FOREGROUND_BAR, MAPS_BAR, PIXELS_BAR, Agreement, Outputs
from cpn_export.metadata import Kind
from cpn_export.runtime import MAPS, OnnxLabeller
from cpn_fast.config.refine import Refine, RefineAt, RefineOptions
from cpn_fast.console.exit_status import guarded
from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Record, Source
from cpn_fast.device import tune_allocator
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.max_side import reduce_image
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.models.labeller import Labeller
from cpn_fast.models.segmenter import Segmenter
from cpn_fast.runs.folder import RunFolder
from cpn_kernels.cam_norm import MapNorm

IMAGES, SPARSE = "images", "images with less foreground"
OTHER_LABELS: dict[Kind, str] = {"cam": "own scores", "segmentation": "given labels"}
"""The group of images with the other kind of labels: CAM networks are given the image's, segmentation networks none."""
STRIP_HEIGHT, LARGE_SIDE = 33, 800
MAX_BATCH = 4

Variant = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@dataclass(frozen=True)
class ParityConfig:
    """Compare a run in eager torch with its ONNX export on real images, and time both.

    Attributes:
        run: run folder.
        model: the `.onnx` file exported from it.
        data: source of the images.
        split: split to draw from.
        images: images to compare whose eager mask is at least `min_foreground` foreground.
        min_foreground: share of foreground pixels that such an image needs.
        variants: of these, also compared at odd sizes, as thin strips, enlarged, and with labels where the others have
            none or the other way round.
        threads: CPU threads of each side; 0 = all cores.
        output: JSON file for the figures.
    """

    run: tyro.conf.Positional[Path]
    model: tyro.conf.Positional[Path]
    data: str
    split: str = "train"
    images: int = 50
    min_foreground: float = 0.1
    variants: int = 6
    threads: int = 0
    output: Path | None = None


@dataclass(frozen=True)
class ParityReport:
    """What was found.

    Attributes:
        groups: agreement by kind of input; "images" are those with enough foreground, at their own sizes.
        eager_seconds: median time per image of "images" in eager torch.
        onnx_seconds: the same in onnxruntime; the two sides take turns.
        wanted: images that were asked for.
    """

    groups: dict[str, Agreement]
    eager_seconds: float
    onnx_seconds: float
    wanted: int

    @property
    def met(self) -> bool:
        """Whether there were enough images and every group reaches the bar, but for the one left out for its masks."""
        judged = [group for name, group in self.groups.items() if name != SPARSE]
        return self.groups[IMAGES].images >= self.wanted and all(group.met for group in judged)


class Pair:
    """A labelling module in eager torch and its export.

    Args:
        eager: on the CPU, with the export's settings.
        onnx: the exported model.
        threads: CPU threads of torch; 0 = all cores.
    """

    def __init__(self, eager: Labeller | Segmenter, onnx: OnnxLabeller, threads: int = 0) -> None:
        torch.set_num_threads(threads or os.cpu_count() or 1)
        tune_allocator()  # as `cpn label` does: the times are to be its times
        self.eager, self.onnx = eager, onnx

    @classmethod
    def of_run(cls, run: RunFolder, model: Path, threads: int = 0) -> Pair:
        """A run's network and the model exported from it, each with `threads` CPU threads.

        Raises:
            DataError: if the two are of different kinds or do not have the same classes.
        """
        onnx = OnnxLabeller(model, threads=threads)
        info = onnx.info
        if info.classes != run.classes:
            raise DataError(f"{model}: its classes are not those of {run.path}; export that run again")
        eager: Labeller | Segmenter
        if info.beta is None or info.threshold is None:
            eager = Segmenter(run.load_deeplab(), info.scales, info.flip)
        else:
            map_norm = cast(MapNorm, info.map_norm)
            refine = RefineOptions(
                cast(Refine, info.refine), cast(RefineAt, info.refine_at), cast(float, info.affinity_power)
            )
            resize = run.config.options.scale_resize
            eager = Labeller(
                run.load_model(), info.scales, info.flip, info.beta, info.threshold, map_norm, resize, refine,
                info.scale_side, info.pairs,
            )  # fmt: skip
        return cls(eager, onnx, threads)

    def run_eager(self, images: NDArray[np.uint8], labels: NDArray[np.float32]) -> Outputs:
        """The eager side of a batch: images [B, H, W, 3], labels [B, K]."""
        with torch.inference_mode():
            found = self.eager(torch.from_numpy(images), torch.from_numpy(labels))
        maps = getattr(found, MAPS[self.onnx.info.kind])
        return Outputs(maps.numpy(), found.scores.numpy(), found.mask.numpy())

    def run_onnx(self, images: NDArray[np.uint8], labels: NDArray[np.float32]) -> Outputs:
        """The exported side of a batch."""
        found = self.onnx(images, labels, with_maps=True)
        assert found.maps is not None
        return Outputs(found.maps, found.scores, found.mask)


def run_parity(config: ParityConfig, progress: Progress = SILENT) -> ParityReport:
    """Compare, print a table, and write the JSON file if one is asked for.

    Raises:
        DataError: if run, model or data cannot be used or do not fit each other.
    """
    run, source = RunFolder(config.run), open_source(config.data)
    report = compare(Pair.of_run(run, config.model, config.threads), source, config, progress)
    _show(progress, report)
    if config.output is not None:
        atomic_write_text(config.output, json.dumps(_as_json(report), indent=2) + "\n")
    return report


def compare(pair: Pair, source: Source, config: ParityConfig, progress: Progress = SILENT) -> ParityReport:
    """Compare both sides on images of the source."""
    info = pair.onnx.info
    mapping = ClassMapping.between(source.classes, info.classes)
    groups = {name: Agreement() for name in (IMAGES, SPARSE, *VARIANTS, OTHER_LABELS[info.kind])}
    seconds: tuple[list[float], list[float]] = ([], [])
    kept: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
    batches = _batches(source, source.records(config.split), mapping, info.max_side)
    with progress.items("comparing", config.images) as advance:
        for turn, (images, labels) in enumerate(batches):
            eager, exported = _both(pair, images, _rows(labels, info.kind == "cam"), seconds, turn)
            enough = (eager.mask > 0).mean(axis=(1, 2)) >= config.min_foreground
            for index in range(len(images)):
                group = groups[IMAGES if enough[index] else SPARSE]
                group.add(eager.of(index), exported.of(index), len(images))
            kept += [(images[index], labels[index]) for index in np.flatnonzero(enough)]
            advance(int(enough.sum()))
            if len(kept) >= config.images:
                break
    _add_variants(pair, kept[: config.variants], groups)
    # The first batch warms both sides up.
    eager_seconds, onnx_seconds = (statistics.median(times[1:] or times or [0.0]) for times in seconds)
    return ParityReport(groups, eager_seconds, onnx_seconds, config.images)


def _rows(labels: NDArray[np.float32], given: bool) -> NDArray[np.float32]:
    return labels if given else np.full_like(labels, -1)


def _add_variants(
    pair: Pair, kept: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]], groups: dict[str, Agreement]
) -> None:
    """Compare images of other sizes and shapes made from `kept`, and with the other kind of labels, one by one."""
    kind = pair.onnx.info.kind
    for name, variant in {**VARIANTS, OTHER_LABELS[kind]: lambda image: image}.items():
        for image, label in kept:
            rows = _rows(label[None], (kind == "cam") != (name == OTHER_LABELS[kind]))
            changed = np.array(variant(image), order="C")[None]
            groups[name].add(pair.run_eager(changed, rows), pair.run_onnx(changed, rows), 1)


def _resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _odd(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _resized(image, image.shape[0] * 5 // 8 // 2 * 2 + 1, image.shape[1] * 5 // 8 // 2 * 2 + 1)


def _strip(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top = (image.shape[0] - STRIP_HEIGHT) // 2
    return image[max(0, top) : max(0, top) + STRIP_HEIGHT]


def _large(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    longest = max(image.shape[:2])
    return _resized(image, image.shape[0] * LARGE_SIDE // longest, image.shape[1] * LARGE_SIDE // longest)


VARIANTS: dict[str, Variant] = {
    "odd sizes": _odd,
    "thin strips": _strip,
    "upright strips": lambda image: _strip(image.transpose(1, 0, 2)),
    "enlarged": _large,
}


def _batches(
    source: Source, records: Sequence[Record], mapping: ClassMapping, max_side: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Labelled images in batches of one size: the first `MAX_BATCH` of a size alone, later ones 2, 3, 4 at a time."""
    waiting: dict[tuple[int, ...], list[tuple[NDArray[np.uint8], NDArray[np.float32]]]] = defaultdict(list)
    next_size = 0
    for record in records:
        if not record.labels:
            continue
        image = reduce_image(source.read(record).image, max_side)
        waiting[image.shape].append((image, mapping.vector(record.labels).astype(np.float32)))
        if len(waiting[image.shape]) > next_size % MAX_BATCH:
            batch = waiting.pop(image.shape)
            next_size += 1
            yield _stacked(batch)
    for batch in waiting.values():
        yield _stacked(batch)


def _stacked(
    batch: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    return np.stack([image for image, _ in batch]), np.stack([row for _, row in batch])


def _both(
    pair: Pair,
    images: NDArray[np.uint8],
    labels: NDArray[np.float32],
    seconds: tuple[list[float], list[float]],
    turn: int,
) -> tuple[Outputs, Outputs]:
    """Run both sides on a batch, which first depends on the turn, and note the time per image."""

    def timed(side: int) -> Outputs:
        start = time.perf_counter()
        outputs = (pair.run_eager, pair.run_onnx)[side](images, labels)
        seconds[side].append((time.perf_counter() - start) / len(images))
        return outputs

    if turn % 2:
        exported = timed(1)
        return timed(0), exported
    return timed(0), timed(1)


def _as_json(report: ParityReport) -> dict[str, object]:
    def group(agreement: Agreement) -> dict[str, object]:
        shares = {
            "maps_close": agreement.maps_close,
            "pixels_equal": agreement.pixels_equal,
            "foreground_pixels_equal": agreement.foreground_pixels_equal,
        }
        return {**asdict(agreement), "sizes": sorted(agreement.sizes), "batches": sorted(agreement.batches), **shares}

    return {
        "met": report.met,
        "eager_seconds": report.eager_seconds,
        "onnx_seconds": report.onnx_seconds,
        "groups": {name: group(agreement) for name, agreement in report.groups.items()},
    }


def _show(progress: Progress, report: ParityReport) -> None:
    table = Table("input", "images", "sizes", "batches", "maps <= 1e-3", "largest", "pixels", "foreground", "met")
    for name, group in report.groups.items():
        shares = [f"{100 * share:.3f}%" for share in (group.pixels_equal, group.foreground_pixels_equal)]
        batches = ", ".join(map(str, sorted(group.batches)))
        counts = (name, str(group.images), str(len(group.sizes)), batches, f"{100 * group.maps_close:.3f}%")
        table.add_row(*counts, f"{group.largest:.1e}", *shares, "yes" if group.met else "NO")
    progress.say(table)
    bars = f"maps >= {MAPS_BAR:.1%}, pixels >= {PIXELS_BAR:.1%}, foreground pixels >= {FOREGROUND_BAR:.1%}"
    progress.say(f"bar: {bars}, at least {report.wanted} images with enough foreground")
    ratio = report.eager_seconds / report.onnx_seconds if report.onnx_seconds else 0.0
    progress.say(
        f"median time per image: eager torch {report.eager_seconds:.3f} s, onnxruntime {report.onnx_seconds:.3f} s "
        f"({ratio:.2f}x)"
    )
    progress.say("parity holds" if report.met else "parity does NOT hold")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison.

    Returns:
        0 where the bar is met, 1 where it is not, 2 for an error that the message explains.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    reports: list[ParityReport] = []
    config = tyro.cli(ParityConfig, args=args, prog="python -m cpn_export.parity")
    status = guarded(lambda: reports.append(run_parity(config, TerminalProgress(Console(width=120)))))
    return status or int(not reports[0].met)


if __name__ == "__main__":
    raise SystemExit(main())
