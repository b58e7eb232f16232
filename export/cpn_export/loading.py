"""An exported model as a value with the calls of a run: what `cpn_fast.load("model.onnx")` returns. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cpn_export.label import LabelOnnxConfig, active_labels, label_photos
from cpn_export.metadata import ModelInfo
from cpn_export.runtime import OnnxLabeller, Provider, label_rows
from cpn_fast.api.errors import in_python_words
from cpn_fast.api.images import ImageLabeller, LabelledImage
from cpn_fast.data.sources.base import folders_of
from cpn_fast.data.sources.spread import records_of
from cpn_fast.data.types import Record, Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import JobSummary
from cpn_fast.files.max_side import enlarge, reduce_image
from cpn_fast.files.photos import Photo
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.options import check_positive

DEVICES: dict[str, Provider] = {name: name for name in get_args(Provider)}


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
            device: a provider of `cpn-label`, such as "cpu", "cuda" or "auto"; None = "cpu".

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
        with in_python_words():
            check_positive(max_side=size)
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
            options: `max_side`, `batch_size`, `workers`, `overwrite`, `sheet`, as of `cpn-label`; `use_labels`: False
                ignores image labels; `device` as of `labeller`.

        Raises:
            DataError: for a source or option that does not fit, a folder of another model's masks, a full disk, or if
                no image at all could be read.
        """
        known = ("max_side", "batch_size", "workers", "overwrite", "sheet")
        if unknown := sorted(options.keys() - set(known) - {"use_labels", "device"}):
            raise DataError(
                f"{', '.join(unknown)}: unknown; an exported model takes {', '.join(known)}, use_labels, device"
            )
        name, records = records_of(source, split)
        mapping = ClassMapping.between(source.classes, self.classes)
        photos = [_photo(record, mapping, bool(options.get("use_labels", True))) for record in records]
        chosen = {option: value for option, value in options.items() if option in known}
        config = LabelOnnxConfig(self.path, (Path(f"{source.spec} ({name})"),), output, **chosen)
        return label_photos(config, self._session(options.get("device", "cpu")), photos, folders_of(source), progress)


def _photo(record: Record, mapping: ClassMapping, use_labels: bool) -> Photo:
    """A record as `cpn-label` takes it, its labels in the model's order."""
    known = use_labels and record.labels is not None
    labels = tuple(int(index) for index in np.flatnonzero(mapping.vector(record.labels or ()))) if known else None
    return Photo(record.id, record.image_path, (record.id,), labels)


class _PhotoLabeller(ImageLabeller):
    """Labels one photograph with a session."""

    def __init__(self, session: OnnxLabeller, max_side: int) -> None:
        self.session, self.max_side = session, max_side
        self.classes = session.info.classes

    def _label(self, image: NDArray[np.uint8], present: tuple[int, ...] | None) -> LabelledImage:
        info, small = self.session.info, reduce_image(image, self.max_side)
        found = self.session(small[None], label_rows([present], len(self.classes)), with_maps=True)
        assert found.maps is not None
        active, _ = active_labels(info, present, found.scores[0], found.mask[0])
        foreground = found.maps[0, -len(self.classes) :]  # a segmentation network's begin with the background
        height, width = image.shape[:2]
        return LabelledImage(
            mask=enlarge(found.mask[0], height, width),
            maps=enlarge(foreground[active], height, width),
            scores=found.scores[0],
            classes=self.classes,
            labels=tuple(self.classes[index] for index in active),
        )
