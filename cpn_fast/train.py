"""`cpn train`, also `python -m cpn_fast.train`: from settings to a run folder."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from cpn_fast.board import Board
from cpn_fast.checkpoint import load_checkpoint
from cpn_fast.config import TrainConfig, preset_defaults, replace_dotted, with_recipe
from cpn_fast.curves import create_curves
from cpn_fast.data.batches import BatchStream, mean_colour, steps_per_epoch
from cpn_fast.data.open import open_source
from cpn_fast.data.random import key64
from cpn_fast.data.types import Record, Source
from cpn_fast.files.errors import DataError
from cpn_fast.methods import create_method
from cpn_fast.models import create_model
from cpn_fast.optim import create_optimizer
from cpn_fast.patch_backend import settle_backend, share_backend
from cpn_fast.progress import MetricsLog, TrainProgress
from cpn_fast.run_folder import RunFolder, check_same_settings
from cpn_fast.runtime_tuning import set_tf32, tune_allocator
from cpn_fast.trainer import Network, Outputs, Schedule, Trainer

log = logging.getLogger(__name__)

SHORT = {"--patch": "--patch.kind", "--superpixels": "--patch.superpixels", "--crop": "--augment.crop"}
"""Short forms on the command line of settings that lie deeper."""


def parse(argv: Sequence[str]) -> TrainConfig:
    """Settings from the command line: the preset's, then the options given; on --resume the run's own, then those.

    Args:
        argv: arguments without the program's name.

    Raises:
        SystemExit: with code 2 for arguments that don't fit, 0 after --help.
        DataError: where --resume finds no run.
    """
    import tyro

    given = [_long_form(argument) for argument in argv]
    output = _value_of(given, "--output")
    if "--resume" in given and output is not None:
        default = dataclasses.replace(RunFolder(output).config, resume=False)
    else:
        blank = TrainConfig(data=tyro.MISSING, output=tyro.MISSING)
        preset = _value_of(given, "--preset") or blank.preset
        try:
            default = replace_dotted(blank, preset_defaults(preset))
        except ValueError as error:
            raise DataError(f"--preset: {error}") from error
    description = (
        "Train CAM, SEAM or CPN from image labels. --patch, --superpixels and --crop are short for --patch.kind, "
        "--patch.superpixels and --augment.crop. "
        "--preset sets the defaults shown here, other options override it; --resume takes the run's own settings."
    )
    return tyro.cli(TrainConfig, args=given, default=default, prog="cpn train", description=description)


def _long_form(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return SHORT.get(name, name.replace("_", "-") if name.startswith("--") else name) + equals + value


def _value_of(argv: Sequence[str], name: str) -> str | None:
    for index, argument in enumerate(argv):
        if argument == name and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def run_train(config: TrainConfig) -> RunFolder:
    """Train one run (the same in every process of a distributed one).

    Args:
        config: the settings.

    Returns:
        The run folder, with final weights.

    Raises:
        DataError: if data, weights or settings do not fit, or the folder holds a run and `resume` is off.
        NonFiniteError: if a loss or gradient was not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    tune_allocator()
    set_tf32(config.tf32)
    config = with_recipe(config)
    _check_values(config)
    folder = RunFolder(config.output)
    config = settle_backend(config, folder)
    _check_folder(folder, config)
    fabric = create_fabric(config)
    fabric.launch()
    _check_devices(fabric, config)
    backend = share_backend(fabric, config)
    source = open_source(config.data)
    records = _labelled(source, config.split)
    _start_folder(fabric, folder, config, source, backend)

    per_epoch = steps_per_epoch(len(records), config.batch_size)
    total = per_epoch * (config.epochs or 1)
    schedule = Schedule(per_epoch, total, min(total, config.max_steps or total))
    network = create_network(config, fabric, source, records)
    start_step = _restore(folder, fabric, network) if config.resume else 0
    if start_step > schedule.last_step:
        raise DataError(f"{folder.path}: step {start_step} is done already, past --max-steps {schedule.last_step}")
    outputs = _open_outputs(fabric, folder, config, source, records, schedule, start_step)
    trainer = Trainer(config, fabric, network, schedule, outputs, source.classes)
    red, green, blue = (round(255 * value) for value in network.net.mean.tolist())
    span = (start_step, schedule.last_step, fabric.global_rank, fabric.world_size)
    device = fabric.device if fabric.device.type == "cuda" else None
    stream = BatchStream(source, records, config, *span, fill=(red, green, blue), map_device=device)
    try:
        finished = trainer.fit(stream, start_step)
    finally:
        if outputs.metrics is not None:
            outputs.metrics.close()
        if outputs.board is not None:
            outputs.board.close()
    if not finished:
        log.warning("stopped; the checkpoint in %s goes on with --resume", folder.path)
        raise KeyboardInterrupt
    if fabric.is_global_zero:
        folder.save_model(network.net, schedule.last_step)
    fabric.barrier()
    return folder


