"""Only regular files are opened for reading: a FIFO would wait for ever, a device might never end."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import cast

from cpn_fast.files.errors import DataError
from cpn_fast.files.member import Member

_KINDS = (
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: str | Path | Member) -> io.BufferedReader:
    """Open a file for reading, following links.

    Args:
        path: the file, or a member of one.

    Returns:
        It, opened in binary mode.

    Raises:
        DataError: if it is a FIFO, a device or a socket, or the name holds a NUL.
        OSError: as `open` does, e.g. where it is missing, a folder, or its name too long.
    """
    if isinstance(path, Member):
        return cast(io.BufferedReader, io.BufferedReader(io.BytesIO(path.read_bytes())))  # type: ignore[type-var,unused-ignore]
    path = Path(path)
    try:
        check_regular(path, path.stat().st_mode)
        # What lies there may have become another file since: never wait for one, and look again.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # an embedded NUL
        if isinstance(error, DataError):
            raise
        raise DataError(f"{str(path)[:100]!r}: no file can have this name ({error}); correct it") from None
    file = os.fdopen(descriptor, "rb")
    try:
        check_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def check_regular(path: Path, mode: int) -> None:
    """Raise DataError if `mode` (of `os.stat`) is a FIFO's, a device's or a socket's; a folder is left to `open`."""
    kind = next((name for test, name in _KINDS if test(mode)), None)
    if kind is not None:
        raise DataError(f"{path}: {kind}; expected a regular file: replace or remove it")


def read_regular(path: str | Path | Member) -> bytes:
    """The content of a regular file, or of a member of one. Raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def is_regular(path: str | Path) -> bool:
    """Whether a regular file is there; False also for names that no file can have (too long, with a NUL)."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
