"""One resumable job over many images: what labelling, predicting, refining and their like share. Free of torch.

A job knows its images, when one is up to date, and how one becomes files and a line of the manifest. `run` does the
rest: the lock, the settings, what is left to do, disk and time, threads, the manifest, the summary.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from cpn_fast.files.apart import check_apart
from cpn_fast.files.chosen import choose
from cpn_fast.files.disk_space import check_disk_space
from cpn_fast.files.errors import DataError
from cpn_fast.files.lock import locked
from cpn_fast.files.manifest import Manifest, ManifestLines
from cpn_fast.files.member import ImageFile
from cpn_fast.files.output_folder import MANIFEST_NAME, raise_io_errors_as, record_settings
from cpn_fast.files.plan import write_plan
from cpn_fast.files.progress import SILENT, Progress, duration
from cpn_fast.files.threads import thread_pool

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")
Entry = dict[str, Any]
"""A line of the manifest: `id`, `status` ("ok" or "error"), and what the job has to say of the image."""


def bounded_map(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[Result]:
    """`map` over a pool with at most `limit` items begun and not yet given back, so that memory stays bounded.

    Args:
        pool: where `function` runs.
        function: called once per item.
        items: taken one by one, in the caller's thread, as there is room for them.
        limit: at least 1.

    Yields:
        the results, in the items' order. The first exception ends the work and is raised here; what has not begun by
        then never does.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            while pending and (len(pending) >= limit or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@dataclass(frozen=True)
class JobSummary:
    """What a job did.

    Attributes:
        written: images done now.
        skipped: images that were up to date.
        failed: images that could not be done; the manifest says why.
        output: the folder.
        made: the manifest's lines of the images of this call, those that failed among them; may be read more than once.
    """

    written: int
    skipped: int
    failed: int
    output: Path
    made: Iterable[Entry] = field(default=(), repr=False)

    @property
    def done(self) -> Iterator[Entry]:
        """The lines of the images done now."""
        return (entry for entry in self.made if entry["status"] == "ok")


@dataclass(frozen=True, kw_only=True)
class ImageWork(ABC, Generic[Item, Ready]):
    """What is done to each image of a command: as much of it as an `Engine` needs to know.

    Attributes:
        workers: threads that call `work`.
        verb: what is done to an image, in the infinitive.
    """

    workers: int

    verb: ClassVar[str]

    @abstractmethod
    def id_of(self, item: Item) -> str:
        """The id of an image, by which its entry is known."""

    @abstractmethod
    def work(self, item: Ready) -> Entry:
        """Do one image. Called in threads.

        Returns:
            the image's entry; status "error" and `error`, the reason, where the image cannot be done.

        Raises:
            DataError: for what ends the whole command, such as a full disk.
        """

    def ready(self, todo: Sequence[Item]) -> Iterator[Ready]:
        """The images as `work` takes them, e.g. as they come out of a network; as they are, unless overridden."""
        yield from todo  # type: ignore[misc]

    def threads(self) -> AbstractContextManager[object]:
        """Entered while `work` runs in threads, e.g. to share the cores among them."""
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class ImageJobs(ImageWork[Item, Ready]):
    """The images of a job, and what is done to each of them: `work` writes the files of one and gives its line.

    Attributes:
        output: folder of the results, with `manifest.jsonl` and `settings.json`.
        items: the images.
        settings: JSON-able values (lists, no tuples), everything that decides what a result looks like; a folder holds
            results of one.
        data: what the images are, for the terminal.
        overwrite: do everything again, also with other settings.
        shard: `i/n` where the items are the i-th of n parts.
        planned: ids of all images that the folder is to hold results of; None = of `items`.
        command: resumes the job, for who finds it half done; "" = no command line does.
        reads: folders and files of the data, among which nothing may be written; see `check_apart`.
        participle: what is done to an image, as a participle.
        needed_to: what cannot be done to an image that fails, as a participle.
        results: what is written.
        waits: for another process that makes the same results, instead of refusing to work beside it.
    """

    output: Path
    items: Sequence[Item]
    settings: Mapping[str, Any]
    data: str
    overwrite: bool = False
    shard: str | None = None
    reads: Sequence[Path] = ()
    planned: Iterable[str] | None = None
    command: str = ""

    participle: ClassVar[str]
    needed_to: ClassVar[str] = "read"
    results: ClassVar[str] = "masks"
    waits: ClassVar[bool] = False

    @abstractmethod
    def is_done(self, item: Item, entry: Mapping[str, Any]) -> bool:
        """Whether an image is up to date.

        Args:
            item: the image.
            entry: the manifest's last line of it, of status "ok".
        """

    @abstractmethod
    def bytes_needed(self, todo: Sequence[Item]) -> float:
        """What the results of these images take on disk, generously."""

    def prepare(self) -> None:
        """Write what the folder holds beside the results, such as the labelmap. Raises OSError where it cannot."""

    def about(self) -> str:
        """The settings in a few words, for the terminal."""
        return ""


class Crew(Protocol):
    """Those who do the images of a command."""

    def entries(self, items: Sequence[Any]) -> Iterator[Entry]:
        """Do these images; gives the entry of each once what it leaves is stored, in any order."""

    def state(self) -> str:
        """How many they are, in a few words; "" = it goes without saying."""


class Engine(Protocol):
    """Where the images of a command are done."""

    def crew(self, jobs: Any) -> AbstractContextManager[Crew]:
        """What does images while the block runs. Raises DataError where there is no such place, or not for this job."""

    def session(self) -> AbstractContextManager[object]:
        """Entered around several crews in turn: what they all need begins once. Raises DataError as `crew` does."""


@dataclass(frozen=True)
class _Threads:
    """This process's, which share the network."""

    jobs: ImageWork[Any, Any]
    pool: Executor

    def entries(self, items: Sequence[Any]) -> Iterator[Entry]:
        """As `Crew` says, in their order."""
        return bounded_map(self.pool, self.jobs.work, self.jobs.ready(items), 2 * self.jobs.workers + 1)

    def state(self) -> str:
        """Nothing."""
        return ""


class _ThisProcess:
    @contextmanager
    def crew(self, jobs: ImageWork[Any, Any]) -> Iterator[Crew]:
        """The job's threads."""
        with jobs.threads(), thread_pool(jobs.workers, jobs.verb) as pool:
            yield _Threads(jobs, pool)

    def session(self) -> AbstractContextManager[object]:
        """Threads begin with each crew."""
        return nullcontext()


LOCAL: Engine = _ThisProcess()
"""In threads of this process."""


def run(jobs: ImageJobs[Any, Any], progress: Progress = SILENT, engine: Engine = LOCAL) -> JobSummary:
    """Do what is left of a job. Rerun, it resumes: what is up to date is skipped, what failed is tried again.

    Args:
        jobs: the images and what to do to them.
        progress: where plan, bar and result are shown.
        engine: where the images are done.

    Returns:
        how many images were done, skipped, failed.

    Raises:
        DataError: where the folder lies among the data, another command writes to it, it holds results of other
            settings, the disk is full, or if there were images to do and none could be done.
    """
    check_apart(jobs.output, jobs.reads)
    # Overwriting forgets what other shards have done, so they cannot work beside it.
    shard = None if jobs.overwrite else jobs.shard
    with locked(jobs.output, shard, jobs.waits), Manifest(jobs.output / MANIFEST_NAME) as manifest:
        with raise_io_errors_as(jobs.output, "settings and labelmap"):
            record_settings(jobs.output, jobs.settings, jobs.overwrite, jobs.participle)
            planned = map(jobs.id_of, jobs.items) if jobs.planned is None else jobs.planned
            write_plan(jobs.output, planned, jobs.command)
            jobs.prepare()
        todo = _todo(jobs, manifest)
        skipped = len(jobs.items) - len(todo)
        _say_plan(jobs, todo, skipped, progress)
        places, failed, count = array("Q"), list[Entry](), 0
        for place, entry in _made(jobs, todo, manifest, progress, engine) if todo else ():
            places.append(place)
            if entry["status"] != "ok":
                count += 1
                failed += [entry] if count == 1 else []
    summary = JobSummary(len(places) - count, skipped, count, jobs.output, ManifestLines(manifest, places))
    say_failures(jobs, failed, summary)
    return summary


def error_entry(image_id: str, image: ImageFile, error: str) -> Entry:
    """The manifest's line of an image that could not be done."""
    return {"id": image_id, "status": "error", "image": str(image), "error": error}


def _todo(jobs: ImageJobs[Any, Any], manifest: Manifest) -> Sequence[Any]:
    known = manifest.index()

    def is_done(item: Any) -> bool:
        entry = known.find(jobs.id_of(item))
        return entry is not None and entry.get("status") == "ok" and jobs.is_done(item, entry)

    try:
        return choose(jobs.items, lambda item: not is_done(item))
    finally:
        known.close()


def _say_plan(jobs: ImageJobs[Any, Any], todo: Sequence[Any], skipped: int, progress: Progress) -> None:
    """What will be done and the disk it takes; refuses where that is more than there is."""
    about = jobs.about()
    progress.say(
        f"{len(todo)} images of {jobs.data} to {jobs.verb}, {skipped} up to date{f'; {about}' if about else ''}"
    )
    if todo:
        progress.say(check_disk_space(jobs.output, jobs.results, jobs.bytes_needed(todo)))


def _made(
    jobs: ImageJobs[Any, Any], todo: Sequence[Any], manifest: Manifest, progress: Progress, engine: Engine
) -> Iterator[tuple[int, Entry]]:
    """Do the images and record each; gives where its line is, and the line."""
    with engine.crew(jobs) as crew, watched(jobs, len(todo), crew, progress) as seen:
        for entry in crew.entries(todo):
            with raise_io_errors_as(jobs.output, MANIFEST_NAME):
                place = manifest.append(entry)
            seen(entry)
            yield place, entry


@contextmanager
def watched(jobs: ImageJobs[Any, Any], total: int, crew: Crew, progress: Progress) -> Iterator[Callable[[Entry], None]]:
    """A bar over images, with how many failed; the first ones give the time estimate. Gives what tells it of each."""
    start, first = time.monotonic(), min(total, jobs.workers)
    done = failed = 0
    with progress.items(jobs.verb, total) as advance:

        def seen(entry: Entry) -> None:
            nonlocal done, failed
            done, failed = done + 1, failed + (entry["status"] != "ok")
            advance(1, ", ".join(filter(None, (f"{failed} failed" if failed else "", crew.state()))))
            if done == first:
                expected = (time.monotonic() - start) / done * total
                progress.say(f"time: about {duration(expected)}, by the first {done}")

        yield seen


def say_failures(jobs: ImageJobs[Any, Any], failed: Sequence[Entry], summary: JobSummary) -> None:
    """Warn of the images that could not be done, of which the first is enough.

    Raises:
        DataError: where none was done, now or before.
    """
    if not failed:
        return
    reason = failed[0]["error"]
    if not summary.written and not summary.skipped:
        raise DataError(f"none of the {summary.failed} images could be {jobs.needed_to}; the first: {reason}")
    log.warning(
        "%d of %d images could not be %s, see %s; the first: %s",
        summary.failed, summary.failed + summary.written + summary.skipped, jobs.needed_to, jobs.output / MANIFEST_NAME,
        reason,
    )  # fmt: skip
