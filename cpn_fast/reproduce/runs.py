"""The trainings behind the tables: each is trained and scored once, whichever tables it stands in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from cpn_fast.cam.map_options import training_side
from cpn_fast.cam.task import run_train
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.refine import Refine, ScalesOf
from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.config.training import TrainConfig, replace_dotted
from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.data.loading.parallel import folder_lock
from cpn_fast.data.sources.spread import records_of, spread_evenly
from cpn_fast.data.superpixels.backend import hides_superpixels, version_of
from cpn_fast.data.types import Record, Source
from cpn_fast.files.digest import weights_sha256
from cpn_fast.files.errors import DataError, NonFiniteError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.output_folder import raise_io_errors_as
from cpn_fast.metrics.image_counts import COUNTS_NAME
from cpn_fast.metrics.maps import MULTI
from cpn_fast.metrics.report import METRICS_NAME
from cpn_fast.models.build import refinement_of
from cpn_fast.reproduce.summary import Measurement
from cpn_fast.reproduce.tables import ALL, Refined, Row
from cpn_fast.runs.digest import weights_digest
from cpn_fast.runs.folder import FREE_ON_RESUME, RunFolder, check_same_settings
from cpn_fast.scoring.command import EvaluateConfig, run_evaluate
from cpn_kernels.ops.superpixels import resolve_backend

log = logging.getLogger(__name__)

NOT_IN_DIGEST = (FREE_ON_RESUME - {"max_steps"}) | {"preset", "data", "weights"}
"""What changes no result, the name of a bundle whose options count, and paths, for which their content stands."""
MASK_TRIALS = 8


@dataclass(frozen=True)
class Scoring:
    """How every run is scored; see `EvaluateConfig`.

    Attributes:
        split: split with masks; None = the source's train, or all its images.
        scales: scored alone and all together.
        images: at most so many, spread evenly over the split; None = all.
        max_side: longer images are reduced to this long side in pixels first; None = as `cpn evaluate` does.
        scales_of: whether scales are factors of the "image", or of the mean long side of the run's "training".
    """

    split: str | None
    scales: tuple[float, ...]
    images: int | None = None
    max_side: int | None = None
    scales_of: ScalesOf = "image"

    def records(self, source: Source) -> tuple[str, Sequence[Record], int]:
        """The split, the images that are scored, and how many it has. Raises DataError for an unknown split."""
        split, every = records_of(source, self.split)
        return split, spread_evenly(every, self.images), len(every)


class RunStore:
    """Trained and scored runs by their settings, under `ROOT/runs`.

    Args:
        root: the folder of all tables.
        source: what is trained and scored on.
        scoring: how every run is scored.
    """

    def __init__(self, root: Path, source: Source, scoring: Scoring) -> None:
        self.root, self.source, self.scoring = root, source, scoring

    def settled(self, config: TrainConfig) -> TrainConfig:
        """The settings with recipe and superpixel backend filled in, and the output folder that belongs to them.

        Raises:
            DataError: for weights that cannot be read, a split without labels, or a backend that is not there.
        """
        config = replace_dotted(with_recipe(config), {"preset": "default", "resume": False})
        if hides_superpixels(config):
            backend = resolve_backend(config.patch.backend)
            config = replace_dotted(config, {"patch.backend": backend})
        name = f"{config.method}-seed{config.loop.seed}-{self.digest(config)}"
        return dataclasses.replace(config, output=self.root / "runs" / name)

    def identity(self, config: TrainConfig) -> dict[str, Any]:
        """Everything that decides over a run's weights, as JSON-able values: settings, and contents of files.

        Settings at their default are left out, so that an option that a later version adds makes no run another one.
        """
        defaults = flat(config_to_dict(TrainConfig(data="", output=Path())))
        values = flat(config_to_dict(config))
        kept = {name: value for name, value in values.items() if name not in NOT_IN_DIGEST and value != defaults[name]}
        backend = version_of(config.patch.backend) if hides_superpixels(config) else None
        weights = None if config.weights is None else weights_sha256(config.weights)
        labels = records_digest(self.source, config.split)
        return {**kept, "patch.backend": backend, "weights": weights, "data": labels}

    def digest(self, config: TrainConfig) -> str:
        """Ten hexadecimal digits of `identity`: the same for the same training."""
        text = json.dumps(self.identity(config), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def trained(self, config: TrainConfig) -> RunFolder:
        """The run of these (settled) settings: as it is where it is complete, else trained on from where it stopped.

        Raises:
            DataError: where the folder holds a run of other settings, and as `run_train` does.
        """
        run = RunFolder(config.output)
        if not run.exists():
            log.info("training %s", run.path)
            return run_train(config, TerminalProgress())
        if run.model_path.is_file():
            stored = run.config
            check_same_settings(stored, dataclasses.replace(config, data=stored.data, weights=stored.weights), run.path)
            log.info("%s is up to date", run.path)
            return run
        log.info("resuming training: %s", run.path)
        return run_train(replace_dotted(config, {"resume": True}), TerminalProgress())

    def scored(self, run: RunFolder, config: TrainConfig, refined: Refined = "trained") -> dict[str, Any]:
        """The metrics.json of a run's maps: as it is where these weights were scored so, else scored now.

        Raises:
            DataError: as `run_evaluate` does.
        """
        split, records, _ = self.scoring.records(self.source)
        folder = scores_folder(run.path, refined)
        trained: Refine = "none" if refinement_of(config) == "none" else "learnt"
        evaluation = EvaluateConfig(
            target=run.path,
            output=folder,
            data=config.data,
            split=split,
            scales=self.scoring.scales,
            scales_of=self.scoring.scales_of,
            refine="raw" if refined == "raw" else trained,
            refine_at="fused" if refined == "raw" else "scale",
            images=self.scoring.images,
            workers=max(1, config.device.loaders),
            device=config.device.accelerator,
        )
        if self.scoring.max_side is not None:
            evaluation = dataclasses.replace(evaluation, max_side=self.scoring.max_side)
        stored = _stored_scores(folder)
        expected = {
            "data": self.source.spec,
            "split": split,
            "scales": list(self.scoring.scales),
            "scale_side": training_side(run) if self.scoring.scales_of == "training" else None,
            "flip": evaluation.flip,
            "refine": evaluation.refine,
            "refine_at": evaluation.refine_at,
            "max_side": evaluation.max_side,
            "weights_sha256": weights_digest(run),
        }
        same = all(stored.get(name) == value for name, value in expected.items())
        counted = (folder / COUNTS_NAME).is_file()
        if same and counted and stored["images"] + stored["without_mask"] == len(records):
            log.info("%s is scored already", run.path)
            return stored
        with raise_io_errors_as(folder, "the scores"):
            folder.mkdir(exist_ok=True)
        return run_evaluate(evaluation, TerminalProgress())

    @overload
    def measured(
        self, row: Row, config: TrainConfig, columns: Sequence[str], wait: Literal[True] = True
    ) -> Measurement: ...

    @overload
    def measured(self, row: Row, config: TrainConfig, columns: Sequence[str], wait: bool) -> Measurement | None: ...

    def measured(self, row: Row, config: TrainConfig, columns: Sequence[str], wait: bool = True) -> Measurement | None:
        """A row of a table for one seed: trained and scored where it is not yet.

        A loss that stops being finite is a result of that row, not the end of the table.

        Args:
            row: which.
            config: its (settled) settings.
            columns: scale names, "all", "background" or "foreground".
            wait: for another process that has the run in hand; else None then.

        Raises:
            DataError: as `trained` and `scored` do.
        """
        with raise_io_errors_as(config.output, "the run"):
            config.output.mkdir(parents=True, exist_ok=True)
        about = {
            "run": str(config.output.relative_to(self.root)),
            "refined": row.refined,
            "options": options_of(config),
        }
        with folder_lock(config.output, wait) as held:
            if not held:
                return None
            try:
                run = self.trained(config)
            except NonFiniteError as error:
                log.warning("%s: %s", row.name, error)
                return Measurement(row.name, config.loop.seed, {}, "", {**about, "failure": str(error)})
            metrics = self.scored(run, config, row.refined)
        maps = {
            name: {column: figure(scales, column) for column in columns} for name, scales in metrics["results"].items()
        }
        return Measurement(row.name, config.loop.seed, maps, metrics["map"], {**about, **training_cost(run)})

    def measurements(
        self, rows: Sequence[Row], base: TrainConfig, seeds: Sequence[int], columns: Sequence[str]
    ) -> Iterator[Measurement]:
        """Every row for the first seed, then for the next, so that a table that is stopped early has all its rows."""
        tasks = self.tasks(rows, base, seeds)
        for number, (row, config) in enumerate(tasks, start=1):
            log.info("[%d/%d] %s, seed %d", number, len(tasks), row.name, config.loop.seed)
            yield self.measured(row, config, columns)

    def tasks(self, rows: Sequence[Row], base: TrainConfig, seeds: Sequence[int]) -> list[tuple[Row, TrainConfig]]:
        """Every row with its settled settings, for the first seed, then for the next."""
        return [
            (row, self.settled(replace_dotted(base, {**row.train, "seed": seed}))) for seed in seeds for row in rows
        ]


def need_masks(source: Source, scoring: Scoring) -> None:
    """Refuse a split that cannot be scored, before anything is trained.

    Raises:
        DataError: where none of the images looked at has a mask.
    """
    split, records, _ = scoring.records(source)
    if any(record.mask_path is not None for record in records):
        return
    looked_at = spread_evenly(records, MASK_TRIALS)  # some sources make their masks, and have no file to name
    if not any(source.read(record, with_mask=True).mask is not None for record in looked_at):
        raise DataError(
            f"{source.spec}: no image of split {split!r} has a mask ({len(looked_at)} were looked at); the tables need "
            f"ground truth to score against: name a split that has masks by --eval-split ({', '.join(source.splits())})"
        )


def figure(scales: Mapping[str, Mapping[str, Any]], column: str) -> float | None:
    """A column's figure in % from the results of one map in metrics.json; None where it is not defined."""
    if column == ALL or column in scales:
        value = scales[MULTI if column == ALL else column]["miou"]
    else:  # maps that are refined after fusion have no single scale
        value = scales[MULTI].get(column)
    return None if value is None else 100 * value


