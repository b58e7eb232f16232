"""What is known of the cached maps of every image of a split, packed: some 70 bytes an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpn_fast.data.places import Places
from cpn_fast.data.superpixels.maps import LEVELS, Entry
from cpn_fast.data.types import Record

_ROW = np.dtype([
    ("key", "V16"),
    ("shares", "f8", LEVELS),
    ("asked", "i4", LEVELS),
    ("actual", "i4", LEVELS),
    ("known", "?"),
    ("computed", "?"),
])  # fmt: skip


def maps_path(folder: Path, key: str) -> Path:
    """The file of the maps with a key, 32 hexadecimal digits."""
    return folder / key[:2] / f"{key}.npz"


class Entries:
    """The entries of the images, by their ids.

    Args:
        records: the images.
        folder: of the cache.
    """

    def __init__(self, records: Sequence[Record], folder: Path) -> None:
        self._folder = folder
        self._places = Places(records)
        self._rows = np.zeros(len(records), _ROW)

    def put(self, image_id: str, entry: Entry) -> None:
        """Keep an image's entry."""
        key = np.void(bytes.fromhex(entry.path.stem))
        row = (key, entry.shares, entry.asked, entry.actual, True, entry.computed)
        self._rows[self._places.of(image_id)] = row

    def find(self, image_id: str) -> Entry | None:
        """The entry of an image; None where none was kept."""
        place = self._places.find(image_id)
        row = None if place is None else self._rows[place]
        if row is None or not row["known"]:
            return None
        shares, asked, actual = (tuple(row[name].tolist()) for name in ("shares", "asked", "actual"))
        path = maps_path(self._folder, row["key"].tobytes().hex())
        return Entry(path, shares, asked, actual, bool(row["computed"]))

    @property
    def computed(self) -> int:
        """Images whose maps this run made."""
        return int(self._rows["computed"].sum())

    def segments(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Segments asked for and made, int32 [n, LEVELS] each, of the images that have an entry."""
        known = self._rows[self._rows["known"]]
        return known["asked"], known["actual"]
