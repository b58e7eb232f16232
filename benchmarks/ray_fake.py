"""A job whose network sleeps, and a Ray cluster on this machine: for the tests and measurements of `--engine ray`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, error_entry
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.mask_jobs import MaskJobs

SIDE = 64


@dataclass(frozen=True, kw_only=True)
class Sleeping(MaskJobs[int, int]):
    """The mask of a number is full of it.

    Attributes:
        seconds: that the network sleeps over each.
        bad: numbers that cannot be done.
        deadly: numbers over which the process that does them is killed.
        once: where a file is that says so: only one process is; in a folder, one for each of the numbers.
        full: whether the work ends with an error of the disk.
        plain: whether the lines do not say which process made them.
    """

    verb: ClassVar[str] = "label"
    participle: ClassVar[str] = "labelled"

    seconds: float = 0.0
    bad: frozenset[int] = frozenset()
    deadly: frozenset[int] = frozenset()
    once: Path | None = None
    full: bool = False
    plain: bool = False

    def id_of(self, item: int) -> str:
        return f"{item:05d}"

    def image_of(self, item: int) -> Path:
        return Path(f"{item:05d}.jpg")

    def is_done(self, item: int, entry: Mapping[str, Any]) -> bool:
        return self.folder.has(self.id_of(item))

    def bytes_needed(self, todo: Sequence[int]) -> float:
        return 1000.0 * len(todo)

    def ready(self, todo: Sequence[int]) -> Iterator[int]:
        for item in todo:
            time.sleep(self.seconds)
            yield item

    def work(self, item: int) -> Entry:
        if item in self.deadly and (self.once is None or self._first(item)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.full:
            raise DataError("the disk of the worker is full")
        if item in self.bad:
            return error_entry(self.id_of(item), self.image_of(item), "is bad")
        mask = mask_of(item)
        self.folder.write(self.id_of(item), mask)
        entry = self.folder.describe(self.id_of(item), self.image_of(item), mask)
        return entry if self.plain else {**entry, "by": os.getpid()}

    def _first(self, item: int) -> bool:
        assert self.once is not None
        try:
            (self.once / str(item) if self.once.is_dir() else self.once).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def mask_of(number: int) -> NDArray[np.uint8]:
    """uint8 [SIDE, SIDE]."""
    return np.full((SIDE, SIDE), number % 250, np.uint8)


def sleeping(output: Path, count: int, **more: Any) -> Sleeping:
    """A job of some numbers."""
    values: dict[str, Any] = {"settings": {}, "data": "numbers", "workers": 2, "folder": MaskFolder.at(output)} | more
    return Sleeping(output=output, items=range(count), **values)


@contextmanager
def cluster_here(cpus: int = 1, quick: bool = True) -> Iterator[Any]:
    """A cluster of one node on this machine, connected to; its `add_node` adds more.

    With `quick`, what Ray takes half a minute to notice, the loss of a node, is noticed within seconds; a machine that
    is busy with other things may then seem lost too.
    """
    from cpn_fast.cluster.ray_engine import installed_ray

    ray = installed_ray(local=True)
    from ray.cluster_utils import Cluster

    config = {
        "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4,
        "health_check_timeout_ms": 1000,
    } if quick else {"worker_register_timeout_seconds": 600}  # fmt: skip
    head = {"num_cpus": cpus, "include_dashboard": False, "_system_config": config, "object_store_memory": 100 << 20}
    cluster = _begun(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def _begun(begin: Callable[[], Any], tries: int = 4) -> Any:
    """A cluster; again where the machine was too busy for it to start in the half minute that Ray grants."""
    for left in reversed(range(tries)):
        try:
            return begin()
        except Exception as error:  # Ray raises just that
            if not left or "timed out during startup" not in str(error):
                raise
            mine = _family([os.getpid()])[1:]
            _kill([pid for pid in mine if b"/ray/" in Path(f"/proc/{pid}/cmdline").read_bytes()])
    raise AssertionError


def kill_node(node: Any) -> list[int]:
    """SIGKILL to all processes of a node: its raylet, what that started, and that. Gives their numbers."""
    killed = _family([info.process.pid for infos in node.all_processes.values() for info in infos])
    _kill(killed)
    return killed


def _family(first: Sequence[int]) -> list[int]:
    """Processes, and all below them."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = list(first)
    for pid in found:
        found += parents.get(pid, [])
    return found


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
