"""`cpn train`: from settings to a run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cpn_fast.cam.area_watch import AreaWatch
from cpn_fast.cam.batches import BatchStream, mean_colour, no_patches
from cpn_fast.cam.pixel_masks import open_pixel_masks
from cpn_fast.cam.validation import CamValidator, create_validator
from cpn_fast.config.ranges import check_ranges, out_of_range
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.training import TrainConfig
from cpn_fast.data.loading.steps import Span, steps_per_epoch
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.superpixels.backend import broadcast_backend, hides_patches, resolve_run_backend
from cpn_fast.data.types import Batch
from cpn_fast.fabric import Fabric
from cpn_fast.files.errors import DataError
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.methods import create_method
from cpn_fast.models import create_model
from cpn_fast.models.cam import CamNet
from cpn_fast.runs.folder import RunFolder
from cpn_fast.runs.metrics_log import LOSSES
from cpn_fast.training.run import labelled_records, run_training
from cpn_fast.training.task import TrainingTask
from cpn_fast.training.tensorboard import MapStatistics
from cpn_kernels import native_library

log = logging.getLogger(__name__)

TRIAL_CELL, TRIAL_CLASSES = 32, 3
"""Pixels of a patch, and classes of an image, in the step that is tried out."""


def run_train(config: TrainConfig, progress: Progress = SILENT) -> RunFolder:
    """Train one run (the same in every process of a distributed one).

    Args:
        config: the settings.
        progress: where the training is shown.

    Returns:
        The run folder, with final weights.

    Raises:
        DataError: if data, weights or settings do not fit, or the folder holds a run and `resume` is off.
        NonFiniteError: if a loss or gradient was not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    if without := native_library.missing():
        log.warning("%s", without)
    config = with_recipe(config)
    _check_options(config)
    return run_training(resolve_run_backend(config, RunFolder(config.output)), CamTask, progress)


