"""What `cpn evaluate` counts of masks on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cpn_fast.data.types import Record
from cpn_fast.files.jobs import Entry
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.inference.record_work import RecordWork
from cpn_fast.metrics.beta_sweep import check_mask
from cpn_fast.metrics.confusion import confusion_of


@dataclass(frozen=True, kw_only=True)
class MaskCounts(RecordWork[Record]):
    """The confusion counts of masks.

    An entry holds `counts` as `confusion_of` gives them, None where there is nothing to compare, and `missing`: where
    the mask of an image with ground truth should be and is not, else None.

    Attributes:
        folder: of the masks.
    """

    verb: ClassVar[str] = "evaluate"

    folder: MaskFolder

    def work(self, item: Record) -> Entry:
        """Count one mask. Raises DataError for an image or mask that cannot be read, or masks that do not fit."""
        entry: Entry = {"id": item.id, "status": "ok", "counts": None, "missing": None}
        truth = self.source.read(item, with_mask=True).mask
        if truth is None:
            return entry
        path, classes = self.folder.mask_path(item.id), self.mapping.num_classes
        if not self.folder.has(item.id):
            return {**entry, "missing": str(path)}
        predicted = self.folder.read(item.id, classes)
        truth = self.mapping.mask(truth)
        check_mask(truth, predicted.shape, classes, f"{item.mask_path or item.image_path} and {path}")
        return {**entry, "counts": confusion_of(truth, predicted, classes)}
