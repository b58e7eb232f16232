"""What one kind of training (CAM networks, AffinityNet, segmentation) adds to the loop that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cpn_fast.config.training import TrainingConfig
from cpn_fast.data.loading.steps import Span
from cpn_fast.fabric import Fabric
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.training.tensorboard import MapStatistics

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def images_of_pass(config: TrainingConfig, world_size: int) -> int:
    """How many images pass through the network at once in each process."""
    return config.loop.micro_batch or config.loop.batch_size // world_size


def passes_of_step(config: TrainingConfig, world_size: int) -> int:
    """How many passes of each process make a step."""
    return config.loop.batch_size // (world_size * images_of_pass(config, world_size))


@dataclass(frozen=True)
class ValidationMetrics:
    """The scores of a network at one step.

    Attributes:
        values: figures by name, and `images`, their number; None where a figure cannot be had.
        pictures: uint8 [H, W, 3] by sample id.
    """

    values: dict[str, Any]
    pictures: dict[str, NDArray[np.uint8]]


class Validator(Protocol):
    """Scores a network while it trains."""

    def evaluate(self, net: Any, device: torch.device, stopped: Callable[[], bool]) -> ValidationMetrics | None:
        """Score the network, leaving its training mode as it was; None once `stopped` says so between two images."""


class StepBatch(Protocol):
    """What the loop knows of a batch."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The sample ids."""

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to `device` without waiting for it."""


class TrainingTask(ABC, Generic[ConfigT]):
    """One kind of training. Made once the processes are launched; opens and checks the data, and writes nothing.

    Attributes:
        config: with nothing left to the recipe.
        classes: the K foreground class names.
        num_records: images of the split.
        losses: names of the loss and its parts, as `module` gives them.
        primary_metrics: figures of a `ValidationMetrics` that are shown in the terminal, in 0..1.
        statistics: counts the maps of each step where there are such.
        backend: what made the patches, where there are such.
        progress: where what precedes the first step is shown; silent on all processes but the first.
    """

    losses: ClassVar[tuple[str, ...]]
    primary_metrics: ClassVar[tuple[str, ...]]
    classes: tuple[str, ...]
    num_records: int
    statistics: MapStatistics | None = None
    backend: str | None = None

    def __init__(self, config: ConfigT, fabric: Fabric, progress: Progress = SILENT) -> None:
        self.config, self.fabric = config, fabric
        self.progress = progress if fabric.is_global_zero else SILENT

    @classmethod
    def partial_gradients(cls, config: ConfigT) -> bool:
        """Whether a step may leave parameters without gradient; data-parallel training must then look for them."""
        del config
        return False

    def prepare(self) -> None:
        """Make what the training learns from, where it is made; called once all that can be checked has been."""

    @abstractmethod
    def create_net(self) -> nn.Module:
        """The bare network, whose weights are saved, initialised from torch's generator; submodule `backbone`."""

    @abstractmethod
    def create_module(self, net: nn.Module) -> nn.Module:
        """What is called in a step: the network and its losses. Gives a dict with `loss` and its detached parts."""

    @abstractmethod
    def stream(self, net: nn.Module, span: Span) -> Iterable[Any]:
        """The batches (`StepBatch`) of a span of steps."""

    @abstractmethod
    def inputs(self, batch: Any, step: int, total_steps: int) -> tuple[Any, ...]:
        """What the module takes of a batch on its device in step `step` (from 1)."""

    @abstractmethod
    def trial_inputs(self, net: Any) -> tuple[Any, ...]:
        """What the module takes in the heaviest step that the run will take, made of noise on the CPU.

        Shapes, dtypes and memory are those of real steps; no random number of the run is drawn.
        """

    def together(self, batches: Sequence[Any]) -> Sequence[Any]:
        """The batches of one step, in which each knows of the others what its loss depends on: nothing, as a rule."""
        return batches

    def noise(self) -> Tensor:
        """uint8 [B, crop, crop, 3], images for `trial_inputs`."""
        share, crop = images_of_pass(self.config, self.fabric.world_size), self.config.augment.crop
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (share, crop, crop, 3), dtype=torch.uint8, generator=generator)

    @abstractmethod
    def evaluator(self) -> Validator | None:
        """Scores the network while it trains; None = not at all."""

    def restart_step(self, total_steps: int) -> int:
        """The step after which the learning rate begins anew; 0 = it falls once."""
        del total_steps
        return 0

    def concern(self, step: int, statistics: Mapping[str, Tensor]) -> str | None:
        """What the statistics of the maps up to `step`, on the CPU, give reason to warn of; each warning once."""
        del step, statistics
        return None

    def views(self) -> tuple[float, float]:
        """Images of a crop's size that pass through the network for each image of a batch: the mean, and the most."""
        return 1.0, 1.0

    def count(self, outputs: Mapping[str, Tensor], batch: Any) -> None:
        """Give what a step's module returned to the statistics."""
        del outputs, batch
