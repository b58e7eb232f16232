"""Images through the network, one pass for every map: what labelling, scoring and the report have in common."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cpn_fast.data.spread import spread
from cpn_fast.data.types import VOID, Record, Sample, Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.max_side import enlarge, reduce_image
from cpn_fast.models.labeller import Labeller, ScaleMaps, normalised, present_channels
from cpn_fast.run_folder import RunFolder
from cpn_fast.runtime_tuning import set_tf32, tune_allocator
from cpn_fast.sweep import best_foreground

MapName = Literal["cam", "rcam"]
MULTI = "multi"
"""Name of the maps summed over all scales, beside the single scales "0.5", "1", ..."""


def scale_name(scale: float) -> str:
    """How a single scale is called in tables and files: "0.5", "1", "1.5"."""
    return f"{scale:g}"


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    Attributes:
        record: which image.
        image: uint8 [H, W, 3].
        mask: ground truth uint8 [H, W] in the network's classes, None without.
        labels: bool [K], the classes in force.
        given: bool [K], the image's own labels; None where the network's scores stood in.
        scores: float32 [K], class probabilities.
        classes: int [P], the foreground classes 0..K-1 that the maps hold, ascending: those in force.
        maps: (map, scale name) -> float32 [P, h, w] normalised to 0..1, at the size the network saw; a class that is
            not in `classes` is zero everywhere.
    """

    record: Record
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    labels: NDArray[np.bool_]
    given: NDArray[np.bool_] | None
    scores: NDArray[np.float32]
    classes: NDArray[np.intp]
    maps: Mapping[tuple[MapName, str], NDArray[np.float32]]

    def at_image_size(self, name: MapName, scale: str = MULTI) -> NDArray[np.float32]:
        """The maps of the classes in force, float32 [P, H, W]."""
        return enlarge(self.maps[name, scale], *self.image.shape[:2])

    def best(self, name: MapName, scale: str = MULTI) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """The winning foreground class [H, W] in 0..K-1 and its score float32 [H, W], at image size."""
        height, width = self.image.shape[:2]
        maps = self.maps[name, scale]
        if len(maps) == 0:
            return np.zeros((height, width), np.intp), np.zeros((height, width), np.float32)
        winner, score = best_foreground(maps)
        return enlarge(self.classes[winner], height, width), enlarge(score, height, width)


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why."""

    record: Record
    error: str


@dataclass(frozen=True)
class ClassMapping:
    """The classes of a data set in the order of a network's, which may know more of them.

    Attributes:
        labels: int [K_source], the network's class of each class of the source.
        num_classes: K of the network.
    """

    labels: NDArray[np.intp]
    num_classes: int

    @classmethod
    def between(cls, source: Sequence[str], network: Sequence[str]) -> ClassMapping:
        """Match classes by name. Raises DataError for a class that the network doesn't know."""
        unknown = [name for name in source if name not in network]
        if unknown:
            raise DataError(
                f"the data names classes that the run was not trained on: {', '.join(unknown[:5])}"
                f"{' ...' if len(unknown) > 5 else ''}; the run knows {', '.join(network)}"
            )
        return cls(np.array([network.index(name) for name in source], dtype=np.intp), len(network))

    def vector(self, labels: Sequence[int]) -> NDArray[np.bool_]:
        """bool [K] of the source's class indices."""
        present = np.zeros(self.num_classes, dtype=bool)
        present[self.labels[list(labels)]] = True
        return present

    def mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A ground-truth mask (values 0..K_source and 255, as the source has checked) in the network's class values."""
        if np.array_equal(self.labels, np.arange(len(self.labels))):
            return mask
        table = np.full(256, VOID, dtype=np.uint8)
        table[0] = 0
        table[1 : len(self.labels) + 1] = self.labels + 1
        return table[mask]


