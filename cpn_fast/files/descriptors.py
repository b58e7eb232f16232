"""How many files a process may open: raised where the system lets it be, and asked for before work begins."""

from __future__ import annotations

import resource

from cpn_fast.files.errors import DataError

WANTED = 8192
"""Descriptors that a process takes where the system's hard limit allows; shells often give 256 or 1024."""

_OWN, _PER_HELPER = 48, 8
"""Descriptors of a command itself, and of each helper process: pipes, and the tensors that it hands over."""


def raise_limit() -> None:
    """Let this process, and those that it starts, open `WANTED` files, or as many as its hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_descriptors(helpers: int) -> None:
    """Raise DataError where a process may not open as many files as it and its helper processes need."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _OWN + _PER_HELPER * helpers
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise DataError(
            f"this process may open {soft} files (ulimit -n); expected at least {needed} for {helpers} helper "
            "processes: raise the limit, or give fewer --workers"
        )
