"""`cpn label`: pseudo masks of a split from a trained run, in VOC layout."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cpn_fast.cam.inference import Prediction, map_of, open_labeller, predictions
from cpn_fast.cam.mask_writer import MaskWriter
from cpn_fast.cam.options import LabelConfig
from cpn_fast.console.terminal import duration, item_progress
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import records_of
from cpn_fast.data.types import Record, Source
from cpn_fast.files.contact_sheet import SheetItem, write_contact_sheet
from cpn_fast.files.errors import DataError
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.mask_folder import MASK_FOLDER, mask_path, soft_path
from cpn_fast.files.masks import read_mask, write_labelmap
from cpn_fast.files.output_folder import MANIFEST_NAME, record_settings
from cpn_fast.files.shard import take_shard
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.disk_space import FILE_BYTES, MASK_BYTES, SOFT_BYTES, mean_pixels, need_space
from cpn_fast.inference.image_size import warn_of_size
from cpn_fast.inference.options import check_counts
from cpn_fast.inference.reader import Failure, InferenceOptions
from cpn_fast.metrics.maps import MapName
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder

SHEET_NAME = "contact_sheet.png"


@dataclass(frozen=True)
class LabelSummary:
    """What a labelling did.

    Attributes:
        written: images labelled now.
        skipped: images that were done already.
        failed: images that could not be read; the manifest says why.
        from_scores: of those written, images without labels, for which the network's own scores stood in.
        output: the folder.
    """

    written: int
    skipped: int
    failed: int
    from_scores: int
    output: Path


def run_label(config: LabelConfig) -> LabelSummary:
    """Label a split.

    Args:
        config: what to label, and how.

    Returns:
        how many images were labelled, skipped, failed.

    Raises:
        DataError: for a run, source or option that does not fit, an output folder that was labelled with other
            settings, a full disk, or if no image at all could be read.
    """
    console = Console()
    _check_options(config)
    run, source = RunFolder(config.run), open_source(config.data)
    beta = run.beta if config.beta is None else config.beta
    labeller = open_labeller(run, config.scales, config.flip, config.device, beta, config.threshold, config.compile)
    name = map_of(labeller, config.maps)
    classes = run.classes
    mapping = ClassMapping.between(source.classes, classes)
    split, every = records_of(source, config.split)
    warn_of_size(run, every, config.max_side)
    records = take_shard(every, config.shard)
    record_settings(config.output, _settings(config, run, beta, name), config.overwrite)
    write_labelmap(config.output / "labelmap.txt", classes)
    with Manifest(config.output / MANIFEST_NAME) as manifest:
        todo = _todo(config, records, mapping, classes, manifest)
        _say_plan(console, config, f"{source.spec} ({split})", todo, len(records) - len(todo), beta, name)
        options = InferenceOptions(config.max_side, config.batch_size, config.workers, use_labels=config.use_labels)
        stream = predictions(labeller, source, todo, mapping, options)
        writer = MaskWriter(config.output, classes, name, beta, config.void_band, config.soft_maps)
        entries = list(_label_all(console, stream, writer, manifest, len(todo), config))
        sheet = _write_sheet(config, source, every, manifest) if config.sheet else None
    summary = _summary(config, entries, len(records) - len(todo))
    _say_result(console, config, summary, entries, sheet)
    return summary


def _check_options(config: LabelConfig) -> None:
    if config.void_band is not None and not 0 <= config.void_band[0] <= config.void_band[1] <= 1:
        raise DataError(f"--void-band {config.void_band[0]} {config.void_band[1]}: expected lo <= hi, both in 0..1")
    check_counts(max_side=config.max_side, batch_size=config.batch_size, workers=config.workers)


def _settings(config: LabelConfig, run: RunFolder, beta: float, name: MapName) -> dict[str, Any]:
    """Everything that decides what a mask looks like."""
    return {
        "weights_sha256": weights_digest(run),
        "classes": list(run.classes),
        "maps": name,
        "beta": beta,
        "scales": list(config.scales),
        "flip": config.flip,
        "void_band": None if config.void_band is None else list(config.void_band),
        "max_side": config.max_side,
        "threshold": config.threshold,
        "use_labels": config.use_labels,
    }


def _todo(
    config: LabelConfig,
    records: Sequence[Record],
    mapping: ClassMapping,
    classes: Sequence[str],
    manifest: Manifest,
) -> list[Record]:
    """The records whose files are not all there, or whose image labels have changed since."""
    entries = manifest.entries()

    def done(record: Record) -> bool:
        mask, soft = mask_path(config.output, record.id), soft_path(config.output, record.id)
        entry = entries.get(record.id)
        if entry is None or entry["status"] != "ok" or not mask.is_file() or (config.soft_maps and not soft.is_file()):
            return False
        if record.labels is None or not config.use_labels:
            return entry.get("labels_from") == "scores"
        present = [name for name, held in zip(classes, mapping.vector(record.labels), strict=True) if held]
        return entry.get("labels_from") == "image" and entry.get("labels") == present

    return [record for record in records if not done(record)]


def _say_plan(
    console: Console, config: LabelConfig, data: str, todo: Sequence[Record], skipped: int, beta: float, name: str
) -> None:
    """What will be done and the disk it takes; refuses where that is more than there is."""
    console.print(
        f"[bold]{len(todo)}[/] images of {data} to label, {skipped} done already; "
        f"{name.upper()}, scales {' '.join(f'{s:g}' for s in config.scales)}, flip {config.flip}, beta {beta:g}",
        highlight=False,
    )
    if not todo:
        return
    each = mean_pixels(todo) * (MASK_BYTES + (SOFT_BYTES if config.soft_maps else 0)) + FILE_BYTES
    console.print(need_space(config.output, "masks", each * len(todo)), highlight=False, soft_wrap=True)


def _label_all(
    console: Console,
    stream: Iterator[Prediction | Failure],
    writer: MaskWriter,
    manifest: Manifest,
    total: int,
    config: LabelConfig,
) -> Iterator[dict[str, Any]]:
    """Label, write in threads, and yield the manifest's entries; the first images give the time estimate."""
    start = time.monotonic()
    head = list(itertools.islice(stream, min(total, config.batch_size)))
    if total:
        expected = (time.monotonic() - start) / len(head) * total
        console.print(f"time: about {duration(expected)}, by the first {len(head)}", highlight=False, soft_wrap=True)
    pending: deque[Future[dict[str, Any]]] = deque()

    def finish(limit: int) -> Iterator[dict[str, Any]]:
        while len(pending) > limit:
            entry = pending.popleft().result()
            manifest.append(entry)
            yield entry

    with item_progress(console, "label", total) as advance, ThreadPoolExecutor(config.workers) as pool:
        for item in itertools.chain(head, stream):
            if isinstance(item, Failure):
                entry = {
                    "id": item.record.id, "status": "error", "image": str(item.record.image_path), "error": item.error,
                }  # fmt: skip
                manifest.append(entry)
                yield entry
            else:
                pending.append(pool.submit(writer, item))
            yield from finish(limit=2 * config.workers)
            advance(1)
        yield from finish(limit=0)


