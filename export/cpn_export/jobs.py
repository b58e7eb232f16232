"""Which images `cpn-label` works on, and which labels each one has."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.images import list_images
from cpn_fast.files.labels_csv import LabelRow, LabelTable, read_label_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One image to label.

    Attributes:
        id: the mask is `SegmentationClass/ID.png`; path relative to the folder, or file name, without suffix.
        path: the image file.
        names: under which a label file may list it, the most exact first.
        labels: class indices 0..K-1; None where no label is known and the network's scores stand in.
    """

    id: str
    path: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None


def find_jobs(paths: Sequence[Path]) -> list[Job]:
    """All images of the given folders (recursively, by suffix) and files (whatever their suffix), sorted by id.

    Raises:
        DataError: if a path does not exist, nothing is found, or two images would have one id.
    """
    jobs: dict[str, Job] = {}
    for path in paths:
        for job in _jobs_of(path):
            other = jobs.setdefault(job.id, job)
            if other.path != job.path:
                raise DataError(
                    f"{job.path} and {other.path} would both be written as {job.id}.png; rename one, or label them "
                    "into two folders"
                )
    if not jobs:
        raise DataError(f"{', '.join(map(str, paths))}: no images (by suffix) found")
    return [jobs[key] for key in sorted(jobs)]


def _jobs_of(path: Path) -> list[Job]:
    if path.is_dir():
        jobs = []
        for image in list_images(path):
            relative = image.relative_to(path)
            names = (relative.as_posix(), f"{path.resolve().name}/{relative.as_posix()}")
            jobs.append(Job(relative.with_suffix("").as_posix(), image, names))
        return jobs
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected images")
    return [Job(path.stem, path, (path.as_posix(), path.name))]


def with_labels(jobs: Sequence[Job], path: Path, classes: Sequence[str]) -> list[Job]:
    """Give every job its labels from a CSV `image,labels`; images that it does not list keep None.

    Rows without an image are named in a warning: a shard or a part of a data set may well leave rows over.

    Args:
        jobs: the images.
        path: the CSV; images by path relative to the folder, or by file name, with or without suffix.
        classes: the K class names of the model.

    Raises:
        DataError: with file and line, for a line that cannot be used, e.g. an unknown class; or if no row at all
            names one of the images.
    """
    table = read_label_table(path, classes)
    if table.errors:
        line, message = table.errors[0]
        more = f" ({len(table.errors) - 1} more lines cannot be used)" if len(table.errors) > 1 else ""
        raise DataError(f"{path}, line {line}: {message}{more}")
    rows = [_row_of(job, table) for job in jobs]
    used = {row.line for row in rows if row is not None}
    if not used:
        raise DataError(
            f"{path}: none of its {len(table.rows)} rows names one of the {len(jobs)} images; expected paths relative "
            f"to the folder, such as {jobs[0].names[0]!r}"
        )
    unused = [row for row in table.rows if row.line not in used]
    if unused:
        examples = ", ".join(f"{row.image!r} (line {row.line})" for row in unused[:3])
        logger.warning("%s: %d rows name no image that was given: %s ...", path, len(unused), examples)
    return [
        Job(job.id, job.path, job.names, None if row is None else row.labels)
        for job, row in zip(jobs, rows, strict=True)
    ]


def _row_of(job: Job, table: LabelTable) -> LabelRow | None:
    return next((row for row in map(table.find, job.names) if row is not None), None)
