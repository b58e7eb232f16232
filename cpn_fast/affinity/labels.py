"""What AffinityNet learns from: dense CRF scores of every image, with a low and with a high background power.

A run keeps them beside its weights, in `labels/`: `low/SoftMaps/ID.npz` and `high/SoftMaps/ID.npz`, background first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cpn_fast.config.training import AffinityConfig
from cpn_fast.console.terminal import item_progress
from cpn_fast.data.loading.parallel import available_cores, folder_lock
from cpn_fast.device import threads_shared_by
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.mask_folder import soft_path
from cpn_fast.files.max_side import reduce_image
from cpn_fast.files.output_folder import MANIFEST_NAME, SETTINGS_NAME, explained_writes, read_settings, record_settings
from cpn_fast.files.soft_maps import SoftMaps, write_soft_maps
from cpn_fast.inference.disk_space import FILE_BYTES, USUAL_PIXELS, need_space
from cpn_fast.models.affinity_labels import background_powers
from cpn_fast.refine.crf import Background, as_probabilities, background_scores, crf_probabilities
from cpn_fast.refine.labelled_folder import LabelledFolder, check_size, file_digest
from cpn_kernels.ops.dense_crf import AFFINITY_LABELS

INDEX_NAME = "index.json"
POWERS = ("low", "high")

_SCORE_BYTES = 0.8  # of both powers, per pixel of the image on disk, generous: images of coco_mini came to 0.4


@dataclass(frozen=True)
class LabelStore:
    """The `labels/` folder of a run.

    Attributes:
        path: the folder.
    """

    path: Path

    def scores(self, image_id: str) -> tuple[Path, Path]:
        """Files of the scores with low and with high background power."""
        low, high = (soft_path(self.path / power, image_id) for power in POWERS)
        return low, high

    def digest(self, image_id: str) -> str | None:
        """SHA-256 over both files; None where one cannot be read."""
        digests = [file_digest(path) for path in self.scores(image_id)]
        return None if None in digests else hashlib.sha256("".join(map(str, digests)).encode()).hexdigest()

    def freeze(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write down what the run is about to learn from."""
        kept = [{key: entry[key] for key in ("id", "image", "input_sha256", "scores_sha256")} for entry in entries]
        with explained_writes(self.path, INDEX_NAME):
            atomic_write_text(self.path / INDEX_NAME, json.dumps(kept, indent=0, ensure_ascii=False) + "\n")

    @cached_property
    def frozen(self) -> list[dict[str, Any]]:
        """What `freeze` wrote. Raises DataError where it is not there."""
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
            origin = soft_path(masks, entry["id"])
            if file_digest(origin) not in (None, entry["input_sha256"]):
                raise DataError(
                    f"{origin}: labelled anew since the run began, which learns from the older maps; start a new run "
                    "in another --output, or put the older labelling back"
                )


