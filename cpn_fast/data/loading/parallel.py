"""Helper processes on one machine: a folder lock, and a pool whose workers use one thread each."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` against other processes that ask for it here; ends with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int | None = None, chunk: int = 8
) -> Iterator[Result]:
    """`map` over helper processes, in the items' order; in this process where one helper or chunk would do.

    Args:
        function: a picklable function; runs with one torch thread.
        items: its arguments.
        processes: helpers; None = one per core.
        chunk: items sent to a helper at once.

    Yields:
        The results. The first exception ends the work and is raised here.
    """
    todo = list(items)
    processes = min(processes or available_cores(), -(-len(todo) // chunk))
    if processes <= 1:
        yield from map(function, todo)
        return
    # fork, as torch's own loader does: the caller's main module need not be importable, and what the parent has loaded
    # is there at once. With one thread per helper no OpenMP pool is needed, which would not survive the fork.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), initializer=_single_thread)
    try:
        yield from pool.map(function, todo, chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the work
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
