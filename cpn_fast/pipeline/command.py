"""`cpn run`: every stage that is not up to date, in order; the same command resumes after a stop."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cpn_fast.config.display import default_settings
from cpn_fast.config.training import replace_dotted
from cpn_fast.console.exit_status import EXIT_FAILED_IMAGES
from cpn_fast.data.sources.base import folders_of
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import default_split
from cpn_fast.data.types import Source
from cpn_fast.files.apart import check_apart
from cpn_fast.files.digest import weights_sha256
from cpn_fast.files.errors import DataError
from cpn_fast.files.lock import locked
from cpn_fast.files.manifest import Manifest
from cpn_fast.files.output_folder import MANIFEST_NAME, raise_io_errors_as
from cpn_fast.files.progress import duration
from cpn_fast.pipeline.page import write_page
from cpn_fast.pipeline.plan import DEFAULT_SPLIT, PipelineConfig, Stage, plan, settings_of
from cpn_fast.pipeline.runner import Outcome, Runner, run_process
from cpn_fast.pipeline.state import (
    StageResult,
    StageState,
    content_digest,
    data_digest,
    digest_of,
    read_state,
    write_state,
)
from cpn_fast.report.command import read_scores

STATE_FOLDER, REPLACED_FOLDER = "state", "replaced"
UP_TO_DATE = "up to date"
INTERRUPTED = 130
FORMER_NAMES = {"refine.json": "postprocess.json"}
"""State files that the version before named otherwise."""


def run_pipeline(config: PipelineConfig, runner: Runner = run_process) -> Path:
    """Run the pipeline.

    Args:
        config: the settings.
        runner: runs a command.

    Returns:
        The report, OUTPUT/report.html.

    Raises:
        DataError: if data or settings do not fit, a stage fails, another call works in the same folder, or a folder of
            that name is there which the pipeline did not make. What was done stays.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the stage in progress has stored its state.
    """
    console = Console(stderr=True)
    source = open_source(config.train.data)
    if config.train.split == DEFAULT_SPLIT:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, split=default_split(source)))
    stages = plan(config, *_splits(config, source))
    _check_weights(config)
    check_apart(config.output, folders_of(source))
    with raise_io_errors_as(config.output, "its state"), locked(config.output) as lock:
        pipeline = _Pipeline(config, source, console, runner, lock)
        for number, stage in enumerate(stages, start=1):
            pipeline.bring_up_to_date(stage, f"{number}/{len(stages)}")
        page = write_page(config, source, pipeline.results)
    _print_summary(console, pipeline.results)
    console.print(f"report: {page.resolve()}", highlight=False, soft_wrap=True)
    return page


def _check_weights(config: PipelineConfig) -> None:
    """Raise DataError for weights that are not there, before a folder is made."""
    for training in (config.train, config.affinity, config.segment):
        if training is not None and training.weights is not None and not training.weights.is_file():
            raise DataError(f"{training.weights}: no such weights file; give --weights the path of one")


def _splits(config: PipelineConfig, source: Source) -> tuple[str | None, bool]:
    """The split to score on where it can be scored, and whether the training split has ground truth."""
    wanted = config.eval_split or ("val" if "val" in source.splits() else None)
    evaluated = wanted if wanted and any(r.mask_path for r in source.records(wanted)) else None
    if config.eval_split and evaluated is None:
        raise DataError(f"--eval-split {config.eval_split}: none of its images has a mask; name one that has, or none")
    return evaluated, any(record.mask_path for record in source.records(config.train.split))


class _Pipeline:
    """One call: what was found and done so far."""

    def __init__(self, config: PipelineConfig, source: Source, console: Console, runner: Runner, lock: int) -> None:
        self.config, self.source, self.console = config, source, console
        self.runner, self.lock = runner, lock
        self.results: list[StageResult] = []
        self._outputs: dict[str, str] = {}
        self._data: dict[tuple[str, bool], str] = {}

    def bring_up_to_date(self, stage: Stage, place: str) -> None:
        """Skip the stage, resume it, or run it. Raises DataError where it fails."""
        path, settings = self._state_path(stage), settings_of(stage.config, self.config.output)
        digest = self._digest(stage, settings)
        stored = read_state(path)
        if stored is not None and stored.digest == self._digest(stage, _known_to(stored, settings, stage)):
            stored = dataclasses.replace(stored, digest=digest, settings=settings)
        if stored is None or stored.digest != digest:
            self._set_aside(stage, stored)
            stored = StageState(digest, settings)
        elif stored.outputs is not None and content_digest(stage.outputs) == stored.outputs:
            self._say(stage, place, UP_TO_DATE)
            self._keep(stage, stored, skipped=True)
            return
        state = dataclasses.replace(stored, outputs=None)
        write_state(path, state)
        self._say(stage, place, "resuming" if stored.attempts else "")
        outcome = self.runner(stage.command, self._config(stage), self.lock)
        state = dataclasses.replace(
            state,
            seconds=round(state.seconds + outcome.seconds, 1),
            peak_memory_mib=round(max(state.peak_memory_mib, outcome.peak_memory_mib), 1),
            attempts=state.attempts + 1,
        )
        write_state(path, state)
        _check(stage, outcome)
        state = dataclasses.replace(state, outputs=_complete(stage))
        write_state(path, state)
        self._keep(stage, state, skipped=False)

    def _state_path(self, stage: Stage) -> Path:
        """Where the stage's state is kept; one that an earlier version kept under another name is renamed."""
        path = self.config.output / STATE_FOLDER / f"{stage.name.replace(' ', '-')}.json"
        former = path.with_name(FORMER_NAMES.get(path.name, path.name))
        if former.is_file() and not path.exists():
            former.rename(path)
        return path

    def _digest(self, stage: Stage, settings: Mapping[str, Any]) -> str:
        """Of all that decides over what the stage writes; of the weights the content, wherever they lie."""
        weights = settings.get("weights")
        return digest_of(
            {
                "settings": {name: value for name, value in settings.items() if name != "weights"},
                "weights": None if weights is None else weights_sha256(Path(weights)),
                "data": [self._data_digest(split, stage.truth) for split in stage.reads],
                "inputs": [self._outputs[name] for name in stage.needs],
            }
        )

    def _data_digest(self, split: str, truth: bool) -> str:
        """Of a split as this call found it: its files are looked at once."""
        if (split, truth) not in self._data:
            self._data[split, truth] = data_digest(self.source, self.source.records(split), truth)
        return self._data[split, truth]

    def _config(self, stage: Stage) -> Any:
        begun = stage.resumes and stage.owns is not None and (stage.owns / "config.json").is_file()
        return replace_dotted(stage.config, {"resume": True}) if begun else stage.config

    def _keep(self, stage: Stage, state: StageState, skipped: bool) -> None:
        assert state.outputs is not None
        self._outputs[stage.name] = state.outputs
        scores = {} if stage.scores is None else read_scores(stage.scores)
        self.results.append(StageResult(stage, state, skipped, scores))

    def _say(self, stage: Stage, place: str, how: str) -> None:
        self.console.rule(f"{place} {stage.name}" + (f": {how}" if how else ""), align="left")
        if how != UP_TO_DATE:
            self.console.print(f"$ {stage.text}", highlight=False, markup=False, soft_wrap=True)

    def _set_aside(self, stage: Stage, stored: StageState | None) -> None:
        """Make room for a stage that begins anew: what it made before is moved, in the place of what was moved last."""
        owned = stage.owns
        if owned is None or not owned.exists():
            return
        if stored is None:
            raise DataError(
                f"{owned}: exists, and this pipeline did not make it; move it away, or give another --output"
            )
        replaced = self.config.output / REPLACED_FOLDER / owned.name
        self.console.print(
            f"{stage.name}: its settings or inputs have changed; what it made before is kept in {replaced}",
            highlight=False,
            soft_wrap=True,
        )
        shutil.rmtree(replaced, ignore_errors=True)
        replaced.parent.mkdir(parents=True, exist_ok=True)
        owned.rename(replaced)