def _check_values(config: TrainConfig) -> None:
    least = {
        "batch_size": 1,
        "epochs": 1,
        "max_steps": 1,
        "checkpoint_every": 1,
        "log_every": 1,
        "devices": 1,
        "workers": 0,
    }
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise DataError(f"--{name.replace('_', '-')} {value}: expected at least {low}")
    options = config.options
    for name, fits, expected in (
        ("p_hidden", 0 <= options.p_hidden <= 1, "0..1"),
        ("ohem", 0 < options.ohem <= 1, "above 0, at most 1"),
        ("seam_scale", 0 < options.seam_scale <= 1, "above 0, at most 1"),
        ("dropout", 0 <= options.dropout < 1, "0 or more, below 1"),
        ("warm_up", 0 <= options.warm_up < 1, "0 or more, below 1"),
        ("min_pool_weight", options.min_pool_weight >= 0, "0 or more"),
    ):
        if not fits:
            option = name.replace("_", "-")
            raise DataError(f"--options.{option} {getattr(options, name)}: expected {expected}")


def _check_folder(folder: RunFolder, config: TrainConfig) -> None:
    if config.resume:
        check_same_settings(folder.config, config, folder.path)
    elif folder.exists():
        raise DataError(
            f"{folder.path}: holds a run already; go on with --resume, give another --output, or delete the folder"
        )


def create_fabric(config: TrainConfig) -> Fabric:
    """Fabric for the settings; under torchrun the launcher's number of processes counts, not `config.devices`."""
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    world = int(os.environ.get("WORLD_SIZE", devices))
    # With one of its losses off, heads of CPN may get no gradient; DDP must then look for them in every step.
    options = config.options
    partial = config.method == "cpn" and not (options.tcp and options.cpcr)
    partial = partial or (config.method != "cam" and options.warm_up > 0)
    strategy = DDPStrategy(find_unused_parameters=partial) if world > 1 else "auto"
    return Fabric(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=max(1, world // devices),
        strategy=strategy,
        precision=config.precision,
    )


def _check_devices(fabric: Fabric, config: TrainConfig) -> None:
    if config.batch_size % fabric.world_size:
        raise DataError(
            f"--batch-size {config.batch_size} counts images over all {fabric.world_size} processes; expected a "
            f"multiple of {fabric.world_size}"
        )


def _labelled(source: Source, split: str) -> list[Record]:
    """The split's records with labels; the others are counted in a warning."""
    every = source.records(split)
    records = [record for record in every if record.labels is not None]
    if not records:
        raise DataError(f"{source.spec}: split {split!r} has {len(every)} images and none has labels; expected some")
    if len(records) < len(every):
        log.warning("%d of %d images of split %r have no labels and are left out", len(every) - len(records),
                    len(every), split)  # fmt: skip
    return records


def _start_folder(fabric: Fabric, folder: RunFolder, config: TrainConfig, source: Source, backend: str | None) -> None:
    """Write config.json, once every process has looked at the folder."""
    fabric.barrier()
    if fabric.is_global_zero:
        if config.resume and tuple(folder.classes) != tuple(source.classes):
            raise DataError(
                f"{folder.path}: the run's classes are {', '.join(folder.classes)}; {source.spec} has "
                f"{', '.join(source.classes)}; resume with the data the run began with"
            )
        folder.remove_unfinished()
        folder.create(dataclasses.replace(config, resume=False), source.classes, backend)
    fabric.barrier()


def create_network(config: TrainConfig, fabric: Fabric, source: Source, records: Sequence[Record]) -> Network:
    """Network, method and optimizer, initialised from the seed, compiled if asked, wrapped by Fabric."""
    torch.manual_seed(key64(config.seed, 0, "", "initial weights") & (2**63 - 1))
    net = create_model(config, len(source.classes))
    colour = None
    if config.hidden_colour == "dataset" and not config.resume:  # a checkpoint brings its own
        colour = fabric.broadcast(mean_colour(source, records) if fabric.is_global_zero else None)
    method = create_method(config, net, colour)
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    method = fabric.to_device(method)
    optimizer = create_optimizer(net, config)
    module: Any = method
    if config.compile:
        # Dropout then draws eager's random bits, so that --compile changes no result beyond rounding.
        import torch._inductor.config as inductor

        inductor.fallback_random = True
        module = torch.compile(method, fullgraph=True, dynamic=False)
    wrapped, wrapped_optimizer = fabric.setup(module, optimizer, move_to_device=False, _reapply_compile=False)
    return Network(net, wrapped, wrapped_optimizer)


def _restore(folder: RunFolder, fabric: Fabric, network: Network) -> int:
    """Load the last checkpoint and drop later records; 0 where the run was killed before its first checkpoint."""
    if not folder.checkpoint_path.is_file():
        step = 0
    else:
        state = load_checkpoint(folder.checkpoint_path)
        network.net.load_state_dict(state["model"])
        network.bare_optimizer.load_state_dict(state["optimizer"])
        fabric.strategy.precision.load_state_dict(state["scaler"])
        step = state["step"]
    if fabric.is_global_zero:
        folder.truncate_records(step)
    return step


def _open_outputs(
    fabric: Fabric,
    folder: RunFolder,
    config: TrainConfig,
    source: Source,
    records: Sequence[Record],
    schedule: Schedule,
    start_step: int,
) -> Outputs:
    first = fabric.is_global_zero
    progress = TrainProgress(schedule.last_step, start_step, config.batch_size, config.log_every, enabled=first)
    if not first:
        return Outputs(folder, progress)
    board = Board(folder.tensorboard_path, source.classes, start_step)
    return Outputs(folder, progress, MetricsLog(folder.metrics_path), board, create_curves(source, config, records))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cpn train` with these arguments (None = the process's); returns the exit status."""
    from cpn_fast.cli import main as cli

    return cli(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
