"""The command line, `cpn COMMAND ...`: the one place that sees every part; imports each only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cpn_fast.console.commands import CommandLine
from cpn_fast.console.exit_status import EXIT_ERROR, fail, guarded


@dataclass(frozen=True)
class Command:
    """One subcommand: where its config dataclass and its function live.

    Attributes:
        summary: one line for `cpn --help`.
        module: imported only when the command is called.
        config: name of the frozen dataclass from which the options are built.
        run: name of the function that takes that config.
        parse: name of the module's own parser (list of str -> config), for a command whose defaults depend on its
            other options; None = the options are the dataclass.
        calls_others: the function also takes the command line, as a `CommandLine`.
    """

    summary: str
    module: str
    config: str
    run: str
    parse: str | None = None
    calls_others: bool = False


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train CAM, SEAM or CPN from image labels", "cpn_fast.cam.task", "TrainConfig", "run_train", "parse"
    ),
    "label": Command("write pseudo masks with a trained run", "cpn_fast.cam.label", "LabelConfig", "run_label"),
    "affinity": Command(
        "train AffinityNet on a labelling", "cpn_fast.affinity.command", "AffinityConfig", "run_affinity", "parse"
    ),
    "postprocess": Command(
        "refine masks by random walk, dense CRF", "cpn_fast.refine.command", "PostprocessConfig", "run_postprocess"
    ),
    "evaluate": Command(
        "score masks or a run against ground truth", "cpn_fast.scoring.command", "EvaluateConfig", "run_evaluate"
    ),
    "segment train": Command(
        "train DeepLab-LargeFOV on a folder of pseudo masks",
        "cpn_fast.segment.task",
        "SegmentConfig",
        "run_segment_train",
        "parse",
    ),
    "segment predict": Command(
        "write the masks of a segmentation run", "cpn_fast.segment.predict", "PredictConfig", "run_segment_predict"
    ),
    "segment evaluate": Command(
        "score a segmentation run", "cpn_fast.segment.evaluate", "SegmentEvaluateConfig", "run_segment_evaluate"
    ),
    "run": Command(
        "all stages from images to a segmentation model",
        "cpn_fast.pipeline.command",
        "PipelineConfig",
        "run_pipeline",
        "parse",
        calls_others=True,
    ),
    "convert": Command(
        "write masks as COCO JSON or a CVAT zip", "cpn_fast.convert.command", "ConvertConfig", "run_convert"
    ),
    "export": Command("write a run as an ONNX model", "cpn_export.to_onnx", "ExportConfig", "run_export"),
    "reproduce": Command(
        "make one of the paper's tables on any source",
        "cpn_fast.reproduce.command",
        "ReproduceConfig",
        "run_reproduce",
        "parse",
        calls_others=True,
    ),
    "report": Command("write one HTML page about a run", "cpn_fast.report.command", "ReportConfig", "run_report"),
    "demo": Command(
        "the whole pipeline on generated data", "cpn_fast.demo.command", "DemoConfig", "run_demo", calls_others=True
    ),
    "check-data": Command(
        "read a data set once and list its problems", "cpn_fast.data.check.command", "CheckConfig", "run_check"
    ),
}
"""A new subcommand is one more line here; one of a group has both words as its key."""


def usage(group: str | None = None) -> str:
    """The text of `cpn --help`, or of `cpn GROUP --help` for the first word of some commands' names."""
    shown = {name: command for name, command in COMMANDS.items() if group in (None, name.partition(" ")[0])}
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in shown.items()]
    head = "usage: cpn COMMAND [OPTIONS]" if group is None else f"usage: cpn {group} COMMAND [OPTIONS]"
    return "\n".join([head, "", *lines, "", "`cpn COMMAND --help` lists its options."])


def split_name(args: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or, within a group, of two, and its arguments.

    Args:
        args: not empty. Words that name no command are given back as they are.
    """
    words = 2 if args[0] in _groups() else 1
    return " ".join(args[:words]), list(args[words:])


def _groups() -> set[str]:
    return {name.partition(" ")[0] for name in COMMANDS if " " in name}


def parse(name: str, args: Sequence[str]) -> Any:
    """Build the config of subcommand `name` from its arguments, without running it.

    Raises:
        SystemExit: with code 2 for arguments that don't fit (the message is on stderr), with 0 after `--help`.
    """
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    if command.parse:
        return getattr(module, command.parse)(list(args))
    import tyro

    return tyro.cli(getattr(module, command.config), args=list(args), prog=f"cpn {name}", description=command.summary)


def run(name: str, args: Sequence[str]) -> Any:
    """Parse the arguments of subcommand `name`, run it, and return what its function returns."""
    config = parse(name, args)
    command = COMMANDS[name]
    function = getattr(importlib.import_module(command.module), command.run)
    return function(config, command_line()) if command.calls_others else function(config)


def command_line() -> CommandLine:
    """The command line as a value, for commands that call others."""
    return CommandLine(lambda words: parse(*split_name(words)), lambda words: run(*split_name(words)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None = `sys.argv[1:]`.

    Returns:
        The exit status: 0, 2 for an error that the message explains, 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    group = args[0] if args and args[0] in _groups() else None
    asked = args[1:] if group else args
    if not asked or asked[0] in ("-h", "--help"):
        sys.stdout.write(usage(group) + "\n")
        return 0 if asked else EXIT_ERROR
    if args[0] == "--version":
        sys.stdout.write(f"cpn-fast {_version()}\n")
        return 0
    name, rest = split_name(args)
    if name not in COMMANDS:
        return fail(f"unknown command {name!r}; known: {', '.join(COMMANDS)}")
    return guarded(lambda: run(name, rest))


def _version() -> str:
    try:
        return version("cpn-fast")
    except PackageNotFoundError:
        return "(not installed)"
