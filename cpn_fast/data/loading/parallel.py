"""Helper processes on one machine: a folder lock, how stops pass them by, and a pool of one thread per worker."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cpn_fast.files.descriptors import check_descriptors
from cpn_fast.files.lock import leave_to_parent

STOPS = (signal.SIGINT, signal.SIGTERM)

_TOGETHER = 1 << 14
"""Items that are given to the helpers at once: the pool holds all that it is given."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # not Linux


@contextmanager
def folder_lock(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold `folder` against other processes that ask for it here; ends with the process, however that ends.

    Gives whether it is held: without `wait`, False where another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(handle)


@contextmanager
def stops_held_back() -> Iterator[None]:
    """Let no stop reach a process that is being started and has no say in it yet; this one gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stops() -> None:
    """In a helper: a terminal and a scheduler send stops to the whole group, and the parent ends the work."""
    for kind in STOPS:
        signal.signal(kind, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    leave_to_parent()


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

    Raises:
        DataError: where this process may not open as many files as the helpers need.
    """
    todo = items if isinstance(items, Sequence) else list(items)
    processes = min(processes or available_cores(), -(-len(todo) // chunk))
    if processes <= 1:
        yield from map(function, todo)
        return
    check_descriptors(processes)
    # fork, as torch's own loader does: the caller's main module need not be importable, and what the parent has loaded
    # is there at once. With one thread per helper no OpenMP pool is needed, which would not survive the fork.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), initializer=_start_helper)
    try:
        for begin in range(0, len(todo), _TOGETHER):
            with stops_held_back():
                results = pool.map(function, todo[begin : begin + _TOGETHER], chunksize=chunk)  # starts the helpers
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _start_helper() -> None:
    """One thread, no ear for stops, and an end with the parent, however that ends."""
    import torch

    torch.set_num_threads(1)
    ignore_stops()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
