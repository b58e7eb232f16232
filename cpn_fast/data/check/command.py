"""`cpn check-data SOURCE`: read everything once, count it, and list every problem with its file and line."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cpn_fast.data.check.estimates import Rates, measure_rates
from cpn_fast.data.check.labels import label_warnings, mask_warnings
from cpn_fast.data.check.options import CheckConfig
from cpn_fast.data.check.report import CheckReport, SplitCounts
from cpn_fast.data.check.sharing import leaks, pairs, sharing_warnings
from cpn_fast.data.check.tables import print_report
from cpn_fast.data.sources.base import FileSource, Scan, check_same_size
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.unlabelled import none_labelled
from cpn_fast.data.types import VOID, Record, Source
from cpn_fast.files.errors import DataError, DataProblems
from cpn_fast.files.member import ImageFile, beside, file_bytes

_THREADS = min(16, 2 * (os.cpu_count() or 1))
_SHOWN_ROWS = 3
_TIMED_IMAGES = 3
_TIMED_PIXELS = 1_000_000


@dataclass(frozen=True)
class Inspection:
    """What reading one image showed.

    Attributes:
        size: (width, height) of the image; None if it cannot be read.
        digest: of its pixels, by which copies are found.
        has_mask: whether it has a readable mask.
        mask_bytes: size of the mask file; 0 without one.
        values: of the mask, ascending; empty without one.
        errors: why image or mask cannot be used.
    """

    size: tuple[int, int] | None
    digest: bytes = b""
    has_mask: bool = False
    mask_bytes: int = 0
    values: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()


def check_source(
    source: Source,
    split: str | None = None,
    measure: bool = True,
    track: Callable[[int], object] | None = None,
    total: Callable[[int], object] | None = None,
) -> CheckReport:
    """Read every image and mask of a source once, in parallel threads.

    Args:
        source: the source.
        split: only this split; None = all.
        measure: also time superpixels and backbones, for the estimates, unless there are problems.
        track: called with 1 after each image.
        total: called once with the number of images.

    Raises:
        DataError: if the given split is unknown or cannot be read at all.
    """
    unreadable: list[str] = []
    scans = {split: _scan(source, split)} if split else _scan_all(source, unreadable)
    records = {record.image_path: record for scan in scans.values() for record in scan.records}
    if total:
        total(len(records))
    found = _inspect_all(source, list(records.values()), track)
    problems = unreadable + [str(problem) for scan in scans.values() for problem in scan.problems]
    problems += [error for path in records for error in found[path].errors]
    if records and not any(record.labels for record in records.values()):
        problems.append(none_labelled(source, list(records.values())))
    notes = [note for scan in scans.values() for note in scan.notes]
    notes += _copies(records, found) + _contradictions(source, records, found)
    trained = "train" if "train" in scans else next(iter(scans), "")
    warnings = label_warnings(source.classes, scans[trained].records, trained) if trained else []
    warnings += sharing_warnings(source.classes, scans[trained].records, trained) if trained else []
    warnings += dict.fromkeys(warning for scan in scans.values() for warning in scan.warnings)
    warnings += mask_warnings(source.classes, [(record, found[path].values) for path, record in records.items()])
    digests = {path: inspection.digest for path, inspection in found.items()}
    warnings += leaks({name: scan.records for name, scan in scans.items()}, digests)
    return CheckReport(
        spec=source.spec,
        classes=source.classes,
        splits={name: _count(scan.records, found, len(source.classes)) for name, scan in scans.items()},
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(dict.fromkeys(notes)),
        warnings=tuple(warnings),
        rates=_rates(source, records, found) if measure and not problems else None,
        description=source.description if isinstance(source, FileSource) else "",
        preview=_preview(source, scans),
        pairs=pairs(source.classes, list(records.values())),
    )


def _preview(source: Source, scans: dict[str, Scan]) -> tuple[tuple[str, str, str, str, str], ...]:
    """The first entries: where they stand, image, labels, split and mask, as they were understood."""
    if not isinstance(source, FileSource):
        return ()
    splits: dict[str, list[str]] = {}
    for name, scan in scans.items():
        for record in scan.records:
            splits.setdefault(record.id, []).append(name)
    rows = []
    for place, record in source.first(_SHOWN_ROWS, {name: scan.records for name, scan in scans.items()}):
        labels = "not labelled" if record.labels is None else ", ".join(source.classes[n] for n in record.labels)
        image = beside(record.image_path, source.root)
        mask = beside(record.mask_path, source.root) if record.mask_path else "-"
        rows.append((place, image, labels or "none of the classes", ", ".join(splits[record.id]), mask))
    return tuple(rows)


def _scan(source: Source, split: str) -> Scan:
    return source.scan(split) if isinstance(source, FileSource) else Scan(tuple(source.records(split)))


def _scan_all(source: Source, problems: list[str]) -> dict[str, Scan]:
    """Every split that can be scanned; a split that cannot (COCO's lists without its photographs, say) is a problem."""
    scans = {}
    for split in source.splits():
        try:
            scans[split] = _scan(source, split)
        except DataError as error:
            problems.append(str(error))
    return scans


def _inspect_all(
    source: Source, records: list[Record], track: Callable[[int], object] | None
) -> dict[ImageFile, Inspection]:
    found: dict[ImageFile, Inspection] = {}
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for record, inspection in zip(records, pool.map(lambda r: _inspect(source, r), records), strict=True):
            found[record.image_path] = inspection
            if track:
                track(1)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest of the data set
    return found


def _inspect(source: Source, record: Record) -> Inspection:
    errors = []
    image = mask = None
    try:
        image = source.read(record).image
    except DataError as error:
        errors.append(str(error))
    try:
        if isinstance(source, FileSource):
            mask = source.read_mask(record)
            if image is not None and mask is not None:
                check_same_size(record, image, mask)
        elif image is not None:
            mask = source.read(record, with_mask=True).mask
    except DataError as error:
        errors.append(str(error))
        mask = None
    has_file = mask is not None and record.mask_path is not None
    return Inspection(
        size=None if image is None else (image.shape[1], image.shape[0]),
        digest=b"" if image is None else hashlib.blake2b(image.tobytes(), digest_size=16).digest(),
        has_mask=mask is not None,
        mask_bytes=file_bytes(record.mask_path) if has_file and record.mask_path else 0,
        values=() if mask is None else tuple(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()),
        errors=tuple(errors),
    )


def _extra_classes(record: Record, values: tuple[int, ...], classes: tuple[str, ...]) -> str:
    """Classes of the mask that the labels lack. (The reverse is common: an object may be void in the mask.)"""
    if record.labels is None:
        return ""
    extra = sorted({value - 1 for value in values if 0 < value < VOID} - set(record.labels))
    return ", ".join(classes[number] for number in extra)


def _contradictions(source: Source, records: dict[ImageFile, Record], found: dict[ImageFile, Inspection]) -> list[str]:
    extra = {path: _extra_classes(record, found[path].values, source.classes) for path, record in records.items()}
    odd = [path for path in records if extra[path]]
    if not odd:
        return []
    first = f"{records[odd[0]].id} ({extra[odd[0]]})"
    return [
        f"masks with classes that the image's labels lack: {len(odd)}, e.g. {first}; is the order of classes right?"
    ]


def _copies(records: dict[ImageFile, Record], found: dict[ImageFile, Inspection]) -> list[str]:
    first: dict[bytes, ImageFile] = {}
    notes = []
    for path in records:
        digest = found[path].digest
        if digest and first.setdefault(digest, path) != path:
            notes.append(f"{path} shows the same picture as {first[digest]}")
    return notes


def _count(records: Iterable[Record], found: dict[ImageFile, Inspection], num_classes: int) -> SplitCounts:
    records = list(records)
    per_class = [0] * num_classes
    for record in records:
        for number in record.labels or ():
            per_class[number] += 1
    sizes = [found[record.image_path].size for record in records]
    return SplitCounts(
        images=len(records),
        labelled=sum(record.labels is not None for record in records),
        with_mask=sum(found[record.image_path].has_mask for record in records),
        per_class=tuple(per_class),
        sizes=tuple(size for size in sizes if size is not None),
    )


def _rates(source: Source, records: dict[ImageFile, Record], found: dict[ImageFile, Inspection]) -> Rates | None:
    sizes = {path: found[path].size for path in records}
    readable = [path for path, size in sizes.items() if size is not None]
    if not readable or importlib.util.find_spec("torch") is None:
        return None
    small = [path for path in readable if np.prod(sizes[path] or 0) <= _TIMED_PIXELS][:_TIMED_IMAGES]
    masks = [path for path in readable if found[path].mask_bytes]
    pixels = sum(int(np.prod(sizes[path] or 0)) for path in masks)
    mask_bytes = sum(found[path].mask_bytes for path in masks) / pixels if pixels else None
    return measure_rates(source, [records[path] for path in small], mask_bytes)


def run_check(config: CheckConfig) -> CheckReport:
    """Check a source and print what was found.

    Raises:
        DataError: after printing, if there are problems; or if the source cannot be read at all.
    """
    if config.html is not None:
        import jinja2  # noqa: F401  missing, it is better said before everything is read

    console = Console(stderr=True)
    source = open_source(config.data, config.max_pixels)
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)
        report = check_source(
            source,
            config.split,
            measure=config.estimate,
            track=lambda count: progress.advance(task, count),
            total=lambda count: progress.update(task, total=count),
        )
    if config.strict:
        report = replace(report, problems=report.problems + report.warnings, warnings=())
    print_report(report, Console())
    if config.html is not None:
        from cpn_fast.data.check.page import write_page

        write_page(config.html, report, source)
        console.print(f"page: {config.html}", markup=False, highlight=False, soft_wrap=True)
    if lacking := what_is_missing():
        console.print(lacking, markup=False, highlight=False, soft_wrap=True)
    if report.problems:
        count = len(report.problems)
        raise DataProblems(
            f"{report.spec}: {count} problem{'s' if count > 1 else ''} (listed above); mend them and check again"
        )
    return report


def what_is_missing() -> str:
    """What this machine lacks for training and what that costs, in one line; "" where nothing is missing."""
    if importlib.util.find_spec("torch") is None:
        return "costs are not estimated, and nothing can be trained here: pip install 'cpn-fast[train]' for both"
    from cpn_kernels import native_library

    return native_library.missing()
