"""Exit statuses, and errors that a user can mend as one line on stderr."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cpn_fast.files.descriptors import raise_limit
from cpn_fast.files.errors import DataError

EXIT_ERROR = 2

EXIT_FAILED_IMAGES = 3
"""Some images could not be done; the others are."""


EXIT_INTERRUPTED = 130
"""After Ctrl-C, and after SIGTERM (a scheduler's way), which ends a command in the same order."""


EXIT_PIPE = 141
"""The reader of the output has had enough, as of `cpn --help | head`: 128 + SIGPIPE, as a shell says it."""


EXTRAS = {
    "onnxruntime": "cpn-fast[cpu]' or, on a machine with an NVIDIA GPU, 'cpn-fast[gpu]",
    "jinja2": "cpn-fast[report]",
    "matplotlib": "cpn-fast[report]",
    "pycocotools": "cpn-fast[report]",
    "pillow_heif": "cpn-fast[heic]",
    "pydantic": "cpn-fast[report]",
    "python_calamine": "cpn-fast[xlsx]",
    "ray": "cpn-fast[ray]",
    "scipy": "cpn-fast[report]",
    "timm": "timm",
}
"""Top-level module -> what to install where it is missing; all others come with [train]."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""A file stands where a folder is to be, or a folder where a file."""


_MANY = (errno.EMFILE, errno.ENFILE)


_REMEDY = (
    dict.fromkeys(_FULL, "free disk space")
    | dict.fromkeys(_MANY, "raise the limit (ulimit -n), or give fewer --workers")
    | dict.fromkeys(_FORBIDDEN, "correct the permissions, or give another folder")
    | dict.fromkeys(_PLACE, "a file stands in the place of a folder, or a folder in that of a file: give another name")
)


def guarded(action: Callable[[], Any]) -> int:
    """Run `action` and turn what a user can mend into one line on stderr.

    Returns:
        0 where it ended, 1 after `DataProblems`, 2 after another `DataError`, a missing optional package, a full disk,
        a missing permission, a file where a folder is to be or too many open files, 130 after Ctrl-C or SIGTERM. Other
        exceptions pass: they are faults of the program and keep their traceback.
    """
    log_to_terminal()
    _print_any_character()
    raise_limit()
    try:
        with _terminated_like_interrupted():
            action()
    except DataError as error:
        return fail(str(error), getattr(error, "status", EXIT_ERROR))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("cpn_fast", "cpn_kernels", "cpn_export"):
            raise
        return fail(f"this command needs the package {error.name!r}; {_how_to_install(error.name)}")
    except OSError as error:
        if error.errno not in _REMEDY:
            raise
        name = error.filename2 or error.filename or "a file"
        return fail(f"{name}: {error.strerror}; {_REMEDY[error.errno]}, and give the same command again")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    return 0


def _print_any_character() -> None:
    """Escapes for what stdout cannot encode: half a surrogate pair of a JSON file, all but ASCII of a plain locale."""
    with suppress(AttributeError, ValueError):  # a notebook's stdout, or a closed one
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _how_to_install(module: str) -> str:
    """Which extra of cpn-fast holds a module."""
    extra = EXTRAS.get(module.partition(".")[0], "cpn-fast[train]")
    return f"install it with: pip install '{extra}'"


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that open files, pools and temporary files are cleared up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def piped(action: Callable[[], int]) -> int:
    """Run `action`, whose output a reader may stop to read: then end without a traceback.

    Returns:
        What `action` returns; 141 where stdout was closed meanwhile.
    """
    try:
        try:
            return action()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return EXIT_PIPE


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def fail(message: str, status: int = EXIT_ERROR) -> int:
    """Say an error in one line on stderr; returns the exit status for it."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return status


def log_to_terminal() -> None:
    """Show the library's log records, unless the caller has set up logging already."""
    from rich.logging import RichHandler

    logger = logging.getLogger("cpn_fast")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = RichHandler(show_path=False, show_time=False, markup=False)
        for name in ("cpn_fast", "cpn_kernels", "cpn_export"):
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).setLevel(logging.INFO)
