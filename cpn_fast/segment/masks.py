"""The masks that a segmentation network trains on: a folder of them or the source's own, checked before training."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from cpn_fast.data.loading.parallel import parallel_map
from cpn_fast.data.sources.base import check_same_size
from cpn_fast.data.types import Record, Sample, Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.mask_folder import MASK_FOLDER, MaskFolder, seen_instead
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.review_csv import REVIEW_NAME, Decision, decided_names
from cpn_fast.inference.class_mapping import ClassMapping

log = logging.getLogger(__name__)

TRUTH = "truth"
"""Value of `--masks` for the source's own masks."""


class TrainingMasks(Protocol):
    """Where masks come from, by record."""

    def read(self, record: Record) -> Sample:
        """Image and mask, in the source's class values. Raises DataError where one is missing or does not fit."""

    def check(self, record: Record) -> str | None:
        """Look whether the record can be used.

        Returns:
            None, or what is not there where it has no mask.

        Raises:
            DataError: where its mask cannot be read, or does not fit the image or the classes.
        """


@dataclass(frozen=True)
class TruthMasks:
    """The source's own masks: the upper bound of what pseudo masks can give."""

    source: Source

    def read(self, record: Record) -> Sample:
        """Image and mask."""
        sample = self.source.read(record, with_mask=True)
        if sample.mask is None:
            raise DataError(f"{record.image_path}: has no mask in {self.source.spec}; training needs one")
        return sample

    def check(self, record: Record) -> str | None:
        """Read image and mask; some sources make masks as they are read."""
        found = self.source.read(record, with_mask=True).mask is not None
        return None if found else f"that of {record.image_path}"


@dataclass(frozen=True)
class FolderMasks:
    """Masks in VOC layout.

    Attributes:
        source: reads the images.
        folder: the masks.
        mapping: the folder's classes in the source's order.
    """

    source: Source
    folder: MaskFolder
    mapping: ClassMapping

    def read(self, record: Record) -> Sample:
        """Image and mask."""
        path = self.folder.mask_path(record.id)
        mask = self.folder.read(record.id, len(self.mapping.labels))
        sample = self.source.read(dataclasses.replace(record, mask_path=path))
        check_same_size(sample.record, sample.image, mask)
        return dataclasses.replace(sample, mask=self.mapping.mask(mask))

    def check(self, record: Record) -> str | None:
        """Read the mask, and of the image its header."""
        if not self.folder.has(record.id):
            return str(self.folder.mask_path(record.id))
        self.folder.read(record.id, len(self.mapping.labels), record.image_path)
        return None


def open_masks(masks: str, source: Source) -> TrainingMasks:
    """Find the masks that `--masks` names.

    Args:
        masks: a folder, or "truth".
        source: what they are masks of.

    Raises:
        DataError: for a folder without masks, or one with a class that the source doesn't know.
    """
    if masks == TRUTH:
        return TruthMasks(source)
    folder = find_masks(Path(masks))
    if folder is None:
        hint = seen_instead(Path(masks))
        raise DataError(
            f"--masks {masks}: no masks there ({MASK_FOLDER}/ID.png or ID.png); give the folder that `cpn label` or "
            f"`cpn refine` wrote, or `--masks {TRUTH}` for the masks of {source.spec}"
            f"{hint}"
        )
    folder.warn_if_half_done()
    classes = folder.classes() or source.classes
    unknown = [name for name in classes if name not in source.classes]
    if unknown:
        raise DataError(
            f"--masks {masks}: labelmap.txt names {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}, which "
            f"{source.spec} does not know; expected classes among {', '.join(source.classes)}"
        )
    return FolderMasks(source, folder, ClassMapping.between(classes, source.classes))


@dataclass(frozen=True)
class Finding:
    """What a look at one record gave: "missing" and what is, or "wrong" and the error."""

    kind: Literal["ok", "missing", "wrong"]
    text: str = ""


def examine(masks: TrainingMasks, record: Record) -> Finding:
    """Look at a record's mask."""
    try:
        absent = masks.check(record)
    except DataError as error:
        return Finding("wrong", str(error))
    return Finding("ok") if absent is None else Finding("missing", absent)


def reviewed(
    masks: TrainingMasks, records: Sequence[Record], decision: Decision | None, review: Path | None
) -> list[bool]:
    """Which records a person said this of, by their masks.

    Args:
        masks: where they come from.
        records: the split.
        decision: what was said; None = every record counts.
        review: the file that says it; None = `review.csv` in the folder of masks.

    Raises:
        DataError: for masks of the source, which nobody reviews, a file that does not fit, or if no record is left.
    """
    if decision is None:
        return [True] * len(records)
    if not isinstance(masks, FolderMasks):
        raise DataError(f"--only {decision}: goes by a review of a folder of masks; leave it out with --masks {TRUTH}")
    folder = masks.folder
    path = folder.root / REVIEW_NAME if review is None else review
    names = decided_names(folder, folder.paths(), decision, path)
    chosen = [record.id in names for record in records]
    if not any(chosen):
        raise DataError(
            f"{path}: none of its {len(names)} {decision} masks is of this split ({len(records)} images, "
            f"{records[0].id!r} for instance); review the masks of the split that is trained on"
        )
    log.info("%d of %d images: those whose mask is %s by %s", sum(chosen), len(records), decision, path)
    return chosen


def check_masks(
    masks: TrainingMasks, records: Sequence[Record], allow_missing: bool, progress: Progress = SILENT
) -> list[bool]:
    """Look at every mask before training, in parallel.

    Args:
        masks: where they come from.
        records: the split.
        allow_missing: leave out what has no mask, with a warning.
        progress: where a bar is shown.

    Returns:
        per record, whether it can be trained on.

    Raises:
        DataError: for a mask that does not fit its image or the classes, or (unless allowed) is missing; with the
            number of such masks, naming the first.
    """
    findings = []
    with progress.items("check masks", len(records)) as advance:
        for finding in parallel_map(partial(examine, masks), records, chunk=32):
            findings.append(finding)
            advance(1)
    wrong = [finding.text for finding in findings if finding.kind == "wrong"]
    if wrong:
        more = f" ({len(wrong) - 1} more of the {len(records)} images cannot be used either)" if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0]}{more}")
    absent = [finding.text for finding in findings if finding.kind == "missing"]
    if absent and (not allow_missing or len(absent) == len(records)):
        rest = "" if len(absent) == len(records) else ", or train without these images by --allow-missing"
        raise DataError(
            f"{len(absent)} of {len(records)} images have no mask, the first {absent[0]}; make the masks of this split "
            f"first{rest}"
        )
    if absent:
        log.warning("%d of %d images have no mask and are excluded, the first %s", len(absent), len(records), absent[0])
    return [finding.kind == "ok" for finding in findings]
