"""`cpn segment predict`: the masks of a split from a segmentation run, in VOC layout, with a dense CRF if asked for."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cpn_fast.console.terminal import duration, item_progress
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import records_of
from cpn_fast.data.types import Record
from cpn_fast.device import threads_shared_by
from cpn_fast.files.errors import DataError
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.mask_folder import MASK_FOLDER, mask_path
from cpn_fast.files.masks import write_labelmap, write_mask
from cpn_fast.files.output_folder import MANIFEST_NAME, explained_writes, record_settings
from cpn_fast.files.shard import take_shard
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.disk_space import FILE_BYTES, MASK_BYTES, mean_pixels, need_space
from cpn_fast.inference.image_size import warn_of_size
from cpn_fast.inference.reader import Failure
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.inference import Segmentation, open_segmenters, segmentations
from cpn_fast.segment.options import PredictConfig
from cpn_fast.segment.voc_zip import check_voc_classes, write_voc_zip
from cpn_kernels.ops.dense_crf import Settings

_MULTI = "multi-scale"


@dataclass(frozen=True)
class PredictSummary:
    """What a prediction did.

    Attributes:
        written: masks written now.
        skipped: masks that were done already.
        failed: images that could not be read; the manifest says why.
        output: the folder.
    """

    written: int
    skipped: int
    failed: int
    output: Path


def run_segment_predict(config: PredictConfig) -> PredictSummary:
    """Predict a split.

    Args:
        config: what to predict, and how.

    Returns:
        how many masks were written, skipped, failed.

    Raises:
        DataError: for a run, source or option that does not fit, an output folder of other settings, a full disk, if no
            image at all could be read, or for a zip of which masks are missing.
    """
    console, options = Console(), config.inference_options()
    crf = config.crf_settings(config.crf_preset) if config.crf else None
    run, source = RunFolder(config.run), open_source(config.data)
    segmenters = open_segmenters(run, {_MULTI: (config.scales, config.flip)}, config.device)
    classes = run.classes
    if config.voc_zip is not None:
        check_voc_classes(classes)
    mapping = ClassMapping.between(source.classes, classes)
    split, every = records_of(source, config.split)
    records = take_shard(every, config.shard)
    warn_of_size(run, records, config.max_side)
    with explained_writes(config.output, "settings and labelmap"):
        record_settings(config.output, _settings(config, run, crf), config.overwrite, "predicted")
        write_labelmap(config.output / "labelmap.txt", classes)
    writer = PredictionWriter(config.output, classes, crf)
    with Manifest(config.output / MANIFEST_NAME) as manifest:
        todo = _todo(config, records, mapping, writer, manifest)
        skipped = len(records) - len(todo)
        console.print(
            f"[bold]{len(todo)}[/] images of {source.spec} ({split}) to segment, {skipped} done already; scales "
            f"{' '.join(f'{s:g}' for s in config.scales)}, flip {config.flip}, dense CRF {crf is not None}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        if todo:
            needed = (mean_pixels(todo) * MASK_BYTES + FILE_BYTES) * len(todo)
            console.print(need_space(config.output, "masks", needed), highlight=False, soft_wrap=True)
        stream = segmentations(segmenters, source, todo, mapping, options, keep_probabilities=crf is not None)
        made = list(_write_all(console, stream, writer, manifest, len(todo), config.workers))
    summary = _say_result(console, config, made, skipped)
    if config.voc_zip is not None:
        write_voc_zip(config.voc_zip, config.output, [record.id for record in every])
        console.print(f"{config.voc_zip}: {len(every)} masks", highlight=False, soft_wrap=True)
    return summary


def _settings(config: PredictConfig, run: RunFolder, crf: Settings | None) -> dict[str, Any]:
    """Everything that decides what a mask looks like."""
    return {
        "weights_sha256": weights_digest(run),
        "classes": list(run.classes),
        "scales": list(config.scales),
        "flip": config.flip,
        "use_labels": config.use_labels,
        "max_side": config.max_side,
        "crf": None if crf is None else dataclasses.asdict(crf),
    }


def _todo(
    config: PredictConfig,
    records: Sequence[Record],
    mapping: ClassMapping,
    writer: PredictionWriter,
    manifest: Manifest,
) -> list[Record]:
    """The records whose masks are not there, or were limited to other labels."""
    entries = manifest.entries()

    def done(record: Record) -> bool:
        entry = entries.get(record.id)
        if entry is None or entry["status"] != "ok" or not mask_path(config.output, record.id).is_file():
            return False
        limited = config.use_labels and record.labels is not None
        labels = writer.names(mapping.vector(record.labels or ())) if limited else None
        return entry.get("labels") == labels

    return [record for record in records if not done(record)]


@dataclass(frozen=True)
class PredictionWriter:
    """How one prediction becomes a mask on disk. Called in threads.

    Attributes:
        output: the folder.
        classes: the K foreground class names.
        crf: numbers of the CRF, None without.
    """

    output: Path
    classes: tuple[str, ...]
    crf: Settings | None

    def names(self, present: Sequence[bool] | np.ndarray) -> list[str]:
        """The names of the classes that are True in a row [K]."""
        return [name for name, held in zip(self.classes, present, strict=True) if held]

    def __call__(self, found: Segmentation) -> dict[str, Any]:
        """Refine and write the mask.

        Returns:
            the manifest entry.

        Raises:
            DataError: where the mask cannot be written, or the CRF's numbers do not fit the image.
        """
        before = found.mask(_MULTI)
        mask = before if self.crf is None else found.crf_mask(self.crf)
        image_id = found.record.id
        with explained_writes(self.output, f"the mask of {image_id}"):
            write_mask(mask_path(self.output, image_id), mask)
        present = np.bincount(mask.ravel(), minlength=len(self.classes) + 1)[1:] > 0
        entry = {
            "id": image_id,
            "status": "ok",
            "image": str(found.record.image_path),
            "mask": mask_path(Path(), image_id).as_posix(),
            "width": found.size[1],
            "height": found.size[0],
            "labels": None if found.allowed is None else self.names(found.allowed),
            "predicted": self.names(present),
            "foreground": round(float(np.mean(mask > 0)), 4),
        }
        return entry if self.crf is None else {**entry, "changed": round(float(np.mean(mask != before)), 4)}


def _write_all(
    console: Console,
    stream: Iterator[Segmentation | Failure],
    writer: PredictionWriter,
    manifest: Manifest,
    total: int,
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Run CRF and writing in threads while the network works on the next images; yield the manifest's entries."""
    pending: deque[Future[dict[str, Any]]] = deque()
    start, number = time.monotonic(), 0

    def finish(limit: int) -> Iterator[dict[str, Any]]:
        while len(pending) > limit:
            entry = pending.popleft().result()
            with explained_writes(writer.output, MANIFEST_NAME):
                manifest.append(entry)
            yield entry

    with (
        item_progress(console, "segment", total) as advance,
        nullcontext() if writer.crf is None else threads_shared_by(workers),
        ThreadPoolExecutor(workers) as pool,
    ):
        for number, item in enumerate(stream, start=1):
            if isinstance(item, Failure):
                pending.append(pool.submit(_failed, item))
            else:
                pending.append(pool.submit(writer, item))
            yield from finish(limit=2 * workers)
            advance(1)
            if number == 1:
                expected = (time.monotonic() - start) * total
                console.print(f"time: about {duration(expected)}, by the first image", highlight=False)
        yield from finish(limit=0)


def _failed(failure: Failure) -> dict[str, Any]:
    record = failure.record
    return {"id": record.id, "status": "error", "image": str(record.image_path), "error": failure.error}


def _say_result(
    console: Console, config: PredictConfig, made: Sequence[dict[str, Any]], skipped: int
) -> PredictSummary:
    ok = [entry for entry in made if entry["status"] == "ok"]
    failed = [entry for entry in made if entry["status"] != "ok"]
    text = f"{len(ok)} masks written to {config.output / MASK_FOLDER}"
    if ok and config.crf:
        changed = sum(entry["changed"] for entry in ok) / len(ok)
        text += f"; the CRF gave {100 * changed:.1f}% of their pixels another label"
    console.print(text, highlight=False, soft_wrap=True)
    if failed:
        first = failed[0]["error"]
        console.print(
            f"[red]{len(failed)} could not be read[/], see {config.output / MANIFEST_NAME}; the first: ", end=""
        )
        console.print(first, markup=False, highlight=False, soft_wrap=True)
        if not ok and not skipped:
            raise DataError(f"none of the {len(failed)} images could be read; the first: {first}")
    return PredictSummary(len(ok), skipped, len(failed), config.output)
