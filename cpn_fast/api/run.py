"""`Run`: a run folder as a value, with what can be done with its network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpn_fast.api.errors import in_python_words
from cpn_fast.api.images import ImageLabeller
from cpn_fast.api.model import ModelKind
from cpn_fast.config.refine import Refine
from cpn_fast.config.training import TRAINING_CONFIGS, TrainingConfig
from cpn_fast.data.types import Source
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import JobSummary
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

KINDS: dict[str, ModelKind] = {"train": "cam", "segment": "segmentation", "affinity": "affinity"}
"""Kind of training -> what its network gives."""


class Run:
    """A run on disk, of any kind of training.

    Args:
        path: the run folder.

    Raises:
        DataError: if there is no run.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder(path)
        self._task = self.folder.task

    def __repr__(self) -> str:
        """Path and kind."""
        return f"Run({str(self.path)!r}, {self.kind})"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def kind(self) -> ModelKind:
        """What the network gives."""
        return KINDS[self._task]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K foreground classes; mask value c + 1 is `classes[c]`."""
        return self.folder.classes

    @property
    def config(self) -> TrainingConfig:
        """The settings of the training."""
        return self.folder.config_of(TRAINING_CONFIGS[self._task])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, oldest first: `kind` is "step" or "eval"."""
        return self.folder.records()

    def network(self, device: str = "cpu") -> nn.Module:
        """The trained network in eval mode.

        Raises:
            DataError: if the run has no weights yet, or they do not fit its settings.
        """
        loaders = {
            "cam": self.folder.load_model,
            "segmentation": self.folder.load_deeplab,
            "affinity": self.folder.load_affinity_net,
        }
        return loaders[self.kind](device)

    def labeller(
        self,
        *,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        beta: float | None = None,
        threshold: float | None = None,
        max_side: int | None = None,
        device: str | None = None,
        refine: Refine | None = None,
    ) -> ImageLabeller:
        """A callable that labels photographs, as `cpn label` or `cpn segment predict` would.

        Args:
            scales: the image is run at each of these factors of its size; None = as `cpn label`, of a segmentation
                network 0.5 to 1.75.
            flip: also run the mirrored image; None = True.
            beta: background score of a CAM network's masks, 0..1; None = as `cpn label`.
            threshold: class probability above which a class is active where no labels are given; None = 0.5. The best
                class always is.
            max_side: longer images are reduced to this long side in pixels, and the mask enlarged back; None = 1024.
            device: "auto" (a GPU where there is one), "cpu" or "cuda"; None = "auto".
            refine: how a CAM network's maps are refined, "raw", "learnt" or "none"; None = as `cpn label`.

        Raises:
            DataError: for an option out of range or that the network does not have, or a run without weights.
        """
        from cpn_fast.api.torch_labellers import CamLabeller, SegmentationLabeller

        if self.kind == "affinity":
            raise DataError(f"{self.path}: a run of AffinityNet labels no images; refine masks with it")
        size, where, mirrored = max_side or 1024, device or "auto", True if flip is None else flip
        if self.kind == "cam":
            with in_python_words():
                return CamLabeller(self.folder, scales, mirrored, beta, threshold, size, where, refine)
        for name, value in (("beta", beta), ("threshold", threshold), ("refine", refine)):
            if value is not None:
                raise DataError(f"{name} is for CAM networks; {self.path} is a segmentation network: leave it out")
        with in_python_words():
            return SegmentationLabeller(self.folder, scales, mirrored, size, where)

    def label(
        self,
        source: Source,
        output: Path,
        split: str | None = None,
        progress: Progress = SILENT,
        **options: Any,
    ) -> JobSummary:
        """Write the masks of a split, as `cpn label` or `cpn segment predict` does.

        Args:
            source: of the images.
            output: folder for SegmentationClass/ID.png, labelmap.txt and manifest.jsonl.
            split: which of the source's; None = train where it has it, else all.
            progress: where plan, bar and result are shown.
            options: other fields of `LabelConfig`, or of `PredictConfig` for a segmentation network.

        Raises:
            DataError: as those commands do.
        """
        if self.kind == "affinity":
            raise DataError(f"{self.path}: a run of AffinityNet labels no images; refine masks with it")
        if self.kind == "cam":
            from cpn_fast.cam.label import run_label
            from cpn_fast.cam.options import LabelConfig

            config = LabelConfig(run=self.path, data=source.spec, output=output, split=split, **options)
            return run_label(config, progress)
        from cpn_fast.data.sources.spread import records_of
        from cpn_fast.segment.options import PredictConfig
        from cpn_fast.segment.predict import run_segment_predict

        chosen, _ = records_of(source, split)
        return run_segment_predict(
            PredictConfig(run=self.path, data=source.spec, split=chosen, output=output, **options), progress
        )
