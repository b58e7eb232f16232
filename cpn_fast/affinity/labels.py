"""What AffinityNet learns from: dense CRF scores of every image, with a low and with a high background exponent.

A run keeps them beside its weights, in `labels/`: `low/SoftMaps/ID.npz` and `high/SoftMaps/ID.npz`, background first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cpn_fast.config.training import AffinityConfig
from cpn_fast.data.loading.parallel import available_cores
from cpn_fast.device import threads_shared_by
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.digest import file_digest
from cpn_fast.files.disk_space import FILE_BYTES, USUAL_PIXELS
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, ImageJobs, error_entry
from cpn_fast.files.jobs import run as run_jobs
from cpn_fast.files.json_file import read_json
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.mask_folder import MaskFolder, check_size
from cpn_fast.files.max_side import reduce_image
from cpn_fast.files.output_folder import MANIFEST_NAME, SETTINGS_NAME, raise_io_errors_as, read_settings
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.files.soft_maps import SoftMaps, write_soft_maps
from cpn_fast.models.affinity_labels import background_exponents
from cpn_fast.refine.crf import Background, as_probabilities, background_scores, crf_probabilities
from cpn_fast.refine.labelled_folder import LabelledFolder
from cpn_kernels.ops.dense_crf import AFFINITY_LABELS

log = logging.getLogger(__name__)

INDEX_NAME = "index.json"
POWERS = ("low", "high")

_SCORE_BYTES = 0.8  # of both exponents, per pixel of the image on disk, generous: images of coco_mini came to 0.4


@dataclass(frozen=True)
class LabelStore:
    """The `labels/` folder of a run.

    Attributes:
        path: the folder.
    """

    path: Path

    def scores(self, image_id: str) -> tuple[Path, Path]:
        """Files of the scores with low and with high background exponent."""
        low, high = (MaskFolder.at(self.path / power).soft_path(image_id) for power in POWERS)
        return low, high

    def digest(self, image_id: str) -> str | None:
        """SHA-256 over both files; None where one cannot be read."""
        digests = [file_digest(path) for path in self.scores(image_id)]
        return None if None in digests else hashlib.sha256("".join(map(str, digests)).encode()).hexdigest()

    def snapshot(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write down what the run is about to learn from."""
        kept = [{key: entry[key] for key in ("id", "image", "input_sha256", "scores_sha256")} for entry in entries]
        with raise_io_errors_as(self.path, INDEX_NAME):
            atomic_write_text(self.path / INDEX_NAME, json.dumps(kept, indent=0, ensure_ascii=False) + "\n")

    @cached_property
    def frozen(self) -> list[dict[str, Any]]:
        """What `snapshot` wrote. Raises DataError where it is not there."""
        path = self.path / INDEX_NAME
        remedy = "the run cannot go on without it: start a new one"
        entries = read_json(path, "the list of the labels that the run began with", remedy)
        keys = ("id", "image", "input_sha256", "scores_sha256")
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys) for entry in entries
        ):
            raise DataError(f"{path}: expected a list of objects with {', '.join(keys)}; {remedy}")
        return entries

    def check_unchanged(self, masks: Path) -> None:
        """Refuse labels that are not those that the run began with.

        Args:
            masks: the labelling; where it is still there, it has to be the one that the labels were made of.

        Raises:
            DataError: naming the first image whose labels are gone or have changed.
        """
        for entry in self.frozen:
            low, _ = self.scores(entry["id"])
            if self.digest(entry["id"]) != entry["scores_sha256"]:
                raise DataError(
                    f"{low}: the labels of {entry['id']} are gone or have changed since the run began; put them back, "
                    "or start a new run in another --output"
                )
            origin = MaskFolder.at(masks).soft_path(entry["id"])
            if file_digest(origin) not in (None, entry["input_sha256"]):
                raise DataError(
                    f"{origin}: labelled anew since the run began, which learns from the older maps; start a new run "
                    "in another --output, or put the older labelling back"
                )


