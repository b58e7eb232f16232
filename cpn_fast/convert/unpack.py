"""A zip that a tool exported, unpacked into a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from cpn_fast.files.errors import DataError
from cpn_fast.files.images import IMAGE_SUFFIXES
from cpn_fast.files.names import path_fault, quoted
from cpn_fast.files.regular import open_regular

_WANTED = IMAGE_SUFFIXES | {".json", ".jsonl", ".geojson", ".txt", ".yaml", ".csv", ".xml"}
_MOST_FILES = 2_000_000


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of an export: the path itself, or a temporary folder with the content of a zip.

    Raises:
        DataError: for a damaged zip, one that leads out of its folder, or one that does not fit on the disk.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cpn-convert-") as folder:
        root = Path(folder)
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                _extract(archive, root, path)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: cannot unpack it ({error}); export it again") from None
        yield _content(root)


def _extract(archive: zipfile.ZipFile, root: Path, path: Path) -> None:
    entries = [
        entry
        for entry in archive.infolist()
        if not entry.is_dir() and PurePosixPath(entry.filename).suffix.lower() in _WANTED
    ]
    total, free = sum(entry.file_size for entry in entries), shutil.disk_usage(root).free
    if len(entries) > _MOST_FILES or total > 0.9 * free:
        raise DataError(
            f"{path}: {len(entries)} files of {total / 1e6:.0f} MB, {free / 1e6:.0f} MB are free in {root.parent}; "
            "free some, or set TMPDIR to another disk"
        )
    for entry in entries:
        if fault := path_fault(entry.filename):
            raise DataError(f"{path}: the file {quoted(entry.filename)} in it {fault}; export it again")
        target = root / entry.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("xb") as file:
            left = entry.file_size
            while block := source.read(min(left + 1, 1 << 20)):
                left -= len(block)
                if left < 0:
                    raise DataError(f"{path}: {quoted(entry.filename)} is larger than the zip says; export it again")
                file.write(block)


def _content(root: Path) -> Path:
    """The folder, or the only folder in it: many tools pack the folder itself."""
    inside = list(root.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name not in _PARTS else root


_PARTS = frozenset({"SegmentationClass", "annotations", "labels", "train"})
