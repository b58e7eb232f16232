"""The training loop: one step for every method, checkpoints, records, and stopping without losing anything."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cpn_fast.config.serialise import config_to_dict
from cpn_fast.console.progress import TrainProgress
from cpn_fast.data.loading.random import key64
from cpn_fast.device import peak_memory_mib
from cpn_fast.files.errors import NonFiniteError
from cpn_fast.runs.checkpoint import save_checkpoint
from cpn_fast.runs.folder import RunFolder
from cpn_fast.runs.metrics_log import MetricsLog
from cpn_fast.training.compilation import begin_pass
from cpn_fast.training.monitor import NonFiniteGuard, PendingStep, StepValues
from cpn_fast.training.optimizer import poly_factor, set_learning_rate, skip_update
from cpn_fast.training.stop import StopRequest
from cpn_fast.training.task import StepBatch, TrainingTask, ValidationMetrics, Validator, passes_of_step
from cpn_fast.training.tensorboard import TensorBoardLogger, map_record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How far a run goes.

    Attributes:
        steps_per_epoch: steps of one pass over the data.
        total_steps: over which the learning rate falls to 0.
        last_step: where the run stops, at most `total_steps`.
        restart: step after which the learning rate begins anew, having fallen to 0 by then; 0 = it falls once.
    """

    steps_per_epoch: int
    total_steps: int
    last_step: int
    restart: int = 0

    def rate_factor(self, step: int, power: float) -> float:
        """Share of the base learning rate in a step, counted from 1; `power` is that of the polynomial decay."""
        if step <= self.restart:
            return poly_factor(step - 1, self.restart, power)
        return poly_factor(step - 1 - self.restart, self.total_steps - self.restart, power)


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        net: the bare network, whose weights are saved.
        module: network and losses as Fabric wrapped it.
        optimizer: as Fabric wrapped it.
        method: network and losses, inside `module`.
        teacher: what follows the network in the steps, and is kept with it in checkpoints; None without.
    """

    net: nn.Module
    module: nn.Module
    optimizer: Any
    method: nn.Module
    teacher: nn.Module | None = None

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer below Fabric's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


@dataclass
class Outputs:
    """Where a run reports to; everything but `validator` is None on all processes but the first."""

    folder: RunFolder
    progress: TrainProgress
    metrics: MetricsLog | None = None
    tensorboard: TensorBoardLogger | None = None
    validator: Validator | None = None

    def close(self) -> None:
        """Close the files, with everything on the disk."""
        for output in (self.metrics, self.tensorboard):
            if output is not None:
                output.close()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Reseed torch's generators for one step, so that dropout depends on (seed, step, rank) alone."""
    torch.manual_seed(key64(seed, step, f"rank {rank}", "dropout") & (2**63 - 1))


