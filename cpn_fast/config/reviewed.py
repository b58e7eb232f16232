"""Options of commands that can go by what a person said of the masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.review_csv import Decision


@dataclass(frozen=True, kw_only=True)
class ReviewedOptions:
    """Which masks of a folder are taken, after a review.

    Attributes:
        only: take only the masks of which `cpn review` says so.
        review: the CSV that says it; None = review.csv in the folder of masks.
    """

    only: Decision | None = None
    review: Path | None = None

    def check_reviewed(self) -> None:
        """Raise DataError for a review that nobody goes by."""
        if self.review is not None and self.only is None:
            raise DataError(f"--review {self.review}: say what of it to take, e.g. --only accepted")