def _known_to(stored: StageState, settings: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The settings without those that a version after the stored state's has added, where these are at their default:
    an option more makes no stage another one."""
    defaults = default_settings(stage.config)
    return {
        name: value
        for name, value in settings.items()
        if name in stored.settings or name not in defaults or defaults[name] != value
    }


def _check(stage: Stage, outcome: Outcome) -> None:
    again = "fix this and rerun the same command to resume"
    if outcome.status == INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.status < 0:
        raise DataError(
            f"stage {stage.name!r}: ended by signal {-outcome.status} (9 is usually a lack of memory: its peak was "
            f"{outcome.peak_memory_mib:.0f} MiB); {again}"
        )
    if outcome.status == EXIT_FAILED_IMAGES:
        return  # the manifest says which, see `_complete`
    if outcome.status:
        raise DataError(f"stage {stage.name!r}: failed with status {outcome.status}, for the reason above; {again}")


def _complete(stage: Stage) -> str:
    """The digest of a stage's outputs. Raises DataError where something is missing."""
    if stage.manifest is not None:
        total, failed, first = 0, 0, ""
        for entry in Manifest(stage.manifest / MANIFEST_NAME).stream():
            total += 1
            if entry["status"] != "ok":
                failed, first = failed + 1, first or str(entry.get("error"))
        if failed:
            raise DataError(
                f"stage {stage.name!r}: {failed} of {total} images failed, the first: {first}; fix them, or "
                "take them off the split, and rerun the same command to resume"
            )
    digest = content_digest(stage.outputs)
    if digest is None:
        missing = ", ".join(str(path) for path in stage.outputs if content_digest((path,)) is None)
        raise DataError(f"stage {stage.name!r}: ended without writing {missing}; rerun the same command")
    return digest


def _print_summary(console: Console, results: Sequence[StageResult]) -> None:
    table = Table(title="Stages", title_justify="left")
    table.add_column("stage")
    for column in ("time", "peak memory", "mIoU %"):
        table.add_column(column, justify="right")
    for result in results:
        miou = result.scores.get("miou")
        table.add_row(
            result.stage.name + (" (up to date)" if result.skipped else ""),
            duration(result.state.seconds),
            f"{result.state.peak_memory_mib / 1024:.1f} GiB",
            "" if miou is None else f"{100 * miou:.1f}",
        )
    console.print(table)
