"""`cpn-label`: pseudo masks from an exported model, without torch."""

from __future__ import annotations

import hashlib
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tyro
from numpy.typing import NDArray

from cpn_export.benchmark import run_benchmark
from cpn_export.card import model_card
from cpn_export.label_options import LabelOnnxConfig as LabelOnnxConfig
from cpn_export.metadata import ModelInfo
from cpn_export.providers import Provider
from cpn_export.runtime import FLOAT32, OnnxLabeller, label_rows
from cpn_fast.console.exit_status import EXIT_FAILED_IMAGES, guarded, piped
from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.files.contact_sheet import write_least_confident
from cpn_fast.files.disk_space import FILE_BYTES, MASK_BYTES, mean_pixels
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import read_image
from cpn_fast.files.jobs import LOCAL, Engine, Entry, JobSummary, error_entry
from cpn_fast.files.jobs import run as run_jobs
from cpn_fast.files.mask_folder import MaskFolder, foreground_share, without_object
from cpn_fast.files.mask_jobs import MaskJobs
from cpn_fast.files.max_side import enlarge, reduce_image
from cpn_fast.files.member import ImageFile
from cpn_fast.files.output_folder import SETTINGS_NAME
from cpn_fast.files.photos import Photo, count_other_files, default_output, find_photos, with_labels
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.regular import open_regular
from cpn_fast.files.shard import take_shard
from cpn_fast.inference.reader import Failure, equal_sizes
from cpn_fast.metrics.confidence import map_confidence, probability_confidence

log = logging.getLogger(__name__)

_GRID = 256  # of a segmentation network's confidence: its probabilities have every class


@dataclass(frozen=True)
class _Read:
    """What is kept of an image beside its reduced pixels: `size` is the file's (height, width)."""

    photo: Photo
    size: tuple[int, int]


@dataclass(frozen=True)
class _Labelled:
    """What the graph says of one image, at the size that it saw.

    Attributes:
        read: which image.
        mask: uint8 [h, w].
        labels: classes 0..K-1 that the mask was made with.
        labels_from: where they are from, see `active_labels`.
        maps: float32 [P, h, w] of a CAM network, the maps of these classes; of a segmentation network [C, g, g'], the
            probabilities of background and of the classes that the mask may hold, on a grid of pixels.
    """

    read: _Read
    mask: NDArray[np.uint8]
    labels: list[int]
    labels_from: str
    maps: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class OnnxJobs(MaskJobs[Photo, _Labelled | Failure[Photo]]):
    """Images through the exported model to masks.

    Attributes:
        labeller: the model.
        max_side: longer images are reduced to this long side in pixels first.
        max_pixels: larger images are not decoded.
        batch_size: images of equal size that go through together.
        fingerprint: of the model and `max_side`, in every line of the manifest.
    """

    verb: ClassVar[str] = "label"
    participle: ClassVar[str] = "labelled"
    needed_to: ClassVar[str] = "labelled"

    labeller: OnnxLabeller
    max_side: int
    max_pixels: int
    batch_size: int
    fingerprint: str

    @property
    def palette(self) -> NDArray[np.uint8]:
        """The model's colours, uint8 [256, 3]."""
        return np.array(self.labeller.info.palette, dtype=np.uint8)

    def id_of(self, item: Photo) -> str:
        """The image's id."""
        return item.id

    def image_of(self, item: Photo) -> ImageFile:
        """The photo's file."""
        return item.path

    @property
    def group(self) -> int:
        """The batch size."""
        return self.batch_size

    def is_done(self, item: Photo, entry: Mapping[str, Any]) -> bool:
        """Whether the mask is there and of this model."""
        return entry.get("model") == self.fingerprint and self.folder.has(item.id)

    def bytes_needed(self, todo: Sequence[Photo]) -> float:
        """By the sizes of a few of the images."""
        return len(todo) * (mean_pixels([photo.path for photo in todo]) * MASK_BYTES + FILE_BYTES)

    def prepare(self) -> None:
        """The labelmap."""
        self.folder.write_labelmap(self.labeller.info.classes, self.palette)

    def about(self) -> str:
        """What the model is."""
        info = self.labeller.info
        size = f"at most {self.max_side} pixels a side"
        return f"{info.kind} network, {info.precision}, {size}, running on {self.labeller.running_on}"

    def ready(self, todo: Sequence[Photo]) -> Iterator[_Labelled | Failure[Photo]]:
        """What the graph says of each image."""
        for batch in equal_sizes(todo, self._read, self.batch_size, self.workers):
            if isinstance(batch, Failure):
                yield batch
            else:
                yield from self._infer(batch)

    def _read(self, photo: Photo) -> tuple[_Read, NDArray[np.uint8]]:
        image = read_image(photo.path, self.max_pixels)
        return _Read(photo, (image.shape[0], image.shape[1])), reduce_image(image, self.max_side)

    def _infer(self, batch: Sequence[tuple[_Read, NDArray[np.uint8]]]) -> Iterator[_Labelled | Failure[Photo]]:
        info = self.labeller.info
        rows = label_rows([read.photo.labels for read, _ in batch], len(info.classes))
        try:
            result = self.labeller(np.stack([image for _, image in batch]), rows, with_maps=True)
        except DataError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class; memory is the usual reason
            if len(batch) == 1:
                photo = batch[0][0].photo
                yield Failure(photo, f"{photo.path}: onnxruntime failed: {error}")
                return
            for item in batch:
                yield from self._infer([item])
            return
        assert result.maps is not None
        for (read, _), mask, scores, maps in zip(batch, result.mask, result.scores, result.maps, strict=True):
            if not (np.isfinite(scores).all() and np.isfinite(maps).all()):
                reason = "the model's scores or maps hold NaN or infinity: its training diverged"
                if info.precision == "float16":
                    reason += f", or float16 overflows on {self.labeller.running_on}: {FLOAT32}"
                yield Failure(read.photo, f"{read.photo.path}: {reason}")
                continue
            labels, origin = active_labels(info, read.photo.labels, scores, mask)
            yield _Labelled(read, mask, labels, origin, _kept_maps(info, read.photo.labels, labels, maps))

    def work(self, item: _Labelled | Failure[Photo]) -> Entry:
        """Write the mask."""
        if isinstance(item, Failure):
            return error_entry(item.record.id, item.record.path, item.error)
        photo, info = item.read.photo, self.labeller.info
        mask = enlarge(item.mask, *item.read.size)
        self.folder.write(photo.id, mask, palette=self.palette)
        confidence = probability_confidence(item.maps) if info.beta is None else map_confidence(item.maps, info.beta)
        return {
            **self.folder.describe(photo.id, photo.path, mask),
            "labels": [info.classes[c] for c in item.labels],
            "labels_from": item.labels_from,
            "foreground": foreground_share(mask),
            "confidence": round(confidence, 4),
            "model": self.fingerprint,
        }


