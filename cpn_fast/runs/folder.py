"""The folder of a training run: settings, step records, checkpoint and weights."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cpn_fast.config.backbones import check_trusted
from cpn_fast.config.earlier import from_earlier_versions
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.refine import Refine
from cpn_fast.config.serialise import config_from_dict, config_to_dict, flat
from cpn_fast.config.training import TRAINING_CONFIGS, AffinityConfig, C, SegmentConfig, TrainConfig, TrainingConfig
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.files.names import class_fault
from cpn_fast.files.regular import read_regular
from cpn_fast.runs.background import SCORES_NAME, score_of

if TYPE_CHECKING:
    from torch import nn

    from cpn_fast.models.affinity_net import AffinityNet
    from cpn_fast.models.cam import CamNet
    from cpn_fast.models.deeplab import DeepLab

log = logging.getLogger(__name__)

TAKEN_BY = {
    "train": "`cpn label`, `evaluate`, `export` and `report` take",
    "affinity": "`cpn refine --random-walk` takes",
    "segment": "`cpn segment predict`, `cpn segment evaluate` and `cpn export` take",
}
"""What can be done with a run of each kind, for those who try something else."""

_RESTORE = "restore the file, or train again"

COMMAND_OF = {"train": "train", "affinity": "train-affinity", "segment": "segment train"}
"""The command that trains a run of each kind."""

FREE_ON_RESUME = frozenset(
    ("output", "resume", "max_steps", "workers", "checkpoint_every", "log_every", "eval_every", "val_images")
    + ("val_split", "patch.cache_dir", "trial_step", "compile_mode", "timeout", "augment_on")
)
"""Settings that may change on resume: none of them touches what a step computes."""


def check_same_settings(stored: TrainingConfig, given: TrainingConfig, where: Path) -> None:
    """Refuse to resume with settings that would change the computation.

    Raises:
        DataError: naming every field that differs, with both values.
    """
    old, new = (flat(config_to_dict(with_recipe(config))) for config in (stored, given))
    different = [
        f"{name} (run: {old[name]!r}, now: {new[name]!r})"
        for name in old
        if name not in FREE_ON_RESUME
        and old[name] != new[name]
        and not (name == "devices" and new["micro_batch"] is not None)  # a step is then the same on any number
        and (name, old[name]) != ("patch.backend", "auto")  # says nothing that another name could contradict
        and (name, new[name]) not in (("precision", "auto"), ("compile", "auto"))  # a resumed run keeps its own
        and not _same_file(old[name], new[name])  # e.g. a relative path and an absolute one
    ]
    if different:
        raise DataError(
            f"{where}: cannot resume with other settings: {', '.join(different)}; give the run's own, or start a new "
            "run in another --output"
        )


def _same_file(first: Any, second: Any) -> bool:
    if not (isinstance(first, str) and isinstance(second, str)):
        return False
    try:
        return Path(first).samefile(second)
    except (OSError, ValueError):  # at least one of them names nothing that is there
        return False


@dataclass(frozen=True)
class StoredRun:
    """What config.json holds.

    Attributes:
        config: settings of that kind of training, as `config_to_dict` gives them.
        classes: the K foreground class names.
        format: of this file.
        stage: what was trained, a key of `TRAINING_CONFIGS`; the first versions knew one only and did not say.
        backend_version: superpixel backend and version that made the patches; None where there were none.
        versions: of the packages that decide over results.
    """

    config: dict[str, Any]
    classes: tuple[str, ...]
    format: Literal[1] = 1
    stage: Literal["train", "affinity", "segment"] = "train"
    backend_version: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)


def task_name(kind: type[TrainingConfig]) -> str:
    """The key of `TRAINING_CONFIGS` under which a settings class stands."""
    return next(name for name, config in TRAINING_CONFIGS.items() if config is kind)


class RunFolder:
    """A run on disk.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoint_path = self.path / "checkpoints" / "last.ckpt"
        self.model_path = self.path / "model.safetensors"
        self.tensorboard_path = self.path / "tensorboard"
        self.scores_path = self.path / SCORES_NAME

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_path.is_file()

    def create(self, config: TrainingConfig, classes: Sequence[str], backend_version: str | None = None) -> None:
        """Write config.json (kind of training, settings, classes, superpixel backend, versions), making its folder."""
        content = {
            "format": 1,
            "stage": task_name(type(config)),
            "config": config_to_dict(config),
            "classes": list(classes),
            "backend_version": backend_version,
            "versions": versions(),
        }
        atomic_write_text(self.config_path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _stored(self) -> StoredRun:
        if not self.config_path.exists():
            raise DataError(f"{self.path}: no run here (config.json not found); train one with `cpn train`")
        content = read_json(self.config_path, "what `cpn train` wrote", _RESTORE)
        if isinstance(content, dict):
            known = {f.name for f in fields(StoredRun)}
            content = {key: value for key, value in content.items() if key in known}
        stored = config_from_dict(StoredRun, content, str(self.config_path), remedy=_RESTORE)
        if not stored.classes or "" in stored.classes or len(set(stored.classes)) < len(stored.classes):
            raise DataError(
                f"{self.config_path}: key classes: expected at least one name, each once, none empty; {_RESTORE}"
            )
        if wrong := next((fault for fault in map(class_fault, stored.classes) if fault), ""):
            raise DataError(f"{self.config_path}: key classes: a name {wrong}; {_RESTORE}")
        return stored

    @property
    def task(self) -> str:
        """What was trained, a key of `TRAINING_CONFIGS`. Raises DataError where there is no run."""
        return self._stored().stage

    def config_of(self, kind: type[C]) -> C:
        """The run's settings. Raises DataError where there is no run, or one of another kind of training."""
        stored = self._stored()
        task = stored.stage
        if TRAINING_CONFIGS[task] is not kind:
            taken = f" ({TAKEN_BY[task]} it)" if task in TAKEN_BY else ""
            raise DataError(
                f"{self.path}: a run of task {task!r}{taken}, expected one of {task_name(kind)!r}; give another folder"
            )
        settings = from_earlier_versions(stored.config)
        return config_from_dict(kind, settings, str(self.config_path), "config.", _RESTORE)

    @property
    def config(self) -> TrainConfig:
        """The settings of a CAM network's run. Raises DataError where there is no run, or one of another kind."""
        return self.config_of(TrainConfig)

    @property
    def classes(self) -> tuple[str, ...]:
        """The K foreground class names. Raises DataError where there is no run."""
        return self._stored().classes

    @property
    def backend_version(self) -> str | None:
        """Superpixel backend and version that made the patches, e.g. "native 1"; None where there were none."""
        return self._stored().backend_version

    @property
    def beta(self) -> float:
        """The background score of the run's own masks, see `background_score`."""
        return self.background_score()

    def background_score(self, given: float | None = None, refine: Refine | None = None) -> float:
        """The background score of masks, see `score_of`. Raises DataError for one that is not in 0..1."""
        cam = self.config_path.is_file() and self.task == "train"
        return score_of(self.path, self.config if cam else None, given, refine)

    def save_model(self, net: nn.Module, step: int) -> None:
        """Write the weights to model.safetensors, with classes, step and version as metadata."""
        from cpn_fast.models.weights.save import save_weights

        task, config = self.task, self.config_of(TRAINING_CONFIGS[self.task])
        metadata = {
            "format": "pt",
            "cpn_fast": versions()["cpn-fast"],
            "stage": task,
            "step": str(step),
            "backbone": config.backbone,
            "classes": json.dumps(self.classes, ensure_ascii=False),
        }
        if isinstance(config, TrainConfig):
            metadata["method"] = config.method
        save_weights(self.model_path, net.state_dict(), metadata)

    def load_model(self, device: str = "cpu") -> CamNet:
        """The CAM network of the run in eval mode: model.safetensors, or the last checkpoint of one that hasn't ended.

        Raises:
            DataError: if the run has neither, is of another kind, or the weights do not fit the settings.
        """
        from cpn_fast.models import create_model

        config = self._checked(TrainConfig)
        net = create_model(config, len(self.classes), load_weights=False)
        self._load_weights(net)
        return net.to(device).eval()

    def load_deeplab(self, device: str = "cpu") -> DeepLab:
        """The segmentation network of the run in eval mode, from what `load_model` reads. Raises DataError likewise."""
        from cpn_fast.models.build import create_deeplab

        config = self._checked(SegmentConfig)
        net = create_deeplab(config, len(self.classes), load_weights=False)
        self._load_weights(net)
        return net.to(device).eval()

    def load_affinity_net(self, device: str = "cpu") -> AffinityNet:
        """The AffinityNet of the run in eval mode; raises as `load_model` does."""
        from cpn_fast.models import create_affinity_net

        config = self._checked(AffinityConfig)
        net = create_affinity_net(config, load_weights=False)
        self._load_weights(net)
        return net.to(device).eval()

    def _checked(self, kind: type[C]) -> C:
        """The settings of a run that has weights, and whose backbone may be built."""
        config = self.config_of(kind)
        check_trusted(config.backbone, str(self.config_path))
        self._check_weights()
        return config

    def _check_weights(self) -> None:
        if not self.model_path.is_file() and not self.checkpoint_path.is_file():
            raise DataError(
                f"{self.path}: the run has no weights yet (neither checkpoint nor model.safetensors); "
                f"train it on: `cpn {COMMAND_OF[self.task]} ... --output {self.path} --resume`"
            )

    def load_into(self, net: CamNet, backbone: str, classes: Sequence[str]) -> None:
        """Give a new training the weights of this run, of a CAM network; heads that only one of them has are left.

        Args:
            net: of that training.
            backbone: its backbone.
            classes: its K foreground classes.

        Raises:
            DataError: if the run has no weights, is of another kind, or differs in backbone or classes.
        """
        config = self.config
        if config.backbone != backbone or self.classes != tuple(classes):
            raise DataError(
                f"{self.path}: backbone {config.backbone}, classes {', '.join(self.classes)}; expected those of the "
                f"training, {backbone} and {', '.join(classes)}: begin with a run of the same"
            )
        self._check_weights()
        source, weights = self._read_weights()
        own = net.state_dict()
        heads = {name for name in own.keys() ^ weights.keys() if not name.startswith(("backbone.", "classifier."))}
        fitting = {name: value for name, value in weights.items() if name not in heads}
        try:
            net.load_state_dict({**{name: own[name] for name in heads & own.keys()}, **fitting})
        except (RuntimeError, TypeError, AttributeError) as error:
            raise DataError(
                f"{source}: does not fit the training: {_misfit(own, {**own, **fitting})}; begin with a run of "
                "the same method and options"
            ) from error
        log.info("begins with the weights of %s%s", self.path, f"; not shared: {len(heads)} of heads" if heads else "")

    def _read_weights(self) -> tuple[Path, dict[str, Any]]:
        from cpn_fast.models.weights.pretrained import check_finite, read_safetensors
        from cpn_fast.runs.checkpoint import load_checkpoint

        if self.model_path.is_file():
            source = self.model_path
            weights = read_safetensors(source, "train the run to its end again with --resume, which writes it anew")
        else:
            source, weights = self.checkpoint_path, load_checkpoint(self.checkpoint_path)["model"]
            if not isinstance(weights, dict) or not all(hasattr(value, "isfinite") for value in weights.values()):
                raise DataError(f"{source}: does not fit the settings in {self.config_path}: its model is no weights")
        check_finite(weights, source)
        return source, weights

    def _load_weights(self, net: nn.Module) -> None:
        source, weights = self._read_weights()
        try:
            net.load_state_dict(weights)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise DataError(
                f"{source}: does not fit the settings in {self.config_path}: {_misfit(net.state_dict(), weights)}; put "
                "back the two files of one run, or train again"
            ) from error

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, of one kind ("step", "eval", "maps") or all; a torn last line is left out."""
        found = [record for record in map(_parsed, self._lines()) if record is not None]
        return [record for record in found if kind is None or record["kind"] == kind]

    def _lines(self) -> list[str]:
        if not self.metrics_path.is_file():
            return []
        return read_regular(self.metrics_path).decode("utf-8", "replace").split("\n")

    def truncate_records(self, step: int) -> None:
        """Drop the records of steps after `step`, which a resumed run will write again."""
        kept = [record for record in self.records() if record["step"] <= step]
        atomic_write_text(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))

    def remove_unfinished(self) -> None:
        """Remove what a killed process left half-written."""
        for folder in (self.path, self.checkpoint_path.parent):
            for leftover in folder.glob(".tmp-*") if folder.is_dir() else ():
                leftover.unlink()


def _misfit(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How weights by name differ from those that a network has."""

    def shape(value: Any) -> str:
        return "x".join(map(str, value.shape)) or "one number"

    other = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    missing, unknown = [sorted(one.keys() - two.keys()) for one, two in ((expected, found), (found, expected))]
    parts = []
    if other:
        name = other[0]
        parts.append(
            f"{len(other)} weights have another size, such as {name}: {shape(found[name])}, expected "
            f"{shape(expected[name])}"
        )
    parts += [f"{len(missing)} weights are missing, such as {missing[0]}"] if missing else []
    parts += [f"{len(unknown)} are unknown, such as {unknown[0]}"] if unknown else []
    return "; ".join(parts) or "the weights cannot be loaded"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and "kind" in record and isinstance(record.get("step"), int)
    return record if whole else None


def versions() -> dict[str, str]:
    """Version of Python and of the packages that decide over results; "not installed" where one is missing."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("cpn-fast", "torch", "lightning-fabric", "numpy", "Pillow", "opencv-python-headless", "scikit-image")
    return {"python": platform.python_version(), **{package: of(package) for package in packages}}
