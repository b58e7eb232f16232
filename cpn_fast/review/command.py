"""`cpn review`: a page to look through masks and decide over them, written once or served."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import suppress
from pathlib import Path

from cpn_fast.config.display import resuming
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import JobSummary
from cpn_fast.files.jobs import run as run_jobs
from cpn_fast.files.lock import locked
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.output_folder import (
    MANIFEST_NAME,
    SETTINGS_NAME,
    raise_io_errors_as,
    read_settings,
    settings_that_differ,
)
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.review_csv import DECISIONS, REVIEW_NAME, Decided, match_names, read_review
from cpn_fast.review.items import ReviewSet, open_masks
from cpn_fast.review.options import ReviewConfig
from cpn_fast.review.page import Looked, page_text
from cpn_fast.review.pictures import PictureJobs
from cpn_fast.review.server import Decisions, ReviewServer

PAGE_NAME = "review.html"


def run_review(config: ReviewConfig, progress: Progress = SILENT) -> JobSummary:
    """Write the page, or serve it until Ctrl-C.

    Args:
        config: what to look through.
        progress: where plan, bar and result are shown.

    Returns:
        how many masks were looked at, up to date, could not be read.

    Raises:
        DataError: for a folder, source, option or `review.csv` that does not fit, or if no mask could be read.
    """
    import jinja2  # noqa: F401  missing, it is better said before everything is read

    _check_options(config)
    masks = open_masks(config.masks, config.data, config.classes)
    if not masks.items:
        raise DataError(f"{masks.folder.masks}: no mask whose name is text; rename them")
    review = masks.folder.root / REVIEW_NAME
    decided = match_names(review, read_review(review), masks.paths) if review.exists() else {}
    page = config.output or masks.folder.root / PAGE_NAME
    jobs = _jobs(config, masks, page.with_name(f"{page.stem}-files"))
    summary = run_jobs(jobs, progress)
    looked = Looked.of(masks.items, Manifest(jobs.output / MANIFEST_NAME).entries())
    if config.serve:
        with locked(jobs.output):
            _serve(config, masks, looked, decided, jobs.output, progress)
        return summary
    with raise_io_errors_as(page.parent, "the page"):
        atomic_write_text(page, page_text(masks, looked, decided, jobs.output.name))
    progress.say(f"page of {len(looked.items)} masks: {page} (open it in a browser; {_counts(decided)} so far)")
    progress.say(f"put the CSV that it saves into {review}")
    return summary


def _check_options(config: ReviewConfig) -> None:
    if not 64 <= config.size <= 2048:
        raise DataError(f"--size {config.size}: expected a number of pixels from 64 to 2048")
    if config.workers < 1:
        raise DataError(f"--workers {config.workers}: expected at least 1")
    if not 0 <= config.port <= 65535:
        raise DataError(f"--port {config.port}: expected a number from 0 to 65535")
    if config.port and not config.serve:
        raise DataError("--port is that of --serve; give that too")
    if config.output is not None and config.output.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--output {config.output}: expected the name of a page that ends in .html")


def _jobs(config: ReviewConfig, masks: ReviewSet, output: Path) -> PictureJobs:
    colours = masks.palette[: len(masks.classes) + 1].tolist()
    settings = {"side": config.size, "colours": colours}
    stored = output / SETTINGS_NAME
    again = stored.is_file() and bool(settings_that_differ(read_settings(stored), settings))
    return PictureJobs(
        output=output, items=masks.items, settings=settings, data=str(masks.folder.root), workers=config.workers,
        overwrite=again, reads=(*masks.reads, masks.folder.masks) if _is_apart(masks) else masks.reads,
        command=resuming("review", dataclasses.replace(config, serve=False, port=0)),
        palette=masks.palette, side=config.size, with_pictures=not config.serve,
    )  # fmt: skip


def _is_apart(masks: ReviewSet) -> bool:
    """Whether the masks have a folder of their own, in which nothing else belongs."""
    return masks.folder.masks != masks.folder.root


def _serve(
    config: ReviewConfig, masks: ReviewSet, looked: Looked, decided: dict[str, Decided], pictures: Path,
    progress: Progress,
) -> None:  # fmt: skip
    decisions = Decisions(
        masks.folder.root / REVIEW_NAME, [item.id for item in masks.items], looked.current(decided), looked.version
    )
    with ReviewServer(config.port, masks, looked, decisions, pictures, config.size) as server:
        progress.say(f"{len(looked.items)} masks at {server.address}")
        progress.say(f"decisions go into {decisions.path} ({_counts(decided)} so far); Ctrl-C ends")
        with suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)
    progress.say(f"{decisions.path}: {_counts(decisions.current())}")


def _counts(decided: dict[str, Decided]) -> str:
    found = Counter(each.decision for each in decided.values())
    return ", ".join(f"{found[decision]} {decision}" for decision in DECISIONS)