def options_of(config: TrainConfig) -> dict[str, Any]:
    """What exactly a row is: the method, every option of method and patches, and the recipe."""
    recipe = ("method", "backbone", "epochs", "max_steps", "batch_size", "lr", "momentum", "refine_lr_factor")
    values = flat(config_to_dict(config))
    kept = [
        name for name in values if name.startswith(("options.", "patch.", "augment.")) and name != "patch.cache_dir"
    ]
    return {name: values[name] for name in (*recipe, *kept)}


def training_cost(run: RunFolder) -> dict[str, Any]:
    """Steps, seconds spent in them, and the highest memory of the process until the end of the training."""
    steps = run.records("step")
    return {
        "steps": len(steps),
        "train_seconds": round(sum(step["seconds"] for step in steps), 1),
        "process_peak_memory_mib": max((step["peak_memory_mib"] for step in steps), default=None),
    }


def scores_folder(run: Path, refined: Refined) -> Path:
    """Where the scores of a run's maps lie: its own folder, or `raw` in it."""
    return run if refined == "trained" else run / refined


def _stored_scores(folder: Path) -> dict[str, Any]:
    if not (folder / METRICS_NAME).is_file():
        return {}
    return read_json(folder / METRICS_NAME, "what `cpn evaluate` wrote", "delete it, it is then made again")


def records_digest(source: Source, split: str) -> str:
    """16 hexadecimal digits of a split's classes, ids and labels: another set under the same path is another run."""
    digest = hashlib.sha256(repr(tuple(source.classes)).encode())
    for record in source.records(split):
        digest.update(repr((record.id, record.labels)).encode())
    return digest.hexdigest()[:16]
