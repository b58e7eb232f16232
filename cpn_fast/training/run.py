"""From settings and a kind of training to a run folder: what every `TrainingTask` goes through."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from typing import Any

import torch

from cpn_fast.config.backbones import BACKBONE_NAMES, check_trusted, trust_backbone
from cpn_fast.config.ranges import check_ranges
from cpn_fast.config.training import TrainConfig, TrainingConfig, replace_dotted
from cpn_fast.console.progress import TrainProgress
from cpn_fast.data.check.labels import label_warnings
from cpn_fast.data.loading.random import key64
from cpn_fast.data.loading.steps import Span, steps_per_epoch
from cpn_fast.data.sources.unlabelled import none_labelled
from cpn_fast.data.types import Record, Source
from cpn_fast.device import set_tf32, tune_allocator
from cpn_fast.fabric import DDPStrategy, Fabric
from cpn_fast.files.chosen import choose
from cpn_fast.files.errors import DataError
from cpn_fast.files.lock import check_unlocked, locked
from cpn_fast.files.progress import SILENT, Progress
from cpn_fast.runs.checkpoint import load_checkpoint
from cpn_fast.runs.folder import RunFolder, check_same_settings
from cpn_fast.runs.metrics_log import MetricsLog
from cpn_fast.training.compilation import choose_mode, compile_module
from cpn_fast.training.cost import estimate_cost, say_cost
from cpn_fast.training.device_choice import Choice, settle_device
from cpn_fast.training.optimizer import create_optimizer
from cpn_fast.training.several import lost_processes_told, resumed_after_restart
from cpn_fast.training.task import ConfigT, TrainingTask, Validator, images_of_pass, passes_of_step
from cpn_fast.training.tensorboard import TensorBoardLogger
from cpn_fast.training.trainer import Network, Outputs, Schedule, Trainer
from cpn_fast.training.trial_step import try_out

log = logging.getLogger(__name__)


def run_training(config: ConfigT, kind: type[TrainingTask[ConfigT]], progress: Progress = SILENT) -> RunFolder:
    """Train one run (the same in every process of a distributed one).

    Args:
        config: the settings, with nothing left to the recipe.
        kind: which kind of training.
        progress: where the training is shown.

    Returns:
        The run folder, with final weights.

    Raises:
        DataError: if data, weights or settings do not fit, the folder holds a run and `resume` is off, or another
            command writes to it.
        NonFiniteError: if a loss or gradient was not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    tune_allocator()
    set_tf32(config.device.tf32)
    torch.backends.cudnn.benchmark = config.device.cudnn_benchmark
    check_ranges(config)
    folder = RunFolder(config.output)
    config = resumed_after_restart(config, folder)
    if not config.loop.resume:
        trust_backbone(config.backbone)
    config, choice = settle_device(config, folder)
    _check_folder(folder, config)
    fabric = create_fabric(config, kind.partial_gradients(config))
    with lost_processes_told(fabric, config.device.timeout):
        fabric.launch()
        _check_devices(fabric, config)
        if fabric.is_global_zero:
            for reason in choice.reasons:
                log.log(logging.INFO if fabric.device.type == "cuda" else logging.DEBUG, "%s", reason)
        with _held(fabric, folder, config):
            return _train(config, choice, kind, fabric, folder, progress)


@contextmanager
def _held(fabric: Fabric, folder: RunFolder, config: TrainingConfig) -> Iterator[None]:
    """Hold the run folder, in the first process. Raises DataError in all of them where another command writes to it."""
    with ExitStack() as stack:
        refusal = None
        if fabric.is_global_zero:
            try:
                stack.enter_context(locked(folder.path))
                _check_folder(folder, config, ours=True)  # another may have begun a run here since it was looked at
            except DataError as error:
                refusal = str(error)
        refusal = fabric.broadcast(refusal)
        if refusal is not None:
            raise DataError(refusal)
        yield