def open_labeller(
    run: RunFolder,
    scales: Sequence[float],
    flip: bool,
    device: str,
    beta: float,
    threshold: float = 0.5,
    compiled: bool = False,
) -> Labeller:
    """The run's network, ready to label on a device.

    Args:
        run: with weights.
        scales: scale factors, above 0 and at most 4.
        flip: also run the mirrored image.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        beta: background score of the mask, 0..1.
        threshold: class probability above which a class stands in for missing labels.
        compiled: torch.compile the network, once for all image sizes.

    Raises:
        DataError: for a device that is not there, a scale or score out of range, or a run without weights.
    """
    check_scales(scales)
    for name, value in (("beta", beta), ("threshold", threshold)):
        if not 0 <= value <= 1:
            raise DataError(f"--{name} {value}: expected a number in 0..1")
    device = ready_device(device)
    net = run.load_model(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        net.compile(dynamic=True)
    return Labeller(net, scales, flip, beta, threshold, run.config.options.map_norm).to(device)


def check_scales(scales: Sequence[float]) -> None:
    """Raise DataError unless the scale factors are different numbers above 0 and at most 4."""
    if not scales or not all(0 < scale <= 4 for scale in scales) or len(set(map(scale_name, scales))) < len(scales):
        raise DataError(f"--scales {' '.join(map(str, scales))}: expected different numbers above 0 and at most 4")


def ready_device(device: str) -> str:
    """Make the process ready for inference and name the device, "cpu" or "cuda".

    Args:
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        DataError: for a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU; use --device cpu, or install a CUDA build of torch")
    tune_allocator()
    set_tf32(True)
    return device


def check_counts(**counts: int) -> None:
    """Raise DataError for an option that counts something and is below 1; keywords are the options' names."""
    for name, value in counts.items():
        if value < 1:
            raise DataError(f"--{name.replace('_', '-')} {value}: expected at least 1")


def records_of(source: Source, split: str | None) -> tuple[str, Sequence[Record]]:
    """A split and its records; None = `train` where the source has it, else `all`, else its only split.

    Raises:
        DataError: for an unknown split, or where None leaves it open.
    """
    splits = source.splits()
    if split is None:
        split = next((name for name in ("train", "all") if name in splits), splits[0] if len(splits) == 1 else None)
    if split is None:
        raise DataError(f"{source.spec}: has no split train or all; name one of {', '.join(splits)} by --split")
    return split, source.records(split)


def spread_evenly(records: Sequence[Record], count: int | None) -> Sequence[Record]:
    """At most `count` records at even distances, of those with masks if any; None = all records."""
    if count is None:
        return records
    records = [record for record in records if record.mask_path is not None] or records
    return spread(records, count)


def map_of(labeller: Labeller, wanted: Literal["auto", "rcam", "cam"] = "auto") -> MapName:
    """The map that masks are made of: RCAM where the network has refinement heads, else CAM.

    Raises:
        DataError: if RCAM is wanted of a network without refinement.
    """
    refined = labeller.net.refinement != "none"
    if wanted == "rcam" and not refined:
        raise DataError("--maps rcam: this run has no refinement heads, so no RCAM; use --maps cam")
    return ("rcam" if refined else "cam") if wanted == "auto" else wanted


def weights_digest(run: RunFolder) -> str:
    """SHA-256 of the weights that `run.load_model` loads, as hexadecimal."""
    path = run.model_path if run.model_path.is_file() else run.checkpoint_path
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class InferenceOptions:
    """How images go through the network.

    Attributes:
        max_side: a longer image is reduced to this long side in pixels first, and the result enlarged back.
        batch_size: images of equal size that go through together.
        workers: threads that read images ahead of the network.
        per_scale: give the maps of every single scale beside the multi-scale ones.
        with_mask: read ground truth where there is one.
        use_labels: False ignores the images' labels; the network's scores stand in.
    """

    max_side: int = 1024
    batch_size: int = 1
    workers: int = 2
    per_scale: bool = False
    with_mask: bool = False
    use_labels: bool = True


def predictions(
    labeller: Labeller,
    source: Source,
    records: Sequence[Record],
    mapping: ClassMapping,
    options: InferenceOptions,
) -> Iterator[Prediction | Failure]:
    """Run the network over `records`: images are read in threads ahead of it and go through in batches of equal size.

    Args:
        labeller: on the device to run on.
        source: reads the records.
        records: the images; the order of the results may differ where sizes do and `batch_size` is above 1.
        mapping: the source's classes in the network's order.
        options: see there.

    Yields:
        a Prediction per image, a Failure for one that could not be read.
    """
    for item in equal_sizes(source, records, options):
        if isinstance(item, Failure):
            yield item
        else:
            yield from _run(labeller, item, mapping, options)


Reduced = tuple[Sample, NDArray[np.uint8]]
"""What was read of an image, and the image uint8 [h, w, 3] as the network shall see it."""


def equal_sizes(
    source: Source, records: Sequence[Record], options: InferenceOptions
) -> Iterator[Failure | list[Reduced]]:
    """Images reduced to `max_side`, at most `batch_size` of one size together, read in threads ahead of their use.

    Args:
        source: reads the records.
        records: the images; their order may change where sizes differ and `batch_size` is above 1.
        options: see there.

    Yields:
        batches, and a Failure for each image that could not be read.
    """
    waiting: dict[tuple[int, ...], list[Reduced]] = defaultdict(list)
    for record, sample in _read_ahead(source, records, options):
        if isinstance(sample, str):
            yield Failure(record, sample)
            continue
        small = reduce_image(sample.image, options.max_side)
        batch = waiting[small.shape]
        batch.append((sample, small))
        if len(batch) >= options.batch_size:
            yield waiting.pop(small.shape)
        elif sum(map(len, waiting.values())) >= 8 * options.batch_size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _read_ahead(
    source: Source, records: Sequence[Record], options: InferenceOptions
) -> Iterator[tuple[Record, Sample | str]]:
    """Samples in order, or what is wrong with the file; few enough in flight that memory stays bounded."""

    def read(record: Record) -> Sample | str:
        try:
            return source.read(record, with_mask=options.with_mask)
        except (DataError, OSError) as error:
            return str(error)

    pending: deque[tuple[Record, Future[Sample | str]]] = deque()
    with ThreadPoolExecutor(max(1, options.workers), thread_name_prefix="decode") as pool:
        for record in records:
            pending.append((record, pool.submit(read, record)))
            if len(pending) > 2 * options.workers + options.batch_size:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()


@torch.inference_mode()
def _run(
    labeller: Labeller,
    batch: Sequence[Reduced],
    mapping: ClassMapping,
    options: InferenceOptions,
) -> list[Prediction]:
    """One batch of equal size through the network."""
    device = next(labeller.parameters()).device
    given = [_given(sample, mapping, options) for sample, _ in batch]
    unknown = np.full(mapping.num_classes, -1, dtype=np.float32)
    rows = np.stack([unknown if row is None else row.astype(np.float32) for row in given])
    images = torch.from_numpy(np.stack([small for _, small in batch])).to(device)
    scores, in_force, per_scale = labeller.scale_maps(images, torch.from_numpy(rows).to(device), present_only=True)
    labels = in_force.cpu().numpy() > 0
    channels = present_channels(in_force)
    maps = _normalised_maps(labeller, in_force[:, channels], per_scale, options.per_scale)
    held = [torch.from_numpy(row[channels.cpu().numpy()]) for row in labels]
    return [
        Prediction(
            record=sample.record,
            image=sample.image,
            mask=None if sample.mask is None else mapping.mask(sample.mask),
            labels=labels[i],
            given=given[i],
            scores=scores[i].float().cpu().numpy(),
            classes=np.flatnonzero(labels[i]),
            maps={key: value[i][held[i].to(device)].cpu().numpy() for key, value in maps.items()},
        )
        for i, (sample, _) in enumerate(batch)
    ]


def _given(sample: Sample, mapping: ClassMapping, options: InferenceOptions) -> NDArray[np.bool_] | None:
    labels = sample.record.labels
    return mapping.vector(labels) if labels is not None and options.use_labels else None


def _normalised_maps(
    labeller: Labeller, in_force: torch.Tensor, per_scale: Iterator[ScaleMaps], keep_scales: bool
) -> dict[tuple[MapName, str], torch.Tensor]:
    """Normalised maps [B, P, h, w] of all scales together and, if asked for, of each; `rcam` only with refinement."""
    names: tuple[MapName, ...] = ("cam",) if labeller.net.refinement == "none" else ("cam", "rcam")
    sums: dict[MapName, torch.Tensor] = {}
    maps: dict[tuple[MapName, str], torch.Tensor] = {}
    for scale, item in zip(labeller.scales, per_scale, strict=True):
        for name in names:
            raw: torch.Tensor = getattr(item, name)
            sums[name] = sums[name] + raw if name in sums else raw
            if keep_scales:
                maps[name, scale_name(scale)] = normalised(raw, in_force, labeller.map_norm)
    maps |= {(name, MULTI): normalised(total, in_force, labeller.map_norm) for name, total in sums.items()}
    return maps