def run_label_onnx(config: LabelOnnxConfig, progress: Progress = SILENT) -> JobSummary:
    """Label the images; what an earlier call has done is skipped, a broken image is recorded and skipped.

    Args:
        config: what to label, and how.
        progress: where plan, bar and result are shown.

    Returns:
        how many images were labelled, skipped, failed.

    Raises:
        DataError: for a model, provider, label file or option that cannot be used, an output folder of another model or
            that another command writes to, or if every image is broken.
    """
    _check(config)
    engine = config.open_engine()
    here: Provider = "cpu" if config.on_cluster else config.provider
    labeller = OnnxLabeller(config.model, here, config.threads, config.provider)
    for reason in labeller.passed_over:
        log.warning("--provider auto: %s", reason)
    photos = find_photos(config.images)
    if config.image_labels is not None:
        photos = with_labels(photos, config.image_labels, labeller.info.classes)
    summary = label_photos(config, labeller, photos, config.images, progress, _resuming(config), engine)
    others = count_other_files(config.images)
    if others:
        progress.say(f"{others} files skipped, hidden or no images by their suffix")
    return summary


def label_photos(
    config: LabelOnnxConfig,
    labeller: OnnxLabeller,
    photos: Sequence[Photo],
    reads: Sequence[Path],
    progress: Progress = SILENT,
    command: str = "",
    engine: Engine = LOCAL,
) -> JobSummary:
    """Label photos that have been found, and make the contact sheet.

    Args:
        config: how; its `images` are only shown.
        labeller: the model.
        photos: the images.
        reads: the folders and files that they are, where nothing may be written.
        progress: where plan, bar and result are shown.
        command: resumes the labelling.
        engine: where the images are labelled.

    Returns:
        how many images were labelled, skipped, failed.

    Raises:
        DataError: as `run_label_onnx` does.
    """
    _check(config)
    jobs = _jobs(config, labeller, photos, reads, command)
    summary = run_jobs(jobs, progress, engine)
    images = {photo.id: partial(read_image, photo.path, config.max_pixels) for photo in photos}
    sheet = write_least_confident(jobs.folder, images, config.sheet, labeller.info.classes, jobs.palette)
    progress.say(
        f"{summary.written} images labelled, {summary.skipped} up to date, {summary.failed} failed: {jobs.output}"
    )
    if sheet is not None:
        progress.say(f"least confident masks: {sheet}")
    if empty := without_object(summary.done, _remedy(labeller.info)):
        progress.say(empty)
    return summary