def _write_sheet(config: LabelConfig, source: Source, records: Sequence[Record], manifest: Manifest) -> Path | None:
    """The contact sheet of the least confident masks of this split, those of earlier calls included."""
    known = {record.id: record for record in records}
    entries = [e for e in manifest.entries().values() if e["status"] == "ok" and e["id"] in known]
    entries.sort(key=lambda entry: (entry.get("confidence", 0.0), entry["id"]))
    items = []
    for entry in entries[: config.sheet]:
        try:
            image = source.read(known[entry["id"]]).image
            mask = read_mask(mask_path(config.output, entry["id"]))
        except DataError:
            continue  # gone since it was labelled; the sheet is a convenience
        title = f"{entry['id']}\n{entry.get('confidence', 0.0):.2f}  {', '.join(entry.get('labels') or ())}"
        items.append(SheetItem(image, mask, title))
    if not items:
        return None
    path = config.output / SHEET_NAME
    write_contact_sheet(path, items)
    return path


def _summary(config: LabelConfig, entries: Sequence[dict[str, Any]], skipped: int) -> LabelSummary:
    ok = [entry for entry in entries if entry["status"] == "ok"]
    from_scores = sum(entry["labels_from"] == "scores" for entry in ok)
    return LabelSummary(len(ok), skipped, len(entries) - len(ok), from_scores, config.output)


def _say_result(
    console: Console, config: LabelConfig, summary: LabelSummary, entries: Sequence[dict[str, Any]], sheet: Path | None
) -> None:
    console.print(f"{summary.written} masks written to {config.output / MASK_FOLDER}", highlight=False, soft_wrap=True)
    if summary.from_scores:
        console.print(
            f"[yellow]{summary.from_scores} without image labels: classes with a score above {config.threshold:g} (at "
            "least the best one) stood in[/]",
            highlight=False,
            soft_wrap=True,
        )
    failed = [entry for entry in entries if entry["status"] != "ok"]
    if failed:
        console.print(
            f"[red]{len(failed)} could not be read[/], see {config.output / 'manifest.jsonl'}; the first: ", end=""
        )
        console.print(failed[0]["error"], markup=False, highlight=False, soft_wrap=True)
    if sheet is not None:
        console.print(f"least confident masks: {sheet}", highlight=False, soft_wrap=True)
    if failed and not summary.written and not summary.skipped:
        raise DataError(f"none of the {len(failed)} images could be read; the first: {failed[0]['error']}")
