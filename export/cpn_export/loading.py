"""An exported model as a value with the calls of a run: what `cpn_fast.load("model.onnx")` returns. Free of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from cpn_export.label import labels_in_force
from cpn_export.metadata import ModelInfo
from cpn_export.runtime import OnnxLabeller, Provider, label_rows
from cpn_fast.api.images import ImageLabeller, LabelledImage
from cpn_fast.data.sources.spread import records_of
from cpn_fast.data.types import Record, Source
from cpn_fast.files.disk_space import FILE_BYTES, MASK_BYTES, mean_pixels
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, ImageJobs, JobSummary, error_entry
from cpn_fast.files.jobs import run as run_jobs
from cpn_fast.files.mask_folder import MaskFolder, class_names, foreground_share
from cpn_fast.files.max_side import enlarge, reduce_image
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.regular import open_regular
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.options import check_counts
from cpn_fast.inference.reader import Failure, InferenceOptions, Reduced, equal_sizes

DEVICES: dict[str, Provider] = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "tensorrt"}


def load_onnx(path: Path) -> OnnxModel:
    """Open an exported model. The entry point `onnx` of the group `cpn_fast.loaders`.

    Raises:
        DataError: if there is no such file, or it is no model that `cpn export` wrote.
    """
    return OnnxModel(path)


class OnnxModel:
    """An exported model; see `cpn_fast.api.model.Model`.

    Scales, flip, background score and threshold are part of the file: `cpn export` was told them.

    Args:
        path: the `.onnx` file.

    Raises:
        DataError: as `OnnxLabeller` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sessions = {"cpu": OnnxLabeller(path)}
        self.info: ModelInfo = self._sessions["cpu"].info

    def __repr__(self) -> str:
        """Path and kind."""
        return f"OnnxModel({str(self.path)!r}, {self.kind})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K foreground classes; mask value c + 1 is `classes[c]`."""
        return self.info.classes

    @property
    def kind(self) -> Literal["cam", "segmentation"]:
        """What the network gives."""
        return self.info.kind

    def labeller(
        self,
        *,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        beta: float | None = None,
        threshold: float | None = None,
        max_side: int | None = None,
        device: str | None = None,
    ) -> ImageLabeller:
        """A callable that labels photographs.

        Args:
            scales: as exported; None or the same.
            flip: as exported; None or the same.
            beta: as exported; None or the same.
            threshold: as exported; None or the same.
            max_side: longer images are reduced to this long side in pixels first; None = as exported.
            device: "cpu", "cuda" or "tensorrt"; None = "cpu".

        Raises:
            DataError: for a setting that the file has otherwise, or a device that cannot be used.
        """
        wanted = {"scales": None if scales is None else tuple(scales), "flip": flip, "beta": beta}
        for name, value in {**wanted, "threshold": threshold}.items():
            held = getattr(self.info, name)
            if value is not None and value != held:
                raise DataError(
                    f"{self.path}: {name} {value!r}, but the file was exported with {held!r}; leave it out, or export "
                    "the run again with `cpn export`"
                )
        size = self.info.max_side if max_side is None else max_side
        check_counts(max_side=size)
        return _PhotoLabeller(self._session(device or "cpu"), size)

    def _session(self, device: str) -> OnnxLabeller:
        if device not in DEVICES:
            raise DataError(f"device {device!r}: expected one of {', '.join(DEVICES)}")
        if device not in self._sessions:
            self._sessions[device] = OnnxLabeller(self.path, DEVICES[device])
        return self._sessions[device]

    def label(
        self,
        source: Source,
        output: Path,
        split: str | None = None,
        progress: Progress = SILENT,
        **options: Any,
    ) -> JobSummary:
        """Write the masks of a split; an interrupted labelling resumes.

        Args:
            source: of the images; their labels are used.
            output: folder for SegmentationClass/ID.png, labelmap.txt and manifest.jsonl.
            split: which of the source's; None = train where it has it, else all.
            progress: where plan, bar and result are shown.
            options: `max_side`, `batch_size`, `workers`, `overwrite`, `use_labels`, `device`.

        Raises:
            DataError: for a source or option that does not fit, a folder of another model's masks, a full disk, or if
                no image at all could be read.
        """
        known: dict[str, Any] = {"max_side": self.info.max_side, "batch_size": 1, "workers": 2, "overwrite": False}
        known |= {"use_labels": True, "device": "cpu"}
        if unknown := sorted(options.keys() - known.keys()):
            raise DataError(f"{', '.join(unknown)}: unknown; an exported model takes {', '.join(known)}")
        chosen: dict[str, Any] = {**known, **options}
        check_counts(**{name: chosen[name] for name in ("max_side", "batch_size", "workers")})
        name, records = records_of(source, split)
        with open_regular(self.path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        jobs = OnnxLabelJobs(
            output=output, items=records, data=f"{source.spec} ({name})",
            settings={"model_sha256": digest, "max_side": chosen["max_side"], "use_labels": chosen["use_labels"]},
            workers=chosen["workers"], overwrite=chosen["overwrite"],
            source=source, labeller=self._session(chosen["device"]),
            mapping=ClassMapping.between(source.classes, self.classes),
            options=InferenceOptions(
                chosen["max_side"], chosen["batch_size"], chosen["workers"], use_labels=chosen["use_labels"]
            ),
        )  # fmt: skip
        return run_jobs(jobs, progress)


class _PhotoLabeller(ImageLabeller):
    """Labels one photograph with a session."""

    def __init__(self, session: OnnxLabeller, max_side: int) -> None:
        self.session, self.max_side = session, max_side
        self.classes = session.info.classes

    def _label(self, image: NDArray[np.uint8], present: tuple[int, ...] | None) -> LabelledImage:
        info, small = self.session.info, reduce_image(image, self.max_side)
        found = self.session(small[None], label_rows([present], len(self.classes)), with_maps=True)
        assert found.maps is not None
        active, _ = labels_in_force(info, present, found.scores[0], found.mask[0])
        foreground = found.maps[0, -len(self.classes) :]  # a segmentation network's begin with the background
        height, width = image.shape[:2]
        return LabelledImage(
            mask=enlarge(found.mask[0], height, width),
            maps=enlarge(foreground[active], height, width),
            scores=found.scores[0],
            classes=self.classes,
            labels=tuple(self.classes[index] for index in active),
        )


@dataclass(frozen=True)
class _Found:
    """What the graph says of one image: mask uint8 [H, W] at its size, its active classes and where they are from."""

    record: Record
    mask: NDArray[np.uint8]
    labels: list[int]
    labels_from: str


@dataclass(frozen=True, kw_only=True)
class OnnxLabelJobs(ImageJobs[Record, "_Found | Failure"]):
    """The records of a source through an exported model, and their masks to files.

    Attributes:
        source: reads the images.
        labeller: the model.
        mapping: the source's classes in the model's order.
        options: how images go through the model.
    """

    verb: ClassVar[str] = "label"
    participle: ClassVar[str] = "labelled"

    source: Source
    labeller: OnnxLabeller
    mapping: ClassMapping
    options: InferenceOptions

    @property
    def folder(self) -> MaskFolder:
        """Where the masks go."""
        return MaskFolder.at(self.output)

    def id_of(self, item: Record) -> str:
        """The record's id."""
        return item.id

    def is_done(self, item: Record, entry: Mapping[str, Any]) -> bool:
        """Whether the mask is there and the image labels are still those that it was made with."""
        given = self._given(item)
        if given is None:
            return self.folder.has(item.id) and entry.get("labels_from") != "image"
        names = class_names(self.labeller.info.classes, self._vector(given))
        return self.folder.has(item.id) and entry.get("labels_from") == "image" and entry.get("labels") == names

    def bytes_needed(self, todo: Sequence[Record]) -> float:
        """By the sizes of a few of the images."""
        return len(todo) * (mean_pixels([record.image_path for record in todo]) * MASK_BYTES + FILE_BYTES)

    def prepare(self) -> None:
        """The labelmap."""
        self.folder.write_labelmap(self.labeller.info.classes)

    def ready(self, todo: Sequence[Record]) -> Iterator[_Found | Failure]:
        """What the model says of each image."""
        for item in equal_sizes(self.source, todo, self.options):
            if isinstance(item, Failure):
                yield item
            else:
                yield from self._found(item)

    def work(self, item: _Found | Failure) -> Entry:
        """Write the mask."""
        record = item.record
        if isinstance(item, Failure):
            return error_entry(record.id, record.image_path, item.error)
        self.folder.write(record.id, item.mask)
        return {
            **self.folder.describe(record.id, record.image_path, item.mask),
            "labels": [self.labeller.info.classes[index] for index in item.labels],
            "labels_from": item.labels_from,
            "foreground": foreground_share(item.mask),
        }

    def _given(self, record: Record) -> tuple[int, ...] | None:
        if record.labels is None or not self.options.use_labels:
            return None
        return tuple(int(index) for index in np.flatnonzero(self.mapping.vector(record.labels)))

    def _vector(self, indices: tuple[int, ...]) -> NDArray[np.bool_]:
        present = np.zeros(len(self.labeller.info.classes), dtype=bool)
        present[list(indices)] = True
        return present

    def _found(self, batch: Sequence[Reduced]) -> Iterator[_Found]:
        info = self.labeller.info
        given = [self._given(sample.record) for sample, _ in batch]
        images = cast(NDArray[np.uint8], np.stack([small for _, small in batch]))
        out = self.labeller(images, label_rows(given, len(info.classes)))
        for (sample, _), present, mask, scores in zip(batch, given, out.mask, out.scores, strict=True):
            active, origin = labels_in_force(info, present, scores, mask)
            yield _Found(sample.record, enlarge(mask, *sample.image.shape[:2]), active, origin)
