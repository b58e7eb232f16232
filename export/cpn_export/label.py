"""`cpn-label`: pseudo masks from an exported model, without torch."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from cpn_export.jobs import Job, find_jobs, with_labels
from cpn_export.metadata import ModelInfo
from cpn_export.runtime import OnnxLabeller, Provider, label_rows
from cpn_fast.console.exit_status import guarded
from cpn_fast.console.terminal import item_progress
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import DEFAULT_MAX_PIXELS, read_image
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import write_labelmap, write_mask
from cpn_fast.files.max_side import enlarge, reduce_image
from cpn_fast.files.regular import open_regular
from cpn_fast.files.shard import take_shard

MASK_FOLDER = "SegmentationClass"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelOnnxConfig:
    """Label images with an exported model.

    Attributes:
        model: the `.onnx` file that `cpn export` wrote.
        images: folders of images (searched recursively) or image files.
        output: folder for SegmentationClass/*.png, labelmap.txt and manifest.jsonl.
        image_labels: CSV `image,labels`; for images that it does not list the scores of a CAM network stand in, and a
            segmentation network chooses from all classes.
        provider: where to run.
        shard: `i/n`, only the i-th of n parts, counted from 1.
        max_side: longer images are reduced to this long side in pixels first; None = the model's.
        max_pixels: larger images are not decoded.
        batch_size: images of equal size that go through together.
        workers: threads that decode, and as many that write.
        threads: CPU threads of the network; 0 = all cores.
    """

    model: tyro.conf.Positional[Path]
    images: tyro.conf.Positional[tuple[Path, ...]]
    output: Path
    image_labels: Path | None = None
    provider: Provider = "cpu"
    shard: str | None = None
    max_side: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    batch_size: int = 4
    workers: int = 2
    threads: int = 0


@dataclass(frozen=True)
class LabelSummary:
    """What a call did, in images.

    Attributes:
        labelled: masks written.
        skipped: done by an earlier call.
        failed: recorded as errors in the manifest.
    """

    labelled: int
    skipped: int
    failed: int


@dataclass(frozen=True)
class _Decoded:
    """An image ready for the network: `image` is at most max_side long, `size` is the file's (height, width)."""

    job: Job
    image: NDArray[np.uint8]
    size: tuple[int, int]


def run_label_onnx(config: LabelOnnxConfig) -> LabelSummary:
    """Label the images; what an earlier call has done is skipped, a broken image is recorded and passed over.

    Raises:
        DataError: for a model, provider, label file or option that cannot be used, or if every image is broken.
    """
    _check(config)
    labeller = OnnxLabeller(config.model, config.provider, config.threads)
    jobs = find_jobs(config.images)
    if config.image_labels is not None:
        jobs = with_labels(jobs, config.image_labels, labeller.info.classes)
    jobs = take_shard(jobs, config.shard)
    fingerprint = _fingerprint(config, labeller)
    with Manifest(config.output / "manifest.jsonl") as manifest:
        done = _done(manifest, config.output, fingerprint)
        open_jobs = [job for job in jobs if job.id not in done]
        palette = np.array(labeller.info.palette, dtype=np.uint8)
        write_labelmap(config.output / "labelmap.txt", labeller.info.classes, palette)
        run = _Run(config, labeller, manifest, palette, fingerprint)
        failed = run.label(open_jobs)
    summary = LabelSummary(len(open_jobs) - failed, len(jobs) - len(open_jobs), failed)
    logger.info(
        "%d images labelled, %d done before, %d failed%s: %s",
        summary.labelled,
        summary.skipped,
        summary.failed,
        " (see manifest.jsonl)" if failed else "",
        config.output,
    )
    if jobs and failed == len(jobs):
        raise DataError(f"none of the {failed} images could be labelled; see {manifest.path}")
    return summary


def _check(config: LabelOnnxConfig) -> None:
    for name in ("max_side", "batch_size", "workers", "max_pixels"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise DataError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    if not config.images:
        raise DataError("no images given; expected a folder or files after the model")


def _max_side(config: LabelOnnxConfig, labeller: OnnxLabeller) -> int:
    return labeller.info.max_side if config.max_side is None else config.max_side


def _fingerprint(config: LabelOnnxConfig, labeller: OnnxLabeller) -> str:
    """What a mask depends on beside its image: the model's content and max_side."""
    with open_regular(config.model) as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{content[:16]}-{_max_side(config, labeller)}"


def _done(manifest: Manifest, output: Path, fingerprint: str) -> set[str]:
    """Ids whose mask is there. Raises DataError if it was made by another model: one folder, one model."""
    done = {name: entry for name, entry in manifest.entries().items() if entry["status"] == "ok"}
    foreign = [name for name, entry in done.items() if entry.get("model") != fingerprint]
    if foreign:
        raise DataError(
            f"{manifest.path}: {len(foreign)} masks, such as {foreign[0]!r}, are of another model or --max-side; "
            "choose another --output or remove that folder"
        )
    return {name for name in done if _mask_path(output, name).is_file()}


def _mask_path(output: Path, name: str) -> Path:
    return output / MASK_FOLDER / f"{name}.png"


class _Run:
    """Decode in threads, label in batches, write in threads; few enough in flight that memory stays bounded."""

    def __init__(
        self,
        config: LabelOnnxConfig,
        labeller: OnnxLabeller,
        manifest: Manifest,
        palette: NDArray[np.uint8],
        fingerprint: str,
    ) -> None:
        self.config, self.labeller, self.manifest = config, labeller, manifest
        self.palette, self.fingerprint = palette, fingerprint
        self.max_side = _max_side(config, labeller)
        self.seen_maps = False

    def label(self, jobs: Sequence[Job]) -> int:
        """Label the jobs with a progress bar; returns how many failed."""
        with (
            item_progress(Console(), "labelling", len(jobs)) as advance,
            ThreadPoolExecutor(self.config.workers, thread_name_prefix="decode") as readers,
            ThreadPoolExecutor(self.config.workers, thread_name_prefix="write") as writers,
        ):
            writing: deque[Future[bool]] = deque()
            failed = 0

            def written(limit: int) -> None:
                nonlocal failed
                while len(writing) > limit:
                    failed += not writing.popleft().result()
                    advance(1)

            for batch in self._batches(readers, jobs):
                writing.extend(writers.submit(action, *values) for action, *values in self._infer(batch))
                written(4 * self.config.workers)
            written(0)
        return failed

    def _decode(self, job: Job) -> _Decoded | str:
        """The image, or what is wrong with the file."""
        try:
            image = read_image(job.path, self.config.max_pixels)
            return _Decoded(job, reduce_image(image, self.max_side), (image.shape[0], image.shape[1]))
        except (DataError, OSError) as error:
            return str(error)

    def _batches(self, readers: ThreadPoolExecutor, jobs: Sequence[Job]) -> Iterator[list[_Decoded] | tuple[Job, str]]:
        """Lists of images of one size, and single jobs whose file cannot be read."""
        size = self.config.batch_size
        waiting: dict[tuple[int, ...], list[_Decoded]] = defaultdict(list)
        for job, item in self._read_ahead(readers, jobs):
            if isinstance(item, str):
                yield job, item
                continue
            batch = waiting[item.image.shape]
            batch.append(item)
            if len(batch) == size:
                yield waiting.pop(item.image.shape)
            elif sum(map(len, waiting.values())) >= 8 * size:
                yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
        yield from waiting.values()

    def _read_ahead(self, readers: ThreadPoolExecutor, jobs: Sequence[Job]) -> Iterator[tuple[Job, _Decoded | str]]:
        pending: deque[tuple[Job, Future[_Decoded | str]]] = deque()
        for job in jobs:
            pending.append((job, readers.submit(self._decode, job)))
            if len(pending) > 2 * self.config.workers + self.config.batch_size:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()

    def _infer(self, batch: list[_Decoded] | tuple[Job, str]) -> Iterator[tuple[Any, ...]]:
        """What the writers have to do for a batch: per image a method (True if a mask came out) and its arguments."""
        if isinstance(batch, tuple):
            yield (self._record_failure, *batch)
            return
        num_classes = len(self.labeller.info.classes)
        rows = label_rows([item.job.labels for item in batch], num_classes)
        look_at_maps, self.seen_maps = not self.seen_maps, True  # once: copying them out takes time
        try:
            result = self.labeller(np.stack([item.image for item in batch]), rows, with_maps=look_at_maps)
        except DataError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class; memory is the usual reason
            if len(batch) == 1:
                yield self._record_failure, batch[0].job, f"{batch[0].job.path}: onnxruntime failed: {error}"
                return
            for item in batch:
                yield from self._infer([item])
            return
        maps = [None] * len(batch) if result.maps is None else result.maps
        for item, mask, scores, of_item in zip(batch, result.mask, result.scores, maps, strict=True):
            if np.isfinite(scores).all() and (of_item is None or np.isfinite(of_item).all()):
                yield self._write, item, mask, scores
            else:
                reason = f"{item.job.path}: the model's scores or maps hold NaN or infinity: its training diverged"
                yield self._record_failure, item.job, reason

    def _write(self, item: _Decoded, mask: NDArray[np.uint8], scores: NDArray[np.float32]) -> bool:
        height, width = item.size
        path = _mask_path(self.config.output, item.job.id)
        try:
            write_mask(path, enlarge(mask, height, width), self.palette)
        except OSError as error:
            raise DataError(f"{path}: cannot write the mask ({error}); make room there and call again") from error
        info = self.labeller.info
        present, origin = labels_in_force(info, item.job.labels, scores, mask)
        self.manifest.append(
            {
                "id": item.job.id,
                "status": "ok",
                "image": str(item.job.path),
                "mask": _mask_path(Path(), item.job.id).as_posix(),
                "width": width,
                "height": height,
                "labels": [info.classes[c] for c in present],
                "labels_from": origin,
                "model": self.fingerprint,
            }
        )
        return True

    def _record_failure(self, job: Job, error: str) -> bool:
        logger.warning("%s", error)
        self.manifest.append({"id": job.id, "status": "error", "image": str(job.path), "error": error})
        return False


def labels_in_force(
    info: ModelInfo, given: tuple[int, ...] | None, scores: NDArray[np.float32], mask: NDArray[np.uint8]
) -> tuple[list[int], str]:
    """Which classes a mask was made with, for the manifest.

    Args:
        info: the model.
        given: classes 0..K-1 that the image is known to have; None where nothing is known.
        scores: float32 [K] class probabilities.
        mask: uint8 [H, W].

    Returns:
        classes 0..K-1, and where they are from: "image" as given; without, of a CAM network "scores" for those that
        stood in, of a segmentation network "mask" for those that are in it.
    """
    if given is not None:
        return list(given), "image"
    if info.threshold is None:
        return [int(value) - 1 for value in np.unique(mask) if value > 0], "mask"
    best = int(scores.argmax())
    return [c for c in range(len(info.classes)) if c == best or scores[c] > info.threshold], "scores"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cpn-label`.

    Args:
        argv: arguments without the program's name; None = `sys.argv[1:]`.

    Returns:
        The exit status: 0, 2 for an error that the message explains, 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)

    def action() -> None:
        run_label_onnx(tyro.cli(LabelOnnxConfig, args=args, prog="cpn-label"))

    return guarded(action)


if __name__ == "__main__":
    raise SystemExit(main())
