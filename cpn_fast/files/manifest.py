"""`manifest.jsonl`: one line per image that was worked on, so that a second run skips what is done."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

import numpy as np

from cpn_fast.files.errors import DataError
from cpn_fast.files.hash_index import HashIndex
from cpn_fast.files.names import path_fault, quoted
from cpn_fast.files.regular import open_regular

_log = logging.getLogger(__name__)

_SYNC_SECONDS = 1.0
_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    "status": (str,),
    "image": (str,),
    "mask": (str,),
    "error": (str,),
    "width": (int,),
    "height": (int,),
    "labels": (list, NoneType),
    "predicted": (list, NoneType),
    "labels_from": (str, NoneType),
    "foreground": _NUMBER,
    "confidence": _NUMBER,
    "changed": _NUMBER,
    "input_sha256": (str, NoneType),
    "scores_sha256": (str, NoneType),
}
"""The types that an entry's values have where they are there."""


class Manifest:
    """An append-only log of JSON lines. Threads, and processes on one machine, may append at the same time.

    Args:
        path: the file; it and its folder are made by the first `append`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._synced = time.monotonic()

    def append(self, entry: Mapping[str, Any]) -> int:
        """Add one line; on disk after a second at most of further lines, and when the manifest is closed.

        A line that a power cut takes makes its image be done again, nothing worse.

        Args:
            entry: JSON-able values; `id` (str) and `status` (str, "ok" when the image is done) are required.

        Returns:
            the byte at which the line begins, for `lines_at`.

        Raises:
            DataError: if `id` or `status` is missing.
        """
        missing = [key for key in ("id", "status") if not isinstance(entry.get(key), str)]
        if missing:
            raise DataError(
                f"{self.path}: a manifest entry needs a string {' and '.join(missing)}; found {dict(entry)!r}"
            )
        line = (json.dumps(dict(entry), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        with self._lock:
            descriptor = self._open()
            os.write(descriptor, line)  # one write to a file opened for appending: lines of two writers never mix
            begin = os.lseek(descriptor, 0, os.SEEK_CUR) - len(line)
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                os.fsync(descriptor)
                self._synced = time.monotonic()
        return begin

    def lines_at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The entries that `append` has written at some bytes. Raises DataError where the file has gone since."""
        try:
            with open_regular(self.path) as file:
                for place in places:
                    file.seek(place)
                    yield json.loads(file.readline())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: changed in the meantime ({error}); run the command again") from None

    def entries(self) -> dict[str, dict[str, Any]]:
        """The last entry of every id, in the order of first appearance.

        A line torn by a crash, or with a value that no writer gives, is skipped with a warning. An entry has `id`,
        which names a file below a folder, and `status`; its other values are of the right type where they are there.

        Raises:
            DataError: if the file is there and cannot be read.
        """
        return {entry["id"]: entry for _, entry in self._lines()}

    def index(self) -> ManifestIndex:
        """Where the last entry of every id stands, in 17 bytes a line. Warns and raises as `entries`."""
        return ManifestIndex(self.path, ((offset, entry["id"]) for offset, entry in self._lines()))

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(Byte at which it begins, entry) of every line that is one, one after the other."""
        try:
            with open_regular(self.path) as file:
                offset = 0
                for number, line in enumerate(file, start=1):
                    begin, offset = offset, offset + len(line)
                    if not line.strip():
                        continue
                    try:
                        entry = json.loads(line.decode("utf-8"))
                        fault = entry_fault(entry)
                    except (ValueError, RecursionError):
                        fault = "no JSON"
                    if fault:
                        _log.warning(
                            "%s, line %d: not a manifest entry (%s), skipped (its image is done again)",
                            self.path, number, fault,
                        )  # fmt: skip
                    else:
                        yield begin, entry
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.path}: cannot read it ({error.strerror}); expected a manifest") from None

    def stream(self) -> Iterator[dict[str, Any]]:
        """The last entry of every id, in the order of these lines. Warns and raises as `entries`."""
        return (entry for _, entry in self._placed())

    def last_lines(self, keep: Callable[[dict[str, Any]], bool]) -> ManifestLines:
        """Those of the last entries of every id that `keep` is true of. Warns and raises as `entries`."""
        return ManifestLines(self, array("Q", (place for place, entry in self._placed() if keep(entry))))

    def _placed(self) -> Iterator[tuple[int, dict[str, Any]]]:
        index = self.index()
        try:
            yield from index.entries()
        finally:
            index.close()

    def done(self) -> set[str]:
        """Ids whose last status is "ok"."""
        return {name for name, entry in self.entries().items() if entry.get("status") == "ok"}

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        with self._lock:
            if self._descriptor is not None:
                with suppress(OSError):  # of a full disk `append` has told
                    os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                os.write(self._descriptor, b"\n")  # ends a torn line, so that the next entry is not glued to it
        return self._descriptor


@dataclass(frozen=True)
class ManifestLines(Sequence[dict[str, Any]]):
    """Some lines of a manifest, read when they are asked for: 8 bytes an image, not a dict.

    Attributes:
        manifest: where they are.
        places: the byte at which each begins.
    """

    manifest: Manifest
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.manifest.lines_at(self.places)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return ManifestLines(self.manifest, self.places[number])
        return next(self.manifest.lines_at([self.places[number]]))


class ManifestIndex:
    """The last entry of every id, read when it is asked for.

    Args:
        path: the manifest.
        lines: (byte at which it begins, id) of its lines, in order.
    """

    def __init__(self, path: Path, lines: Iterable[tuple[int, str]]) -> None:
        self._path = path
        self._offsets = HashIndex((name, offset) for offset, name in lines)
        self._file: BinaryIO | None = None

    def find(self, name: str) -> dict[str, Any] | None:
        """The entry of an id; None where there is none."""
        for offset in reversed(self._offsets.find(name)):
            entry = self._at(offset)
            if entry["id"] == name:
                return entry
        return None

    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """All of them with the byte at which each begins, in the order of their lines."""
        for offset in map(int, np.setdiff1d(self._offsets.numbers(), self._outdated(), assume_unique=True)):
            yield offset, self._at(offset)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _outdated(self) -> np.ndarray[Any, Any]:
        """Where lines begin that another one of the same id follows."""
        found = array("Q")
        for offsets in self._offsets.shared():
            names = set()
            for offset in reversed(offsets):
                name = self._at(offset)["id"]
                if name in names:
                    found.append(offset)
                names.add(name)
        return np.array(found, np.uint64)

    def _at(self, offset: int) -> dict[str, Any]:
        self._file = self._file or open_regular(self._path)
        self._file.seek(offset)
        entry: dict[str, Any] = json.loads(self._file.readline())
        return entry


def entry_fault(entry: Any) -> str:
    """What is wrong with a line's value; "" where it is an entry."""
    if not isinstance(entry, dict):
        return f"no object but {type(entry).__name__}"
    if fault := path_fault(entry.get("id")):
        return f"its id {fault}"
    for key, kinds in _TYPES.items():
        value = entry.get(key)
        if key not in entry:
            if key == "status":
                return "no status"
        elif not isinstance(value, kinds) or isinstance(value, bool):
            return f"{key} is {quoted(value)}"
        elif isinstance(value, list) and not all(isinstance(item, str) for item in value):
            return f"{key} holds other things than names"
    return ""