def _train(
    config: ConfigT,
    choice: Choice,
    kind: type[TrainingTask[ConfigT]],
    fabric: Fabric,
    folder: RunFolder,
    progress: Progress,
) -> RunFolder:
    task = kind(config, fabric, progress)
    network = create_network(task)  # reads the weights; up to here nothing is written
    task.prepare()
    per_epoch = steps_per_epoch(task.num_records, config.loop.batch_size)
    total = per_epoch * (config.loop.epochs or 1)
    schedule = Schedule(per_epoch, total, min(total, config.loop.max_steps or total), task.restart_step(total))
    evaluator = task.evaluator() if fabric.is_global_zero else None
    start_step = _restore(folder, fabric, network) if config.loop.resume else 0
    _check_resumed(folder, task, schedule, start_step)
    if config.loop.resume and start_step < schedule.last_step:
        log.info("%s: resuming at step %d of %d", folder.path, start_step, schedule.last_step)
    if fabric.is_global_zero and start_step < schedule.last_step:
        _say_before(task, network, schedule.last_step - start_step)
    if start_step < schedule.last_step:
        _make_ready(task, network, choice.compile_may_fail)
    _start_folder(fabric, folder, task, start_step)
    if start_step < schedule.last_step:
        folder.model_path.unlink(missing_ok=True)  # training on makes it stale
    trainer = Trainer(task, network, schedule, _open_outputs(folder, task, schedule, start_step, evaluator))
    passes = passes_of_step(config, fabric.world_size)
    span = Span(start_step, schedule.last_step, fabric.global_rank, fabric.world_size, passes)
    with closing(trainer.outputs):
        finished = trainer.fit(task.stream(network.net, span), start_step)
    if finished and fabric.is_global_zero and not folder.model_path.is_file():
        folder.save_model(network.net, schedule.last_step)
    fabric.barrier()
    if trainer.stop or not finished:
        log.warning("stopped; rerun the command with --resume to resume from the checkpoint in %s", folder.path)
        raise KeyboardInterrupt
    return folder


def _check_folder(folder: RunFolder, config: TrainingConfig, ours: bool = False) -> None:
    """Raise DataError for a run that is there already or differs; `ours`: this process holds the folder's lock."""
    if config.loop.resume:
        check_trusted(config.backbone, str(folder.config_path))
        check_same_settings(folder.config_of(type(config)), config, folder.path)
    elif folder.exists():
        if not ours:
            check_unlocked(folder.path)  # while another training writes it, neither resuming nor deleting is any good
        raise DataError(
            f"{folder.path}: holds a run already; resume it with --resume, give another --output, or delete the folder"
        )