def _remedy(info: ModelInfo) -> str:
    """What to do about masks without an object."""
    if info.beta is None:
        return "the network finds background alone there: train it longer, or on masks that hold more objects"
    return f"a lower background score may find one: `cpn export` with --beta below {info.beta:g}"


def _check(config: LabelOnnxConfig) -> None:
    for name in ("max_side", "batch_size", "workers", "max_pixels"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise DataError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if not config.images:
        raise DataError("no images given; expected a folder or files after the model")


def _jobs(
    config: LabelOnnxConfig, labeller: OnnxLabeller, photos: Sequence[Photo], reads: Sequence[Path], command: str
) -> OnnxJobs:
    output = default_output(config.images) if config.output is None else config.output
    max_side = labeller.info.max_side if config.max_side is None else config.max_side
    with open_regular(config.model) as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    fingerprint = f"{content[:16]}-{max_side}"
    if not config.overwrite and not (output / SETTINGS_NAME).exists():
        _check_older(MaskFolder.at(output), fingerprint)
    return OnnxJobs(
        output=output, items=take_shard(photos, config.shard), planned=[photo.id for photo in photos], command=command,
        settings={"model_sha256": content, "max_side": max_side},
        data=", ".join(map(str, config.images[:3])) + (" ..." if len(config.images) > 3 else ""),
        workers=config.workers, overwrite=config.overwrite, shard=config.shard, reads=reads,
        folder=MaskFolder.at(output), labeller=labeller, max_side=max_side, max_pixels=config.max_pixels,
        batch_size=config.batch_size, fingerprint=fingerprint,
    )  # fmt: skip


def _resuming(config: LabelOnnxConfig) -> str:
    words = ["cpn-label", str(config.model), *map(str, config.images)]
    for name in ("output", "image_labels", "max_side", "ray_address", "workers_per_node"):
        value = getattr(config, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--engine", "ray"] if config.on_cluster else words)


def _check_older(folder: MaskFolder, fingerprint: str) -> None:
    """Refuse a folder of another model that has no settings.json: versions before 0.2 wrote none."""
    foreign = [name for name, entry in folder.manifest().entries().items() if entry.get("model") != fingerprint]
    if foreign:
        raise DataError(
            f"{folder.root}: {len(foreign)} masks, such as {foreign[0]!r}, are of another model or --max-side; give "
            "another --output, or --overwrite to make everything again"
        )


def active_labels(
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


def _kept_maps(
    info: ModelInfo, given: tuple[int, ...] | None, labels: Sequence[int], maps: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the confidence is counted from, copied, so that the maps of all classes can go: see `_Labelled.maps`."""
    if info.kind == "cam":
        return maps[list(labels)]
    step = -(-max(maps.shape[1:]) // _GRID)
    if given is None:
        return maps[:, ::step, ::step].copy()
    allowed = maps[[0, *(c + 1 for c in labels)], ::step, ::step]
    return allowed / np.maximum(allowed.sum(axis=0), 1e-12)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cpn-label`.

    Args:
        argv: arguments without the program's name; None = `sys.argv[1:]`.

    Returns:
        The exit status, see `LabelOnnxConfig`.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    failed = False

    def action() -> None:
        nonlocal failed
        config = tyro.cli(LabelOnnxConfig, args=args, prog="cpn-label")
        if config.info or config.benchmark:
            lines = run_benchmark(config) if config.benchmark else model_card(config.model)
            for line in lines:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            return
        summary = run_label_onnx(config, TerminalProgress())
        failed = summary.failed > 0 and not config.allow_failures

    return piped(lambda: guarded(action) or (EXIT_FAILED_IMAGES if failed else 0))


if __name__ == "__main__":
    raise SystemExit(main())
