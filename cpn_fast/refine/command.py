"""`cpn postprocess`: a labelled folder's masks refined by random walk and dense CRF, in the same layout."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cpn_fast.console.terminal import duration, item_progress
from cpn_fast.device import ready_device, threads_shared_by
from cpn_fast.files.errors import DataError
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.mask_folder import MASK_FOLDER
from cpn_fast.files.masks import write_labelmap
from cpn_fast.files.output_folder import MANIFEST_NAME, explained_writes, record_settings
from cpn_fast.inference.disk_space import FILE_BYTES, MASK_BYTES, SOFT_BYTES, USUAL_PIXELS, need_space
from cpn_fast.inference.options import check_counts
from cpn_fast.models.affinity_labels import alpha_of_beta
from cpn_fast.refine.crf import Background, CrfStep
from cpn_fast.refine.image import SOFT_BETA, Beginning, Refiner, Step
from cpn_fast.refine.labelled_folder import LabelledFolder, check_power
from cpn_fast.refine.options import BackgroundRule, PostprocessConfig
from cpn_fast.refine.random_walk import WalkStep
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder
from cpn_kernels import native_library
from cpn_kernels.ops.dense_crf import Settings


@dataclass(frozen=True)
class PostprocessSummary:
    """What a refinement did.

    Attributes:
        written: masks written now.
        skipped: masks that were done already.
        failed: images whose files could not be read; the manifest says why.
        changed: mean share of pixels that got another label, over those written; NaN without any.
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
    folder = LabelledFolder.open(config.masks, config.data)
    if not config.hard:
        folder.need_soft_maps(f" (better), or take the hard masks with --hard, each label {config.gt_prob:g} sure")
    beginning = Beginning(_background(config, folder), config.gt_prob)
    refiner = Refiner(folder, config.output, beginning, _steps(config, crf), config.soft_maps)
    settings = {"classes": list(folder.classes), **refiner.settings(), **folder.about()}
    if config.soft_maps:
        settings["beta"] = SOFT_BETA
    with explained_writes(config.output, "settings and labelmap"):
        record_settings(config.output, settings, config.overwrite, "postprocessed")
        write_labelmap(config.output / "labelmap.txt", folder.classes)
    with Manifest(config.output / MANIFEST_NAME) as manifest:
        known = manifest.entries()
        todo = [entry for entry in folder.entries if not refiner.is_done(known.get(entry["id"]))]
        _say_plan(console, refiner, todo, len(folder.entries) - len(todo))
        made = list(_refine_all(console, refiner, manifest, todo, workers))
    return _result(console, config, made, len(folder.entries) - len(todo))


def _check_options(config: PostprocessConfig) -> Settings | None:
    """The numbers of the CRF, preset and overrides together (None = no CRF), after a look at all options."""
    if not config.crf and config.random_walk is None:
        raise DataError("nothing to do: say what by --random-walk RUN (of cpn affinity), --crf (dense CRF), or both")
    if config.output.resolve() == config.masks.resolve():
        raise DataError(f"--output {config.output}: the folder that is read; give another one, for it is kept as it is")
    check_counts(workers=1 if config.workers is None else config.workers, power=config.power)
    if config.steps < 0:
        raise DataError(f"--steps {config.steps}: expected 0 or more")
    if not 0 < config.scale <= 4:
        raise DataError(f"--scale {config.scale}: expected a number above 0 and at most 4")
    if not 0 < config.gt_prob < 1:
        raise DataError(f"--gt-prob {config.gt_prob}: expected a number between 0 and 1")
    if config.alpha is not None and _rule(config) != "power":
        raise DataError("--alpha is the number of --background power; give that too")
    if config.hard and (config.background, config.beta, config.alpha) != (None, None, None):
        raise DataError("--hard takes no --background, --beta or --alpha: hard masks have their background already")
    if config.hard and config.random_walk is not None:
        raise DataError("--random-walk lets soft maps walk: leave out --hard")
    crf = config.crf_settings(config.preset)
    return crf if config.crf else None


def _rule(config: PostprocessConfig) -> BackgroundRule:
    return config.background or ("constant" if config.random_walk is None else "power")


def _background(config: PostprocessConfig, folder: LabelledFolder) -> Background | None:
    """What stands against the soft maps; None for hard masks."""
    if config.hard:
        return None
    if config.alpha is not None:
        return Background("power", check_power("alpha", config.alpha))
    beta = folder.beta(config.beta)
    if _rule(config) == "constant":
        return Background("constant", beta)
    if not 0 < beta < 1:
        raise DataError(f"beta {beta}: no power decides as it does; expected one between 0 and 1, or give --alpha")
    return Background("power", alpha_of_beta(beta))


def _steps(config: PostprocessConfig, crf: Settings | None) -> tuple[Step, ...]:
    steps: list[Step] = []
    if config.random_walk is not None:
        run = RunFolder(config.random_walk)
        if not run.exists():
            raise DataError(f"--random-walk {run.path}: no run there; expected the --output of `cpn affinity`")
        net = run.load_affinity_net(ready_device(config.device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps.append(WalkStep(net, weights_digest(run), config.steps, config.power, config.scale))
    if crf is not None:
        steps.append(CrfStep(crf))
    return tuple(steps)


def _say_plan(console: Console, refiner: Refiner, todo: Sequence[Any], skipped: int) -> None:
    """What will be done and the disk it takes; refuses where that is more than there is."""
    background = refiner.beginning.background
    begin = (
        f"hard masks ({refiner.beginning.gt_prob:g} sure, void unsure)"
        if background is None
        else f"soft maps, background {background.rule} {background.value:.4g}"
    )
    lines = [f"[bold]{len(todo)}[/] masks of {refiner.folder.path} to refine, {skipped} done already; {begin}"]
    for step in refiner.steps:
        lines.append(", ".join(f"{key} {value:g}" for key, value in step.settings().items() if not key.endswith("256")))
    band = refiner.folder.settings.get("void_band")
    if background is not None and band is not None:
        lines.append(f"[yellow]the labelling's void band {band} is not applied: no pixel stays void[/]")
    if not native_library.available():
        lines.append("[yellow]without the native library: plain torch, which is slower[/]")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    pixels = sum(entry.get("width", 0) * entry.get("height", 0) or USUAL_PIXELS for entry in todo)
    each = MASK_BYTES + (SOFT_BYTES if refiner.soft_maps else 0)
    need_space(refiner.output, "masks", pixels * each + FILE_BYTES * len(todo))


def _refine_all(
    console: Console, refiner: Refiner, manifest: Manifest, todo: Sequence[Any], workers: int
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
