"""`cpn postprocess`: a labelled folder's masks refined along the edges of the images, in the same layout."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from cpn_fast.crf_options import CrfOptions, CrfPreset
from cpn_fast.crf_refiner import Background, BackgroundRule, CrfRefiner
from cpn_fast.data.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.masks import read_labelmap, write_labelmap
from cpn_fast.inference import check_counts
from cpn_fast.mask_writer import MASK_FOLDER, SOFT_FOLDER, mask_path
from cpn_fast.models.affinity_labels import alpha_of_beta
from cpn_fast.output_folder import MANIFEST_NAME, SETTINGS_NAME, explained_writes, read_settings, record_settings
from cpn_fast.runtime_tuning import threads_shared_by
from cpn_fast.terminal import duration, item_progress
from cpn_kernels import native_library
from cpn_kernels.dense_crf import GT_PROB, Settings

_MASK_BYTES = 0.04  # per pixel on disk, generous: masks of coco_mini came to 0.02
_USUAL_PIXELS = 250_000


@dataclass(frozen=True)
class PostprocessConfig(CrfOptions):
    """Refine masks that `cpn label` wrote.

    Attributes:
        masks: folder that `cpn label --soft-maps` wrote.
        output: folder for SegmentationClass/ID.png, labelmap.txt, manifest.jsonl and settings.json.
        crf: dense CRF.
        hard: begin with the hard masks instead of the soft maps; void pixels count as unsure.
        gt_prob: how sure hard masks are taken to be, between 0 and 1.
        background: what stands against the soft maps: the constant score beta, as in the labelling's masks, or the
            power (1 - max) ** alpha.
        beta: background score, 0..1; None = the labelling's.
        alpha: background power; None = the one that decides as beta does.
        preset: numbers of the CRF for AffinityNet's labels or for a segmentation network's predictions.
        data: source in which to find the images by their ids, where they have moved since.
        overwrite: refine everything again, also with other settings.
        workers: images at a time; None = one per thread of torch.
    """

    masks: Annotated[Path, tyro.conf.Positional]
    output: Path
    crf: bool = False
    hard: bool = False
    gt_prob: float = GT_PROB
    background: BackgroundRule = "constant"
    beta: float | None = None
    alpha: float | None = None
    preset: CrfPreset = "affinity"
    data: str | None = None
    overwrite: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class PostprocessSummary:
    """What a refinement did.

    Attributes:
        written: masks written now.
        skipped: masks that were done already.
        failed: images whose files could not be read; the manifest says why.
        changed: mean share of pixels that the CRF gave another label, over those written; NaN without any.
        output: the folder.
    """

    written: int
    skipped: int
    failed: int
    changed: float
    output: Path


def run_postprocess(config: PostprocessConfig) -> PostprocessSummary:
    """Refine a folder of masks.

    Args:
        config: what to refine, and how.

    Returns:
        how many masks were written, skipped, failed.

    Raises:
        DataError: for a folder or option that does not fit, an output folder of other settings, a full disk, or if no
            image at all could be refined.
    """
    console, workers = Console(), config.workers or torch.get_num_threads()
    crf = _check_options(config)
    entries, classes, labelled = _read_input(config)
    images = {} if config.data is None else _images_of(config.data)
    refiner = CrfRefiner(
        config.masks, config.output, len(classes), _background(config, labelled), config.gt_prob, crf, images
    )
    settings = {
        "classes": list(classes),
        **refiner.settings(),
        **{f"label.{key}": value for key, value in labelled.items() if key != "classes"},
    }
    with explained_writes(config.output, "settings and labelmap"):
        record_settings(config.output, settings, config.overwrite, "postprocessed")
        write_labelmap(config.output / "labelmap.txt", classes)
    with Manifest(config.output / MANIFEST_NAME) as manifest:
        todo = _todo(entries, refiner, manifest)
        _say_plan(console, config, refiner, labelled, todo, len(entries) - len(todo))
        made = list(_refine_all(console, refiner, manifest, todo, workers))
    return _result(console, config, made, len(entries) - len(todo))


def _check_options(config: PostprocessConfig) -> Settings:
    """The numbers of the CRF, preset and overrides together, after a look at all options."""
    if not config.crf:
        raise DataError("nothing to do: say what by --crf (dense CRF)")
    if config.output.resolve() == config.masks.resolve():
        raise DataError(f"--output {config.output}: the folder that is read; give another one, for it is kept as it is")
    check_counts(workers=1 if config.workers is None else config.workers)
    if not 0 < config.gt_prob < 1:
        raise DataError(f"--gt-prob {config.gt_prob}: expected a number between 0 and 1")
    if config.alpha is not None and config.background != "power":
        raise DataError("--alpha is the number of --background power; give that too")
    if config.hard and (config.background, config.beta, config.alpha) != ("constant", None, None):
        raise DataError("--hard takes no --background, --beta or --alpha: hard masks have their background already")
    return config.crf_settings(config.preset)


def _read_input(config: PostprocessConfig) -> tuple[list[dict[str, Any]], tuple[str, ...], dict[str, Any]]:
    """The labelled images' manifest entries, the classes, and the labelling's settings ({} without any)."""
    manifest, settings = config.masks / MANIFEST_NAME, config.masks / SETTINGS_NAME
    if not manifest.is_file():
        raise DataError(f"{manifest}: not there; expected a folder that `cpn label` wrote: give that")
    entries = list(Manifest(manifest).entries().values())
    ok = [entry for entry in entries if entry.get("status") == "ok"]
    if not ok:
        raise DataError(f"{manifest}: none of its {len(entries)} images is labelled; run `cpn label` to the end first")
    for entry in ok:
        if not isinstance(entry.get("image"), str):
            raise DataError(f"{manifest}: {entry['id']!r} has no `image`, the path of its image; label it again")
    if not config.hard and not (config.masks / SOFT_FOLDER).is_dir():
        raise DataError(
            f"{config.masks / SOFT_FOLDER}: no class maps there; call `cpn label` again with --soft-maps (better), or "
            f"take the hard masks with --hard, each label {config.gt_prob:g} sure"
        )
    return ok, read_labelmap(config.masks / "labelmap.txt"), read_settings(settings) if settings.is_file() else {}


def _background(config: PostprocessConfig, labelled: Mapping[str, Any]) -> Background | None:
    """What stands against the soft maps; None for hard masks."""
    if config.hard:
        return None
    if config.background == "power" and config.alpha is not None:
        if not (math.isfinite(config.alpha) and config.alpha > 0):
            raise DataError(f"--alpha {config.alpha}: expected a number above 0")
        return Background("power", config.alpha)
    beta = labelled.get("beta") if config.beta is None else config.beta
    if not isinstance(beta, int | float):
        raise DataError(f"{config.masks / SETTINGS_NAME}: says no beta, the background score; give --beta")
    if config.background == "power":
        if not 0 < beta < 1:
            raise DataError(f"beta {beta}: no power decides as it does; expected one between 0 and 1, or give --alpha")
        return Background("power", alpha_of_beta(beta))
    if not 0 <= beta <= 1:
        raise DataError(f"--beta {beta}: expected a score in 0..1")
    return Background("constant", float(beta))


def _images_of(data: str) -> dict[str, Path]:
    """Image path by id, over all splits of a source."""
    source = open_source(data)
    return {record.id: record.image_path for split in source.splits() for record in source.records(split)}


def _todo(entries: Sequence[dict[str, Any]], refiner: CrfRefiner, manifest: Manifest) -> list[dict[str, Any]]:
    """The entries whose masks are not there, or whose maps have changed since."""
    known = manifest.entries()

    def done(image_id: str) -> bool:
        entry = known.get(image_id)
        if entry is None or entry.get("status") != "ok" or not mask_path(refiner.output, image_id).is_file():
            return False
        return refiner.digest(image_id) in (None, entry.get("input_sha256"))

    return [entry for entry in entries if not done(entry["id"])]


def _say_plan(
    console: Console,
    config: PostprocessConfig,
    refiner: CrfRefiner,
    labelled: Mapping[str, Any],
    todo: Sequence[Mapping[str, Any]],
    skipped: int,
) -> None:
    """What will be done and the disk it takes; refuses where that is more than there is."""
    numbers = ", ".join(f"{key} {value:g}" for key, value in dataclasses.asdict(refiner.crf).items())
    background = refiner.background
    begin = (
        f"hard masks ({refiner.gt_prob:g} sure, void unsure)"
        if background is None
        else f"soft maps, background {background.rule} {background.value:.4g}"
    )
    lines = [f"[bold]{len(todo)}[/] masks of {config.masks} to refine, {skipped} done already; {begin}", numbers]
    if background is not None and labelled.get("void_band") is not None:
        lines.append(
            f"[yellow]the labelling's void band {labelled['void_band']} is not applied: no pixel stays void[/]"
        )
    if not native_library.available():
        lines.append("[yellow]without the native library: plain torch, which is slower[/]")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    pixels = sum(entry.get("width", 0) * entry.get("height", 0) or _USUAL_PIXELS for entry in todo)
    need, free = pixels * _MASK_BYTES + 1000 * len(todo), shutil.disk_usage(config.output).free
    if need > free:
        raise DataError(
            f"{config.output}: the masks need about {need / 1e6:.1f} MB but {free / 1e6:.1f} MB are free; free some or "
            "give another --output"
        )


def _refine_all(
    console: Console, refiner: CrfRefiner, manifest: Manifest, todo: Sequence[dict[str, Any]], workers: int
) -> Iterator[dict[str, Any]]:
    """Refine in threads and yield the manifest's entries; the first images give the time estimate."""
    pending: deque[Future[dict[str, Any]]] = deque()
    start, rest = time.monotonic(), iter(todo)
    with (
        item_progress(console, "refine", len(todo)) as advance,
        threads_shared_by(workers),
        ThreadPoolExecutor(workers) as pool,
    ):
        pending.extend(pool.submit(refiner, entry) for entry in itertools.islice(rest, 2 * workers))
        for number in range(1, len(todo) + 1):
            made = pending.popleft().result()
            with explained_writes(refiner.output, MANIFEST_NAME):
                manifest.append(made)
            advance(1)
            if number == workers:
                expected = (time.monotonic() - start) / number * len(todo)
                console.print(f"time: about {duration(expected)}, by the first {number}", highlight=False)
            pending.extend(pool.submit(refiner, entry) for entry in itertools.islice(rest, 1))
            yield made


def _result(
    console: Console, config: PostprocessConfig, made: Sequence[dict[str, Any]], skipped: int
) -> PostprocessSummary:
    ok = [entry for entry in made if entry["status"] == "ok"]
    failed = [entry for entry in made if entry["status"] != "ok"]
    changed = sum(entry["changed"] for entry in ok) / len(ok) if ok else math.nan
    text = f"{len(ok)} masks written to {config.output / MASK_FOLDER}"
    if ok:
        text += f"; {100 * changed:.1f}% of their pixels got another label"
    console.print(text, highlight=False, soft_wrap=True)
    if failed:
        first = failed[0]["error"]
        console.print(
            f"[red]{len(failed)} could not be refined[/], see {config.output / MANIFEST_NAME}; the first: ", end=""
        )
        console.print(first, markup=False, highlight=False, soft_wrap=True)
        if not ok and not skipped:
            raise DataError(f"none of the {len(failed)} images could be refined; the first: {first}")
    return PostprocessSummary(len(ok), skipped, len(failed), changed, config.output)
