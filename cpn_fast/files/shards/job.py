"""A job over images whose masks go into shards: memory does not grow with the number of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cpn_fast.files.apart import check_apart
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.disk_space import check_disk_space
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import LOCAL, Engine, Entry, ImageJobs, JobSummary, say_failures, watched
from cpn_fast.files.lock import locked
from cpn_fast.files.output_folder import raise_io_errors_as, record_settings
from cpn_fast.files.plan import PLAN_NAME
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.shard import parse_shard
from cpn_fast.files.shards.masks import SUFFIXES, ShardWriter, to_json


@dataclass(frozen=True)
class Written(Iterable[Entry]):
    """The entries of shards, read when they are asked for.

    Attributes:
        writer: of the shards.
        numbers: of the shards.
    """

    writer: ShardWriter
    numbers: Sequence[int]

    def __iter__(self) -> Iterator[Entry]:
        return self.writer.entries(self.numbers)


def run_into_shards(
    jobs: ImageJobs[Any, Any], writer: ShardWriter, progress: Progress = SILENT, engine: Engine = LOCAL
) -> JobSummary:
    """Do what is left of a job, shard by shard. Rerun, it resumes: shards that are there are skipped.

    Shard n holds images n * size to (n + 1) * size - 1, those among them that could not be done as entries alone. With
    `jobs.shard` i/n it is of part n % i, so that each shard has one writer.

    Args:
        jobs: what to do; its items are all images, also those of other parts.
        writer: what `jobs.work` writes masks to.
        progress: where plan, bar and result are shown.
        engine: where the images are done.

    Returns:
        how many images were done, skipped, failed.

    Raises:
        DataError: as `jobs.run` does; also where the folder holds shards of another size or form.
    """
    check_apart(jobs.output, jobs.reads)
    part, parts = (1, 1) if jobs.shard is None else parse_shard(jobs.shard)
    with locked(jobs.output, None if jobs.overwrite else jobs.shard, jobs.waits):
        with raise_io_errors_as(jobs.output, "settings and labelmap"):
            _begin(jobs, writer)
        own = range(part - 1, -(-len(jobs.items) // writer.size), parts)
        todo = [number for number in own if not writer.shard_path(number).is_file()]
        images = sum(len(_items(jobs, writer, number)) for number in own)
        left = sum(len(_items(jobs, writer, number)) for number in todo)
        about = f"; {jobs.about()}" if jobs.about() else ""
        progress.say(
            f"{left} images of {jobs.data} to {jobs.verb} into {len(todo)} shards, {images - left} up to date{about}"
        )
        failed: list[Entry] = []
        count = 0
        if todo:
            some = _items(jobs, writer, todo[0])
            progress.say(check_disk_space(jobs.output, jobs.results, jobs.bytes_needed(some) / len(some) * left))
            for entry in _done(jobs, writer, todo, left, progress, engine):
                if entry["status"] != "ok":
                    count += 1
                    failed += [entry] if count == 1 else []
    summary = JobSummary(left - count, images - left, count, jobs.output, Written(writer, todo))
    say_failures(jobs, failed, summary)
    return summary


def _begin(jobs: ImageJobs[Any, Any], writer: ShardWriter) -> None:
    """Settings, plan and what lies beside the shards."""
    if not jobs.overwrite and any(jobs.output.glob("SegmentationClass/*")):
        raise DataError(f"{jobs.output}: holds masks as files; give another --output, or --overwrite")
    record_settings(jobs.output, jobs.settings, jobs.overwrite, jobs.participle)
    if jobs.overwrite:
        for suffix in SUFFIXES.values():
            for path in jobs.output.glob(f"masks-*{suffix}"):
                path.unlink()
    if jobs.shard is None:
        for path in jobs.output.glob(f".tmp-*{SUFFIXES[writer.kind]}"):
            path.unlink()  # of a writer that was killed: no other one is here
    plan = {"command": jobs.command, "images": len(jobs.items), "shard_size": writer.size}
    atomic_write_text(jobs.output / PLAN_NAME, to_json(plan).decode() + "\n")
    jobs.prepare()


def _items(jobs: ImageJobs[Any, Any], writer: ShardWriter, number: int) -> Sequence[Any]:
    return jobs.items[number * writer.size : (number + 1) * writer.size]


def _done(
    jobs: ImageJobs[Any, Any],
    writer: ShardWriter,
    todo: Sequence[int],
    left: int,
    progress: Progress,
    engine: Engine,
) -> Iterator[Entry]:
    """Do the images of each shard and write it."""
    with engine.crew(jobs) as crew, watched(jobs, left, crew, progress) as seen:
        for shard in todo:
            items, made = _items(jobs, writer, shard), dict[str, Entry]()
            for entry in crew.entries(items):
                made[entry["id"]] = entry
                seen(entry)
            writer.finish(shard, [made[jobs.id_of(item)] for item in items])
            yield from made.values()
