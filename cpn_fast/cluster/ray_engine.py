"""`--engine ray`: the images of a job done by the actors of a Ray cluster; this process alone writes.

Ray places the actors, moves images and masks, and tells which actor is lost. An actor that is free gets the next
images; those of a lost one are done once more by another. The masks come back as bytes, so that the machines of the
cluster need no common disk for them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cpn_fast.cluster.ray_crew import RayCrew
from cpn_fast.cluster.worker import Sent, own_version
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Crew
from cpn_fast.files.sent_work import SentWork
from cpn_fast.files.threads import thread_pool

log = logging.getLogger(__name__)

_LOOPBACK = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Of a cluster on this machine: nothing is told to anybody, and its ports are those of 127.0.0.1 alone."""


@dataclass(frozen=True)
class RayEngine:
    """Does the images of a job on a Ray cluster (an `Engine`).

    Attributes:
        address: of the cluster; None = one on this machine is started, and ended with the job.
        workers_per_node: processes on each machine; None = one for each GPU, or one.
    """

    address: str | None = None
    workers_per_node: int | None = None

    @contextmanager
    def crew(self, jobs: Any) -> Iterator[Crew]:
        """The actors, one network each.

        Raises:
            DataError: where Ray is not installed, or no cluster answers.
        """
        if not isinstance(jobs, SentWork):
            raise DataError(f"--engine ray: cannot {jobs.verb} images; use --engine local")
        with self.session() as ray, thread_pool(max(1, jobs.workers), "store") as pool:
            sent = Sent(jobs.to_send(), os.getcwd(), own_version())
            crew = RayCrew(ray, jobs, sent, pool, self.workers_per_node)
            try:
                crew.gather()
                yield crew
            finally:
                crew.dismiss()

    @contextmanager
    def session(self) -> Iterator[ModuleType]:
        """Connected to the cluster, which begins here where none is named. Raises DataError as `crew` does."""
        ray = installed_ray(self.address is None)
        with _connected(ray, self.address):
            yield ray


def installed_ray(local: bool) -> ModuleType:
    """The package `ray`; `local`: for a cluster on this machine alone. Raises DataError where it is not installed."""
    check_installed()
    for name, value in _LOOPBACK.items() if local else ():
        os.environ.setdefault(name, value)  # read as it is imported
    import ray

    return ray


def check_installed() -> None:
    """Raise DataError where Ray is not installed; it is not loaded for that, which takes seconds."""
    if importlib.util.find_spec("ray") is None:
        raise DataError(
            "--engine ray needs the package ray, which is not installed: pip install 'cpn-fast[ray]', on every machine "
            "of the cluster"
        )


@contextmanager
def _connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Connect to the cluster, or begin one; a caller who is connected already stays so."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
    try:
        with _signals_kept():
            _begin(ray, options)
    except Exception as error:  # Ray raises nearly anything
        reason = " ".join(str(error).split())[:300]
        if address is None:
            raise DataError(
                f"--engine ray: Ray does not start on this machine ({reason}); take one of `ray "
                "start --head` by --ray-address auto"
            ) from error
        raise DataError(
            f"--ray-address {address}: no Ray cluster to work with ({reason}); start one with `ray start --head`, join "
            "it from other machines with `ray start --address HOST:PORT`, with the same versions everywhere"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _begin(ray: ModuleType, options: dict[str, Any], tries: int = 3) -> None:
    """`ray.init`; again where this machine was too busy to start a cluster in the half minute that Ray grants."""
    for left in reversed(range(tries)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
        log.warning("Ray did not start within its half minute; another try")
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """SIGTERM goes on meaning what it meant: Ray takes it for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
