"""Exit statuses, and errors that a user can mend as one line on stderr."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from typing import Any

from cpn_fast.files.errors import DataError

EXIT_ERROR = 2

EXIT_FAILED_IMAGES = 3
"""Some images could not be done; the others are."""


EXIT_INTERRUPTED = 130


EXTRAS = {
    "onnxruntime": "cpn-fast[cpu]' or, on a machine with an NVIDIA GPU, 'cpn-fast[gpu]",
    "matplotlib": "cpn-fast[report]",
    "pycocotools": "cpn-fast[report]",
    "scipy": "cpn-fast[report]",
    "timm": "timm",
}
"""Top-level module -> what to install where it is missing; all others come with [train]."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def guarded(action: Callable[[], Any]) -> int:
    """Run `action` and turn what a user can mend into one line on stderr.

    Returns:
        0 where it ended, 2 after a `DataError`, a missing optional package, a full disk or a missing permission, 130
        after Ctrl-C. Other exceptions pass: they are faults of the program and keep their traceback.
    """
    log_to_terminal()
    try:
        action()
    except DataError as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("cpn_fast", "cpn_kernels", "cpn_export"):
            raise
        return fail(f"this command needs the package {error.name!r}; {_how_to_install(error.name)}")
    except OSError as error:
        if error.errno not in _FULL + _FORBIDDEN:
            raise
        mend = "free disk space" if error.errno in _FULL else "correct the permissions, or give another folder"
        return fail(f"{error.filename or 'a file'}: {error.strerror}; {mend}, and give the same command again")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    return 0


def _how_to_install(module: str) -> str:
    """Which extra of cpn-fast holds a module."""
    extra = EXTRAS.get(module.partition(".")[0], "cpn-fast[train]")
    return f"install it with: pip install '{extra}'"


def fail(message: str) -> int:
    """Say an error in one line on stderr; returns the exit status for it."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return EXIT_ERROR


def log_to_terminal() -> None:
    """Show the library's log records, unless the caller has set up logging already."""
    from rich.logging import RichHandler

    logger = logging.getLogger("cpn_fast")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = RichHandler(show_path=False, show_time=False, markup=False)
        for name in ("cpn_fast", "cpn_kernels", "cpn_export"):
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).setLevel(logging.INFO)