@dataclass(frozen=True, kw_only=True)
class AffinityLabelJobs(ImageJobs[Mapping[str, Any], Mapping[str, Any]]):
    """Class maps of a labelling to CRF scores; the images are the lines of its manifest.

    Attributes:
        folder: the labelling.
        exponents: low and high background exponent.
    """

    verb: ClassVar[str] = "make affinity labels of"
    participle: ClassVar[str] = "made"
    results: ClassVar[str] = "labels"
    waits: ClassVar[bool] = True  # the processes of one training: the first makes the labels, the others find them

    folder: LabelledFolder
    exponents: tuple[float, float]

    @property
    def store(self) -> LabelStore:
        """Where the scores go."""
        return LabelStore(self.output)

    def id_of(self, item: Mapping[str, Any]) -> str:
        """The labelling's id."""
        return item["id"]

    def is_done(self, item: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
        """Whether the scores are there, unchanged, and made of the maps that the labelling has now."""
        current = file_digest(self.folder.masks.soft_path(item["id"]))
        return entry.get("input_sha256") == current and entry.get("scores_sha256") == self.store.digest(item["id"])

    def bytes_needed(self, todo: Sequence[Mapping[str, Any]]) -> float:
        """By the sizes that the labelling has recorded."""
        pixels = sum(entry.get("width", 0) * entry.get("height", 0) or USUAL_PIXELS for entry in todo)
        return pixels * _SCORE_BYTES + 2 * FILE_BYTES * len(todo)

    def about(self) -> str:
        """The background exponents."""
        return "background exponents {:.3g} and {:.3g}".format(*self.exponents)

    def threads(self) -> AbstractContextManager[object]:
        """The CRFs of several images share the cores."""
        return threads_shared_by(self.workers)

    def work(self, item: Mapping[str, Any]) -> Entry:
        """Make the scores of one image."""
        image_id, image_path = item["id"], self.folder.image_path(item)
        origin = self.folder.masks.soft_path(image_id)
        try:
            digest = file_digest(origin)
            image = self.folder.read_image(item)
            soft = self.folder.masks.read_soft(image_id, len(self.folder.classes))
            check_size(origin, soft.size, image_path, image)
        except DataError as error:
            return error_entry(image_id, image_path, str(error))
        # At the size that the labelling saw: no detail is lost, and large images take no longer than it did.
        view = np.array(reduce_image(image, max(soft.maps.shape[1:])))
        values = np.concatenate([[0], soft.classes]).astype(np.uint8)
        with raise_io_errors_as(self.output, f"the labels of {image_id}"):
            for path, exponent in zip(self.store.scores(image_id), self.exponents, strict=True):
                scores = background_scores(soft.maps, Background("power", exponent))
                refined = crf_probabilities(image_id, view, as_probabilities(scores), AFFINITY_LABELS)
                write_soft_maps(path, SoftMaps(values, refined[0].numpy(), soft.size))
        return {
            "id": image_id,
            "status": "ok",
            "image": str(image_path),
            "input_sha256": digest,
            "scores_sha256": self.store.digest(image_id),
        }


@dataclass(frozen=True)
class AffinityLabels:
    """What a run is to learn from.

    Attributes:
        classes: the K foreground class names.
        images: manifest entries of the images that have labels, in the labelling's order.
    """

    classes: tuple[str, ...]
    images: list[dict[str, Any]]


def make_affinity_labels(config: AffinityConfig, path: Path, progress: Progress = SILENT) -> AffinityLabels:
    """Make what is missing of a run's labels. Several processes at once wait for one another.

    Args:
        config: which labelling, and the background exponents.
        path: folder of the labels.
        progress: where plan and bar are shown.

    Raises:
        DataError: for a labelling or option that does not fit, a full disk, or if no image at all could be read.
    """
    folder = LabelledFolder.open(config.masks, config.data)
    folder.need_soft_maps()
    exponents = _exponents(config, folder)
    settings = _settings(folder, exponents)
    jobs = AffinityLabelJobs(
        output=path, items=folder.entries, settings=settings, data=str(folder.path), workers=available_cores(),
        overwrite=_made_otherwise(path, settings), folder=folder, exponents=exponents,
    )  # fmt: skip
    run_jobs(jobs, progress)
    with closing(Manifest(path / MANIFEST_NAME).index()) as known:
        found = (known.find(entry["id"]) for entry in folder.entries)
        ok = [entry for entry in found if entry is not None and entry["status"] == "ok"]
    if len(ok) < len(folder.entries):
        excluded = len(folder.entries) - len(ok)
        log.warning("%d of %d images are excluded from the training", excluded, len(folder.entries))
    return AffinityLabels(folder.classes, ok)


def _exponents(config: AffinityConfig, folder: LabelledFolder) -> tuple[float, float]:
    try:
        return background_exponents(folder.beta(config.beta), config.low_share, config.high_share)
    except ValueError as error:
        raise DataError(f"--beta, --low-share, --high-share: {error}") from error


def _settings(folder: LabelledFolder, exponents: tuple[float, float]) -> dict[str, Any]:
    """What decides the scores beside the maps, JSON-able."""
    low, high = exponents
    about = {"classes": list(folder.classes), "low_power": low, "high_power": high}
    return {**about, **asdict(AFFINITY_LABELS), **folder.about()}


def _made_otherwise(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds labels of other settings: none that a run has begun with, so they make way."""
    stored = path / SETTINGS_NAME
    try:
        return stored.is_file() and read_settings(stored) != json.loads(json.dumps(settings))
    except DataError:
        return True
