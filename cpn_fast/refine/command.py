"""`cpn refine`: a labelled folder's masks refined by random walk and dense CRF, in the same layout."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from cpn_fast.config.display import resuming
from cpn_fast.device import ready_device
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import JobSummary
from cpn_fast.files.jobs import run as run_jobs
from cpn_fast.files.mask_folder import MaskFolder, without_object
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.inference.options import check_positive
from cpn_fast.models.affinity_labels import alpha_of_beta
from cpn_fast.refine.crf import Background, CrfStep, crf_device
from cpn_fast.refine.image import SOFT_BETA, InitialScores, RefineJobs, RefinementStep, step_settings
from cpn_fast.refine.labelled_folder import LabelledFolder
from cpn_fast.refine.options import BackgroundRule, RefineConfig
from cpn_fast.refine.random_walk import WalkStep
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import RunFolder
from cpn_kernels import native_library
from cpn_kernels.ops.dense_crf import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefineSummary(JobSummary):
    """What a refinement did.

    Attributes:
        changed: mean share of pixels that got another label, over the masks written; NaN without any.
    """

    changed: float = math.nan


def run_refine(config: RefineConfig, progress: Progress = SILENT) -> RefineSummary:
    """Refine a folder of masks.

    Args:
        config: what to refine, and how.
        progress: where plan, bar and result are shown.

    Returns:
        how many masks were written, skipped, failed.

    Raises:
        DataError: for a folder or option that does not fit, an output folder of other settings or that another command
            writes to, a full disk, or if no image at all could be refined.
    """
    engine = config.open_engine()
    jobs = _jobs(config)
    _warn(jobs)
    summary = run_jobs(jobs, progress, engine)
    changed = sum(entry["changed"] for entry in summary.done) / summary.written if summary.written else math.nan
    text = f"{summary.written} masks written to {jobs.folder.masks}"
    progress.say(text + (f"; {100 * changed:.1f}% of their pixels got another label" if summary.written else ""))
    if empty := without_object(summary.done, _remedy(jobs)):
        progress.say(empty)
    return RefineSummary(**vars(summary), changed=changed)


def _jobs(config: RefineConfig) -> RefineJobs:
    crf = _check_options(config)
    folder = LabelledFolder.open(config.masks, config.data)
    if not config.hard:
        folder.need_soft_maps(f" (better), or take the hard masks with --hard, each label {config.gt_prob:g} sure")
    initial_scores, steps = InitialScores(_background(config, folder), config.gt_prob), _steps(config, crf)
    settings = {"classes": list(folder.classes), **step_settings(initial_scores, steps), **folder.about()}
    if config.soft_maps:
        settings["beta"] = SOFT_BETA
    return RefineJobs(
        output=config.output, items=folder.entries, settings=settings, data=str(folder.path),
        workers=config.workers or torch.get_num_threads(), overwrite=config.overwrite, reads=folder.read_folders(),
        planned=folder.planned, command=resuming("refine", config),
        folder=MaskFolder.at(config.output), labelling=folder, initial_scores=initial_scores, steps=steps,
        soft_maps=config.soft_maps, device=config.device, shares_threads=config.workers is None,
    )  # fmt: skip


def _remedy(jobs: RefineJobs) -> str:
    """What to do about masks without an object."""
    background = jobs.initial_scores.background
    if background is None:
        return "the labelling's own masks may hold none, or the CRF has taken it away: label with a lower --beta"
    option = "a lower --beta" if background.rule == "constant" else f"a higher --alpha than {background.value:.3g}"
    return f"less background may find one, {option}"


def _warn(jobs: RefineJobs) -> None:
    band = jobs.labelling.settings.get("void_band")
    if jobs.initial_scores.background is not None and band is not None:
        log.warning("the labelling's void band %s is not applied: no pixel stays void", band)
    if without := native_library.missing():
        log.warning("%s", without)


def _check_options(config: RefineConfig) -> Settings | None:
    """The numbers of the CRF, preset and overrides together (None = no CRF), after a look at all options."""
    if not config.crf and config.random_walk is None:
        raise DataError(
            "nothing to do: say what by --random-walk RUN (of cpn train-affinity), --crf (dense CRF), or both"
        )
    if config.output.resolve() == config.masks.resolve():
        raise DataError(f"--output {config.output}: the folder that is read; give another one, for it is kept as it is")
    check_positive(workers=1 if config.workers is None else config.workers, power=config.power)
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


def _rule(config: RefineConfig) -> BackgroundRule:
    return config.background or ("constant" if config.random_walk is None else "power")


def _background(config: RefineConfig, folder: LabelledFolder) -> Background | None:
    """What stands against the soft maps; None for hard masks."""
    if config.hard:
        return None
    if config.alpha is not None:
        return Background("power", _positive("alpha", config.alpha))
    beta = folder.beta(config.beta)
    if _rule(config) == "constant":
        return Background("constant", beta)
    if not 0 < beta < 1:
        raise DataError(f"beta {beta}: no exponent decides as it does; expected one between 0 and 1, or give --alpha")
    return Background("power", alpha_of_beta(beta))


def _steps(config: RefineConfig, crf: Settings | None) -> tuple[RefinementStep, ...]:
    steps: list[RefinementStep] = []
    device = "cpu" if config.on_cluster else ready_device(config.device)
    if config.random_walk is not None:
        trained = RunFolder(config.random_walk)
        if not trained.exists():
            raise DataError(
                f"--random-walk {trained.path}: no run there; expected the --output of `cpn train-affinity`"
            )
        net = trained.load_affinity_net(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps.append(WalkStep(net, weights_digest(trained), config.steps, config.power, config.scale))
    if crf is not None:
        steps.append(CrfStep(crf, crf_device(torch.device(device))))
    return tuple(steps)


def _positive(name: str, value: float) -> float:
    """`value`, or a DataError where it is no number above 0; `name` is the option's."""
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"--{name} {value}: expected a number above 0")
    return value