class CamTask(TrainingTask[TrainConfig]):
    """Training of a CAM network by one of the methods."""

    losses = LOSSES
    primary_metrics = ("cam_miou", "rcam_miou", "map", "f1")

    def __init__(self, config: TrainConfig, fabric: Fabric, progress: Progress = SILENT) -> None:
        super().__init__(config, fabric, progress)
        self.backend = broadcast_backend(fabric, config)
        self.source = open_source(config.data)
        self.records = labelled_records(self.source, config.split)
        self.classes, self.num_records = self.source.classes, len(self.records)
        masks = config.pixel_masks
        self.masks = None if masks is None else open_pixel_masks(masks, self.classes, self.records)
        self.statistics = MapStatistics(len(self.classes), fabric.device)
        per_epoch = steps_per_epoch(self.num_records, config.loop.batch_size)
        warm_up_steps = self.warm_up_steps(per_epoch * (config.loop.epochs or 1))
        self.area_watch = AreaWatch(warm_up_steps, paired=config.method == "cpn")

    @classmethod
    def partial_gradients(cls, config: TrainConfig) -> bool:
        """With one of its losses off, heads of CPN may get no gradient; what a warm-up leaves out gets none in it."""
        options = config.options
        lacks_loss = config.method == "cpn" and not (options.tcp and options.cpcr)
        warms_up = options.warm_up > 0 if options.warm_up_epochs is None else options.warm_up_epochs > 0
        changes = config.method != "cam" or options.teacher is not None
        return lacks_loss or (changes and warms_up)

    def views(self) -> tuple[float, float]:
        """One of `cam` and in the warm-up, three of CPN, one and a smaller one of SEAM."""
        options = self.config.options
        most = {"cam": 1.0, "cpn": 3.0}.get(self.config.method, 1 + options.seam_scale**2)
        total = steps_per_epoch(self.num_records, self.config.loop.batch_size) * (self.config.loop.epochs or 1)
        warm_up = self.warm_up_steps(total) / total if most > 1 else 1.0
        return warm_up + (1 - warm_up) * most, most

    def create_net(self) -> CamNet:
        """The untrained CamNet, or that of the run that `init` names."""
        init = self.config.init
        net = create_model(self.config, len(self.classes), load_weights=init is None)
        if init is not None and not self.config.loop.resume:  # a checkpoint brings its own
            RunFolder(init).load_into(net, self.config.backbone, self.classes)
        return net

    def create_module(self, net: nn.Module) -> nn.Module:
        """The method around the network."""
        assert isinstance(net, CamNet)
        colour = None
        if self.config.hidden_colour == "dataset" and not self.config.loop.resume:  # a checkpoint brings its own
            first = self.fabric.is_global_zero
            colour = self.fabric.broadcast(mean_colour(self.source, self.records) if first else None)
        return create_method(self.config, net, colour)

    def stream(self, net: nn.Module, span: Span) -> Iterable[Batch]:
        """Crops with their patches."""
        assert isinstance(net, CamNet)
        red, green, blue = (round(255 * value) for value in net.mean.tolist())
        device = self.fabric.device if self.fabric.device.type == "cuda" else None
        steps = (span.start_step, span.total_steps, span.rank, span.world_size)
        return BatchStream(
            self.source,
            self.records,
            self.config,
            *steps,
            fill=(red, green, blue),
            map_device=device,
            progress=self.progress,
            masks=self.masks,
            passes=span.passes,
        )

    def inputs(self, batch: Batch, step: int, total_steps: int) -> tuple[Tensor | bool | None, ...]:
        """The batch's tensors, and whether the step is one of the warm-up."""
        warm_up = step <= self.warm_up_steps(total_steps)
        return batch.images, batch.patches, batch.keys, batch.labels, warm_up, batch.targets

    def trial_inputs(self, net: nn.Module) -> tuple[Tensor | bool | None, ...]:
        """A step of the method itself, also where the first ones are a warm-up's; patches are cells of a grid."""
        images = self.noise()
        share, crop = images.shape[:2]
        patches = no_patches(share)
        if hides_patches(self.config):
            cell = torch.arange(crop) // TRIAL_CELL
            patches = (cell[:, None] * (int(cell[-1]) + 1) + cell).int().expand(share, crop, crop).contiguous()
        labels = torch.zeros(share, len(self.classes))
        labels[:, :TRIAL_CLASSES] = 1
        targets = None if self.masks is None else torch.zeros(share, crop, crop, dtype=torch.uint8)
        return images, patches, torch.arange(share), labels, False, targets

    def warm_up_steps(self, total_steps: int) -> int:
        """Steps at the beginning in which a method of several views or with a teacher trains as a plain classifier."""
        options = self.config.options
        if self.config.method == "cam" and options.teacher is None:
            return 0
        if options.warm_up_epochs is None:
            return round(options.warm_up * total_steps)
        return round(options.warm_up_epochs * steps_per_epoch(self.num_records, self.config.loop.batch_size))

    def restart_step(self, total_steps: int) -> int:
        """The end of a warm-up that is counted in epochs; one that is a share lies within one fall of the rate."""
        return 0 if self.config.options.warm_up_epochs is None else self.warm_up_steps(total_steps)

    def concern(self, step: int, statistics: Mapping[str, Tensor]) -> str | None:
        """CAMs that shrink or flood."""
        return self.area_watch.observe(step, statistics["cam"]) if "cam" in statistics else None

    def evaluator(self) -> CamValidator | None:
        """mIoU of CAM and RCAM on a few images."""
        return create_validator(self.source, self.config, self.records)

    def count(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Count CAM and RCAM."""
        for name in ("cam", "rcam"):
            if name in outputs and self.statistics is not None:
                self.statistics.update(name, outputs[name], batch.labels)


def _check_options(config: TrainConfig) -> None:
    check_ranges(config)
    if config.init is not None and config.weights is not None:
        raise DataError("--init and --weights both say what the training begins with; give one of them")
    if config.pixel_masks is not None and config.method not in ("cam", "cpn"):
        raise DataError(f"--pixel-masks is for the methods cam and cpn, found --method {config.method}; leave it out")
    if config.options.teacher is not None:
        _check_teacher(config)
    warm_up, epochs = config.options.warm_up_epochs, config.loop.epochs or 1
    if warm_up is not None and warm_up >= epochs:
        raise out_of_range("options.warm_up_epochs", warm_up, f"0 or more, below the run's {epochs} epochs")


def _check_teacher(config: TrainConfig) -> None:
    if config.loop.micro_batch is not None:
        raise DataError("--micro-batch and --options.teacher do not go together: a teacher follows once a step")
    if config.pixel_masks is not None:
        raise DataError("--pixel-masks and --options.teacher both label the pixels; give one of them")
    if config.method not in ("cam", "cpn"):
        raise DataError(
            f"--options.teacher is for the methods cam and cpn, found --method {config.method}; leave it out"
        )
    low, high = config.options.teacher_band
    if low > high:
        raise out_of_range("options.teacher_band", [low, high], "the lower score first")
