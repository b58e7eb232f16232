"""`--jobs`: the trainings behind a table, several side by side, each in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from cpn_fast.config.training import TrainConfig
from cpn_fast.console.exit_status import guarded
from cpn_fast.data.loading.parallel import STOPS, available_cores
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.output_folder import raise_io_errors_as
from cpn_fast.metrics.report import METRICS_NAME
from cpn_fast.pipeline.runner import end_with_parent
from cpn_fast.reproduce.runs import RunStore, Scoring, scores_folder
from cpn_fast.reproduce.tables import Row

log = logging.getLogger(__name__)

LOGS = "jobs"
POLL = 0.2


@dataclass(frozen=True)
class Work:
    """What every process is given.

    Attributes:
        root: the folder of all tables.
        data: the source's name.
        scoring: how runs are scored.
        tasks: rows with their (settled) settings; those of one run stand together.
        threads: torch threads of each process.
    """

    root: Path
    data: str
    scoring: Scoring
    tasks: tuple[tuple[Row, TrainConfig], ...]
    threads: int

    def of_run(self) -> Iterator[list[tuple[Row, TrainConfig]]]:
        """The tasks, run by run."""
        by_run: dict[Path, list[tuple[Row, TrainConfig]]] = {}
        for row, config in self.tasks:
            by_run.setdefault(config.output, []).append((row, config))
        yield from by_run.values()


def run_ahead(store: RunStore, tasks: Sequence[tuple[Row, TrainConfig]], jobs: int) -> None:
    """Train and score the runs of a table, `jobs` at a time; the table then finds them done.

    What a process could not do is left to the table, which tries it again and fails with its message. Each process
    takes the next run that no other holds, of this command or of another with the same `--output`. Ctrl-C and SIGTERM
    are passed on once each, so that every training writes its checkpoint.

    Args:
        store: where the runs lie.
        tasks: rows with their settled settings.
        jobs: processes, at least 1.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all processes have ended.
    """
    threads = max(1, available_cores() // jobs)
    work = Work(store.root, store.source.spec, store.scoring, tuple(tasks), threads)
    logs = store.root / LOGS
    with raise_io_errors_as(logs, "the logs"):
        logs.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    names = [logs / f"{number}.log" for number in range(1, jobs + 1)]
    processes = [context.Process(target=_work, args=(work, name, os.getpid())) for name in names]
    log.info("%d jobs of %d threads; what they say: %s", jobs, threads, logs / "*.log")
    with _stops_passed_on(processes) as stopped:
        for process in processes:
            process.start()
        _wait(processes, work)
    for process, name in zip(processes, names, strict=True):
        if process.exitcode and not stopped:
            log.warning("%s: a job ended with status %s", name, process.exitcode)
    if stopped:
        raise KeyboardInterrupt


def _wait(processes: Sequence[BaseProcess], work: Work) -> None:
    """Until all have ended; says which runs are done."""
    said: set[Path] = set()
    while True:
        alive = any(process.is_alive() for process in processes)
        for row, config in work.tasks:
            scores = scores_folder(config.output, row.refined) / METRICS_NAME
            if scores not in said and scores.is_file():
                said.add(scores)
                log.info("scored, %d of %d: %s, seed %d", len(said), len(work.tasks), row.name, config.loop.seed)
        if not alive:
            return
        time.sleep(POLL)


@contextmanager
def _stops_passed_on(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the processes, which are in sessions of their own; gives those that came."""
    came: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        came.append(number)
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    before = {kind: signal.signal(kind, pass_on) for kind in STOPS}
    try:
        yield came
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _work(work: Work, log_file: Path, parent: int) -> None:
    """One process: what it prints goes to its log."""
    os.setsid()  # Ctrl-C of a terminal comes through the parent alone
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log_file.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if sys.platform == "linux":
        end_with_parent(parent)()
    torch.set_num_threads(work.threads)
    sys.exit(guarded(partial(_measure, work)))


def _measure(work: Work) -> None:
    store = RunStore(work.root, open_source(work.data), work.scoring)
    for tasks in work.of_run():
        for row, config in tasks:
            if store.measured(row, config, (), wait=False) is None:
                break