@dataclass(frozen=True)
class Synthesiser:
    """How the maps of one image become scores. Called in threads.

    Attributes:
        folder: the labelling.
        store: where the scores go.
        powers: low and high background power.
    """

    folder: LabelledFolder
    store: LabelStore
    powers: tuple[float, float]

    def settings(self) -> dict[str, Any]:
        """What decides the scores beside the maps, JSON-able."""
        low, high = self.powers
        about = {"classes": list(self.folder.classes), "low_power": low, "high_power": high}
        return {**about, **asdict(AFFINITY_LABELS), **self.folder.about()}

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Make the scores of one image.

        Args:
            entry: its line of the labelling's manifest.

        Returns:
            the manifest entry; status "error" where image or maps cannot be read or do not fit each other.

        Raises:
            DataError: where the scores cannot be written.
        """
        image_id, image_path = entry["id"], self.folder.image_path(entry)
        origin = soft_path(self.folder.path, image_id)
        try:
            digest = file_digest(origin)
            image = self.folder.read_image(entry)
            soft = self.folder.read_maps(image_id)
            check_size(origin, soft.size, image_path, image)
        except DataError as error:
            return {"id": image_id, "status": "error", "image": str(image_path), "error": str(error)}
        # At the size that the labelling saw: no detail is lost, and large images take no longer than it did.
        view = np.array(reduce_image(image, max(soft.maps.shape[1:])))
        values = np.concatenate([[0], soft.classes]).astype(np.uint8)
        with explained_writes(self.store.path, f"the labels of {image_id}"):
            for path, power in zip(self.store.scores(image_id), self.powers, strict=True):
                scores = background_scores(soft.maps, Background("power", power))
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
class Synthesis:
    """What a run is to learn from.

    Attributes:
        classes: the K foreground class names.
        images: manifest entries of the images that have labels, in the labelling's order.
    """

    classes: tuple[str, ...]
    images: list[dict[str, Any]]


def synthesise(config: AffinityConfig, path: Path, console: Console | None) -> Synthesis:
    """Make what is missing of a run's labels. Several processes at once wait for one another.

    Args:
        config: which labelling, and the background powers.
        path: folder of the labels.
        console: where to show it; None = say nothing.

    Raises:
        DataError: for a labelling or option that does not fit, a full disk, or if no image at all could be read.
    """
    folder = LabelledFolder.open(config.masks, config.data)
    folder.need_soft_maps()
    maker = Synthesiser(folder, LabelStore(path), _powers(config, folder))
    console = console or Console(quiet=True)
    with explained_writes(path, "labels"):
        path.mkdir(parents=True, exist_ok=True)
    with folder_lock(path), Manifest(path / MANIFEST_NAME) as manifest:
        with explained_writes(path, SETTINGS_NAME):
            record_settings(path, maker.settings(), overwrite=_made_otherwise(path, maker))
        known = manifest.entries()
        todo = [entry for entry in folder.entries if not _done(maker, known.get(entry["id"]))]
        _say_plan(console, maker, todo, len(folder.entries) - len(todo))
        for made in _make_all(console, maker, todo):
            with explained_writes(path, MANIFEST_NAME):
                manifest.append(made)
            known[made["id"]] = made
    return Synthesis(folder.classes, _usable(console, [known[entry["id"]] for entry in folder.entries], path))


def _powers(config: AffinityConfig, folder: LabelledFolder) -> tuple[float, float]:
    try:
        return background_powers(folder.beta(config.beta), config.low_share, config.high_share)
    except ValueError as error:
        raise DataError(f"--beta, --low-share, --high-share: {error}") from error


def _made_otherwise(path: Path, maker: Synthesiser) -> bool:
    """Whether the folder holds labels of other settings: none that a run has begun with, so they make way."""
    stored = path / SETTINGS_NAME
    try:
        return stored.is_file() and read_settings(stored) != json.loads(json.dumps(maker.settings()))
    except DataError:
        return True


def _done(maker: Synthesiser, entry: Mapping[str, Any] | None) -> bool:
    if entry is None or entry.get("status") != "ok":
        return False
    current = file_digest(soft_path(maker.folder.path, entry["id"]))
    return entry.get("input_sha256") == current and entry.get("scores_sha256") == maker.store.digest(entry["id"])


def _say_plan(console: Console, maker: Synthesiser, todo: Sequence[Mapping[str, Any]], skipped: int) -> None:
    low, high = maker.powers
    pixels = sum(entry.get("width", 0) * entry.get("height", 0) or USUAL_PIXELS for entry in todo)
    space = need_space(maker.store.path, "labels", pixels * _SCORE_BYTES + 2 * FILE_BYTES * len(todo))
    console.print(
        f"labels of [bold]{len(todo)}[/] images of {maker.folder.path} to make, {skipped} done already; background "
        f"powers {low:.3g} and {high:.3g}; {space}",
        highlight=False,
        soft_wrap=True,
    )


def _make_all(console: Console, maker: Synthesiser, todo: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    workers = available_cores()
    pending: deque[Future[dict[str, Any]]] = deque()
    rest = iter(todo)
    with (
        item_progress(console, "labels", len(todo)) as advance,
        threads_shared_by(workers),
        ThreadPoolExecutor(workers) as pool,
    ):
        pending.extend(pool.submit(maker, entry) for entry in itertools.islice(rest, 2 * workers))
        while pending:
            yield pending.popleft().result()
            advance(1)
            pending.extend(pool.submit(maker, entry) for entry in itertools.islice(rest, 1))


def _usable(console: Console, entries: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    ok = [entry for entry in entries if entry["status"] == "ok"]
    failed = [entry for entry in entries if entry["status"] != "ok"]
    if not ok:
        raise DataError(f"none of the {len(failed)} images could be read; the first: {failed[0]['error']}")
    if failed:
        console.print(f"[red]{len(failed)} images are left out[/], see {path / MANIFEST_NAME}; the first: ", end="")
        console.print(failed[0]["error"], markup=False, highlight=False, soft_wrap=True)
    return ok
