"""A lock on a folder that is being written, which says who holds it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cpn_fast.files.errors import DataError
from cpn_fast.files.output_folder import check_is_folder, raise_io_errors_as
from cpn_fast.files.shard import parse_shard

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"

_ATTEMPTS, _PAUSE = 5, 0.02  # another process that only looks whether a lock is held holds it for a moment
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


_held: set[int] = set()
"""Descriptors of the locks that this process holds, or its parent held when it forked."""


@contextmanager
def locked(folder: Path, shard: str | None = None, wait: bool = False) -> Iterator[int]:
    """Hold a folder against other commands that would write to it, in other processes or in this one.

    The system gives the lock back when its process ends, however it ends; the file `.lock` goes with it, or is taken
    over where it was left behind, and what its holder had half written (`.tmp-*`) is removed.

    Args:
        folder: made where it is not there, with those above it, and removed where nothing was written to it.
        shard: `i/n`, the part of the work that this process does: other parts of the same n may be written at the same
            time. None = all of it.
        wait: until another process that holds the folder has ended its work, as processes of one command do.

    Yields:
        the descriptor of the lock; a child process that inherits it keeps the folder locked for as long as it runs.

    Raises:
        DataError: where another command holds the folder, or the lock cannot be written.
    """
    check_is_folder(folder)
    with raise_io_errors_as(folder, "its lock"):
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _name(shard)
        descriptor = _acquire(path, wait)
        try:
            for other in sorted(folder.glob(f"{LOCK_NAME}*")):
                if other != path and _conflict(path.name, other.name) and _is_held(other):
                    raise _refusal(other)
            _clear_up_after(folder, descriptor, alone=shard is None)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _about_us().encode("utf-8"), 0)
        except BaseException:
            _release(path, descriptor)
            raise
    try:
        _held.add(descriptor)
        yield descriptor
    finally:
        _held.discard(descriptor)
        _release(path, descriptor)
        with suppress(OSError):  # something was written there, as is usual
            for each in made:
                each.rmdir()


def _clear_up_after(folder: Path, descriptor: int, alone: bool) -> None:
    """Remove what a killed holder has left half-written; its own files only, unless nobody else can be writing here."""
    about = os.pread(descriptor, 4096, 0)
    if not about:  # the last holder gave the lock back
        return
    with suppress(ValueError, KeyError, TypeError):
        mine = "[0-9]*" if alone else str(int(json.loads(about)["pid"]))
        for path in folder.rglob(f".tmp-{mine}-*"):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def leave_to_parent() -> None:
    """In a forked helper: let go of the parent's locks, which then end with the parent even if it is killed."""
    while _held:
        os.close(_held.pop())


def check_unlocked(folder: Path) -> None:
    """Raise DataError where another command is writing to a folder at the moment; nothing is made."""
    for path in sorted(folder.glob(f"{LOCK_NAME}*")):
        if _is_held(path):
            raise _refusal(path)


def _name(shard: str | None) -> str:
    return LOCK_NAME if shard is None else "{}-{}-of-{}".format(LOCK_NAME, *parse_shard(shard))


def _conflict(one: str, other: str) -> bool:
    """Whether two locks stand for overlapping work: all of it, or parts of different numbers of parts."""
    return LOCK_NAME in (one, other) or one.rpartition("-")[2] != other.rpartition("-")[2]


def _acquire(path: Path, wait: bool) -> int:
    """The descriptor of the locked file. Raises DataError where another process holds it, unless `wait`."""
    for _ in itertools.count() if wait else range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            time.sleep(_PAUSE)
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            log.warning("%s: this file system has no locks; do not let two commands write here at once", path.parent)
            return descriptor
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # the one that held it has removed the file in between
    raise _refusal(path)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
    return False


def _release(path: Path, descriptor: int) -> None:
    if _is_at(path, descriptor):
        with suppress(OSError):  # a folder without permission to remove: the lock is given back all the same
            path.unlink()
    os.close(descriptor)


def _about_us() -> str:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    about = {"command": command[:300], "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    return json.dumps(about, ensure_ascii=False) + "\n"


def _refusal(path: Path) -> DataError:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        holder = f"`{about['command']}` (process {about['pid']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        holder = "another command"
    return DataError(
        f"{path.parent}: {holder} is writing here; wait until it ends, or give another --output. The lock ends with "
        f"that process: if it is gone, end the processes that it left behind, or delete {path}, and rerun the command"
    )
