"""Files that are either the old or the new version, never half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_path(path: str | Path, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    For libraries that write to a path of their own; the suffix is kept. The parent folder is made. After the block the
    content is on the disk (fsync), so a power cut leaves the old or the new file too.

    Args:
        path: the file.
        lasting: False: after a power cut it may also be the old one (or none) although the block had ended, which saves
            a wait for the disk; for files that would be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not derived from the name: a long name plus an ending would pass the file system's 255 bytes.
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(6)}{path.suffix[:16]}"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _open_to_others(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            error.filename = str(path)  # a failed write names no file, and the temporary one would mean nothing
        raise
    if lasting:
        _sync_folder(path.parent)


@contextmanager
def atomic_write(path: str | Path, lasting: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends without an error (see `atomic_path`)."""
    with atomic_path(path, lasting) as temporary, temporary.open("xb") as file:
        yield file


def atomic_write_bytes(path: str | Path, data: bytes, lasting: bool = True) -> None:
    """Write `data` to `path` in one step; see `atomic_path`."""
    with atomic_write(path, lasting) as file:
        file.write(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 in one step."""
    atomic_write_bytes(path, text.encode("utf-8"))


def _open_to_others(path: Path) -> None:
    """Give a file that a library made private (safetensors does) the mode of any new file here."""
    if path.stat().st_mode & 0o077 == 0:
        probe = path.with_name(path.name + "-mode")
        with probe.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        probe.unlink()
        path.chmod(mode & 0o777)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot sync a folder; the rename itself has happened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