def create_fabric(config: TrainingConfig, partial_gradients: bool = False) -> Fabric:
    """Fabric for the settings; under torchrun the launcher's number of processes counts, not `config.device.devices`.

    Args:
        config: the settings.
        partial_gradients: a step may leave parameters without gradient; DDP then looks for them in every step.

    Raises:
        DataError: for GPUs that are not there.
    """
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", config.device.devices))
    world = int(os.environ.get("WORLD_SIZE", devices))
    if config.device.accelerator == "cuda" and (found := torch.cuda.device_count()) < devices:
        raise DataError(
            f"--accelerator cuda: torch sees {found or 'no'} GPU{'s' if found > 1 else ''}, expected {devices}; "
            + ("lower --devices" if found else "use --accelerator cpu, or install a CUDA build of torch")
        )
    strategy = (
        DDPStrategy(find_unused_parameters=partial_gradients, timeout=timedelta(seconds=config.device.timeout))
        if world > 1
        else "auto"
    )
    return Fabric(
        accelerator=config.device.accelerator,
        devices=devices,
        num_nodes=max(1, world // devices),
        strategy=strategy,
        precision="32-true" if config.device.precision == "auto" else config.device.precision,
    )


def _check_devices(fabric: Fabric, config: TrainingConfig) -> None:
    if config.loop.batch_size % fabric.world_size:
        raise DataError(
            f"--batch-size {config.loop.batch_size} counts images over all {fabric.world_size} processes; expected a "
            f"multiple of {fabric.world_size}"
        )
    share, micro = config.loop.batch_size // fabric.world_size, config.loop.micro_batch
    if micro is not None and share % micro:
        raise DataError(
            f"--micro-batch {micro}: each of {fabric.world_size} processes has {share} images of a step; expected a "
            "number that divides them"
        )


def labelled_records(source: Source, split: str) -> Sequence[Record]:
    """The split's records with labels; the others are counted in a warning.

    Raises:
        DataError: if none has labels.
    """
    if split not in source.splits() and "all" in source.splits():
        everything = source.records("all")
        if all(record.labels is None for record in everything):  # why there is no such split
            raise DataError(none_labelled(source, everything))
    every = source.records(split)
    records = choose(every, lambda record: record.labels is not None)
    if not records:
        raise DataError(f"split {split!r}: {none_labelled(source, every)}")
    if len(records) < len(every):
        log.warning("%d of %d images of split %r have no labels and are excluded", len(every) - len(records),
                    len(every), split)  # fmt: skip
    for warning in label_warnings(source.classes, records, split):
        log.warning("%s", warning)
    return records


def _check_resumed(folder: RunFolder, task: TrainingTask[Any], schedule: Schedule, start_step: int) -> None:
    """Refuse to resume with other classes or behind the end; say where there is nothing left to train, and why."""
    config: TrainingConfig = task.config
    if not config.loop.resume:
        return
    if tuple(folder.classes) != tuple(task.classes):
        raise DataError(
            f"{folder.path}: the run's classes are {', '.join(folder.classes)}; {config.data} has "
            f"{', '.join(task.classes)}; resume with the data the run began with"
        )
    if start_step > schedule.last_step:
        raise DataError(f"{folder.path}: step {start_step} is already past --max-steps {schedule.last_step}")
    if start_step == schedule.last_step:
        more = ""
        if schedule.last_step < schedule.total_steps:
            more = (
                f": it was started with --max-steps {config.loop.max_steps}, which a resumed run keeps; give a larger "
                f"number, or `--max-steps None` for all {schedule.total_steps} steps of its {config.loop.epochs} epochs"
            )
        log.warning("%s: all %d steps are done, nothing is left to train%s", folder.path, start_step, more)


def _say_before(task: TrainingTask[Any], network: Network, steps: int) -> None:
    """What a person should know before time and memory are spent."""
    config, fabric = task.config, task.fabric
    begins_with = config.weights or (isinstance(config, TrainConfig) and config.init)
    if not begins_with and not config.loop.resume and config.backbone in BACKBONE_NAMES:  # others bring their own
        log.warning(
            "no --weights: the backbone %s begins with random numbers, and image labels alone teach it little; expect "
            "poor masks, and give weights that were trained on ImageNet for good ones", config.backbone,
        )  # fmt: skip
    say_cost(estimate_cost(task, network.net, fabric.device, fabric.world_size), steps, fabric.device)


def _start_folder(fabric: Fabric, folder: RunFolder, task: TrainingTask[Any], start_step: int) -> None:
    """Write config.json and drop the records of later steps, once every process has looked at the folder."""
    fabric.barrier()
    if fabric.is_global_zero:
        folder.remove_unfinished()
        folder.create(replace_dotted(task.config, {"resume": False}), task.classes, task.backend)
        folder.truncate_records(start_step)
    fabric.barrier()


def create_network(task: TrainingTask[Any]) -> Network:
    """Network, losses and optimizer, initialised from the seed, wrapped by Fabric; nothing is compiled yet."""
    config, fabric = task.config, task.fabric
    torch.manual_seed(key64(config.loop.seed, 0, "", "initial weights") & (2**63 - 1))
    net = task.create_net()
    module: Any = task.create_module(net)
    if config.device.channels_last:
        module = module.to(memory_format=torch.channels_last)
    module = fabric.to_device(module)
    teacher = getattr(module, "teacher", None)
    optimizer = create_optimizer(net, config)
    wrapped, wrapped_optimizer = fabric.setup(module, optimizer, move_to_device=False)
    return Network(net, wrapped, wrapped_optimizer, module, teacher)


def _make_ready(task: TrainingTask[Any], network: Network, compile_may_fail: bool) -> None:
    """Try a step out, and compile; nothing has been written up to here."""
    config, fabric = task.config, task.fabric
    compiled = None
    if config.device.compile == "on":
        compiled = choose_mode(config, network.method, fabric.device, fabric.world_size)
        if fabric.is_global_zero:
            level = logging.INFO if fabric.device.type == "cuda" else logging.DEBUG
            log.log(level, "--compile-mode %s (%s)", compiled.modes[0], compiled.reason)
    if config.device.trial_step != "on":
        if compiled is not None:
            compile_module(network.method, compiled.modes[0])
        return
    what = f"{images_of_pass(config, fabric.world_size)} crops of {config.augment.crop} pixels"
    inputs = task.trial_inputs(network.net)
    succeeded = try_out(network.method, inputs, fabric, what, compiled, compile_may_fail)
    if compiled is not None and not succeeded:
        task.config = replace_dotted(config, {"compile": "off"})


def _restore(folder: RunFolder, fabric: Fabric, network: Network) -> int:
    """Load the last checkpoint and give its step; 0 where the run was killed before its first one."""
    if not folder.checkpoint_path.is_file():
        return 0
    state = load_checkpoint(folder.checkpoint_path)
    network.net.load_state_dict(state["model"])
    if network.teacher is not None:
        network.teacher.load_state_dict(state["teacher"])
    network.bare_optimizer.load_state_dict(state["optimizer"])
    fabric.strategy.precision.load_state_dict(state["scaler"])
    return state["step"]


def _open_outputs(
    folder: RunFolder, task: TrainingTask[Any], schedule: Schedule, start_step: int, evaluator: Validator | None
) -> Outputs:
    config, first = task.config, task.fabric.is_global_zero
    progress = TrainProgress(
        schedule.last_step,
        start_step,
        config.loop.batch_size,
        config.loop.log_every,
        enabled=task.progress is not SILENT,
        losses=task.losses,
    )
    if not first:
        return Outputs(folder, progress)
    board = TensorBoardLogger(folder.tensorboard_path, task.classes, start_step)
    return Outputs(folder, progress, MetricsLog(folder.metrics_path), board, evaluator)