class Trainer:
    """Runs the steps of one run.

    Args:
        task: the kind of training, with its settings.
        network: what is trained.
        schedule: how far.
        outputs: where to report.
    """

    def __init__(self, task: TrainingTask[Any], network: Network, schedule: Schedule, outputs: Outputs) -> None:
        self.task, self.config, self.fabric = task, task.config, task.fabric
        self.network, self.schedule, self.outputs = network, schedule, outputs
        self.stop = StopRequest(told=self.fabric.is_global_zero)
        scaled = getattr(self.fabric.strategy.precision, "scaler", None) is not None  # 16-mixed on a GPU
        self.monitor = NonFiniteGuard(
            [(name, p) for name, p in network.net.named_parameters() if p.requires_grad], check_gradients=not scaled
        )
        self._stopping = False
        self._last_time = 0.0
        self._seconds: dict[int, float] = {}

    def fit(self, stream: Iterable[StepBatch], start_step: int) -> bool:
        """Train to the last step, or until asked to stop; the checkpoint then holds the state reached.

        Args:
            stream: gives the batches of steps `start_step` .. `last_step - 1`, one for each pass.
            start_step: steps done before.

        Returns:
            True if the last step was reached.

        Raises:
            NonFiniteError: if a loss or gradient was not finite.
        """
        step = start_step
        self.network.module.train()
        self._last_time = time.perf_counter()
        with self.stop.listening(), self.outputs.progress:
            if start_step and self._evaluation_is_missing(start_step):
                self._evaluate(start_step)
            passes = passes_of_step(self.config, self.fabric.world_size)
            for batches in () if self._stopping else zip(*[iter(stream)] * passes, strict=True):
                step += 1
                self.train_step(step, batches)
                self._after_step(step)
                if self._stopping or (self.fabric.world_size == 1 and self.stop):
                    break
            if step > start_step:
                self.save(step)
        return step >= self.schedule.last_step

    def train_step(self, step: int, batches: Sequence[StepBatch]) -> None:
        """One optimizer step, number `step` (from 1); reads what the step before it measured. Waits for no device.

        Args:
            step: its number.
            batches: this process's, whose gradients add up as those of as many processes would.
        """
        config, network = self.config, self.network
        rate = (config.optimizer.lr or 0.0) * self.schedule.rate_factor(step, config.optimizer.poly_power)
        set_learning_rate(network.bare_optimizer, rate)
        passes = len(batches)
        found = [self._pass(step, number, passes, batch) for number, batch in enumerate(self.task.together(batches))]

        previous = self.monitor.take()
        ids = tuple(name for batch in batches for name in batch.ids)
        skip = self.monitor.observe(step, ids, _means(found), bool(self.stop), self._statistics(step))
        skip_update(network.bare_optimizer, skip)
        network.optimizer.step()
        network.optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        self._seconds[step], self._last_time = now - self._last_time, now
        if previous is not None:
            self._report(previous)

    def _report(self, pending: PendingStep) -> None:
        """Write what an observed step measured. Raises NonFiniteError, saying what can be done, if it diverged."""
        try:
            values = self.monitor.report(pending)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}. {self._after_divergence()}") from None
        self._record(values)

    def _after_divergence(self) -> str:
        """What is left of a run whose losses, weights or maps are not finite any more, and what to do."""
        path = self.outputs.folder.checkpoint_path
        left = f"The last checkpoint, {path}, is of an earlier step" if path.is_file() else "There is no checkpoint yet"
        weights = "" if self.config.weights else " or begin with pretrained weights (--weights)"
        return f"{left}; lower --lr{weights}, in another --output"

    def _pass(self, step: int, number: int, passes: int, batch: StepBatch) -> dict[str, Tensor]:
        """Forwards and backwards once; gives the losses. Processes add up their gradients in the last pass of a step.

        Dropout is that of the pass's place among those of all processes.
        """
        fabric = self.fabric
        module: Any = self.network.module
        seed_step(self.config.loop.seed, step, fabric.global_rank * passes + number)
        batch = batch.to(fabric.device)
        if self.config.device.compile == "on":
            begin_pass()
        with fabric.no_backward_sync(module, enabled=fabric.world_size > 1 and number + 1 < passes):
            outputs = module(*self.task.inputs(batch, step, self.schedule.total_steps))
            fabric.backward(outputs["loss"] if passes == 1 else outputs["loss"] / passes)
        self.task.count(outputs, batch)
        return {name: outputs[name] for name in self.task.losses if name in outputs}

    def _statistics(self, step: int) -> dict[str, Tensor]:
        """The sums of the maps, to be read along every `log_every` steps."""
        statistics = self.task.statistics
        return statistics.take() if statistics is not None and step % self.config.loop.log_every == 0 else {}

    def _record(self, values: StepValues) -> None:
        """Write what a step measured."""
        self._stopping |= values.stop
        step = values.step
        seconds = self._seconds.pop(step)
        rate = (self.config.optimizer.lr or 0.0) * self.schedule.rate_factor(step, self.config.optimizer.poly_power)
        record = {
            "kind": "step",
            "step": step,
            "epoch": (step - 1) // self.schedule.steps_per_epoch,
            **values.losses,
            "lr": rate,
            "seconds": seconds,
            "images_per_second": self.config.loop.batch_size / seconds,
            "peak_memory_mib": round(peak_memory_mib(self.fabric.device), 1),
        }
        outputs = self.outputs
        if outputs.metrics is not None:
            outputs.metrics.append(record)
        if outputs.tensorboard is not None and step % self.config.loop.log_every == 0:
            outputs.tensorboard.step(record)
        outputs.progress.step(record)
        if values.extra:
            concern = self.task.concern(step, values.extra)
            if concern is not None and self.fabric.is_global_zero:
                log.warning("%s", concern)
            maps = {"kind": "maps", "step": step, **{name: map_record(sums) for name, sums in values.extra.items()}}
            if outputs.metrics is not None:
                outputs.metrics.append(maps)
            if outputs.tensorboard is not None:
                outputs.tensorboard.maps(maps)

    def drain(self) -> None:
        """Wait for the last step's values and write them. Raises NonFiniteError as `train_step` does."""
        pending = self.monitor.take()
        if pending is not None:
            self._report(pending)

    def _evaluation_is_due(self, step: int) -> bool:
        every = self.config.loop.eval_every * self.schedule.steps_per_epoch
        return every > 0 and (step % every == 0 or step == self.schedule.last_step)

    def _evaluation_is_missing(self, step: int) -> bool:
        """Whether the run was stopped before, or in, the evaluation of the step that it resumes from."""
        missing = False
        if self.outputs.validator is not None and self._evaluation_is_due(step):
            missing = all(record["step"] != step for record in self.outputs.folder.records("eval"))
        return bool(self.fabric.broadcast(missing))

    def _after_step(self, step: int) -> None:
        if self._evaluation_is_due(step):
            self._evaluate(step)
        if step % self.config.loop.checkpoint_every == 0 and step != self.schedule.last_step:
            self.save(step)

    def _evaluate(self, step: int) -> None:
        """Score the network, unless a stop is asked for before or meanwhile; a resumed run then makes up for it."""
        self.drain()
        self._agree_to_stop()
        outputs = self.outputs
        if outputs.validator is not None and not self._stopping:
            try:
                result = outputs.validator.evaluate(self.network.net, self.fabric.device, lambda: bool(self.stop))
            except NonFiniteError as error:
                raise NonFiniteError(f"diverged at step {step}: {error}. {self._after_divergence()}") from None
            if result is not None:
                self._record_evaluation(step, result)
        self._agree_to_stop()
        self._last_time = time.perf_counter()

    def _agree_to_stop(self) -> None:
        """Learn whether any process was asked to stop; all get here in the same step."""
        asked = torch.tensor(float(bool(self.stop)), device=self.fabric.device)
        self._stopping |= bool(self.fabric.all_reduce(asked, reduce_op="sum"))

    def _record_evaluation(self, step: int, result: ValidationMetrics) -> None:
        outputs = self.outputs
        epoch = round(step / self.schedule.steps_per_epoch, 4)
        values = {name: _finite(value) for name, value in result.values.items()}
        record = {"kind": "eval", "step": step, "epoch": epoch, **values}
        if outputs.metrics is not None:
            outputs.metrics.append(record)
        if outputs.tensorboard is not None:
            outputs.tensorboard.evaluation(record)
            outputs.tensorboard.pictures(result.pictures, step)
        shown = [name for name in self.task.primary_metrics if record.get(name) is not None]
        figures = ", ".join(f"{name} {100 * record[name]:.1f}" for name in shown) or "no figure can be had"
        outputs.progress.message(f"epoch {epoch:g}: {figures} ({record['images']} images)")

    def _check_weights(self, step: int) -> None:
        """Raise NonFiniteError if an update, whose loss and gradients were finite, has led out of the numbers."""
        state = {name: value for name, value in self.network.net.state_dict().items() if value.is_floating_point()}
        good = torch.stack([value.isfinite().all() for value in state.values()]).tolist()
        wrong = [name for name, fine in zip(state, good, strict=True) if not fine]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise NonFiniteError(
                f"diverged at step {step}: not finite: the weights {wrong[0]}{more}. {self._after_divergence()}"
            )

    def save(self, step: int) -> None:
        """Write the checkpoint of step `step`, once every step up to it is known to be finite and is recorded.

        Raises:
            NonFiniteError: if a step or the weights are not; the checkpoint then stays as it was.
        """
        self.drain()
        self._check_weights(step)
        if self.outputs.metrics is not None:
            self.outputs.metrics.sync()
        if self.outputs.tensorboard is not None:
            self.outputs.tensorboard.flush()
        if self.fabric.is_global_zero:
            state = {
                "step": step,
                "config": config_to_dict(self.config),
                "classes": list(self.task.classes),
                "model": self.network.net.state_dict(),
                "optimizer": self.network.bare_optimizer.state_dict(),
                "scaler": self.fabric.strategy.precision.state_dict(),
            }
            if self.network.teacher is not None:
                state["teacher"] = self.network.teacher.state_dict()
            save_checkpoint(self.outputs.folder.checkpoint_path, state)
        self.fabric.barrier()
        self._last_time = time.perf_counter()


def _means(losses: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each loss's mean over the passes of a step."""
    if len(losses) == 1:
        return losses[0]
    return {name: torch.stack([each[name].detach() for each in losses]).mean() for name in losses[0]}


def _finite(value: Any) -> Any:
    """A figure that is not finite, which JSON lacks, as None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
