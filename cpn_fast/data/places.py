"""Where the images of a split stand in it, without a dictionary of a million names."""

from __future__ import annotations

from collections.abc import Sequence

from cpn_fast.data.types import Record
from cpn_fast.files.hash_index import HashIndex


class Places:
    """The place of each image by its id.

    Args:
        records: the split; 12 bytes of each are kept.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._found = HashIndex(((record.id, place) for place, record in enumerate(records)), "I")

    def find(self, image_id: str) -> int | None:
        """The place of an image; None where the split does not have it."""
        return next((place for place in self._found.find(image_id) if self._records[place].id == image_id), None)

    def of(self, image_id: str) -> int:
        """The place of an image of the split. Raises KeyError for another."""
        place = self.find(image_id)
        if place is None:
            raise KeyError(image_id)
        return place
