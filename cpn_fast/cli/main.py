"""The command line, `cpn COMMAND ...`: the one place that sees every part; imports each only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from typing import Any

from cpn_fast.console.exit_status import EXIT_ERROR, EXIT_FAILED_IMAGES, fail, guarded, piped


@dataclass(frozen=True)
class Command:
    """One subcommand: where its config dataclass and its function live.

    Everything is named as `module:name`. What options are made of is free of torch and other heavy libraries, so that
    `--help` is there at once; the function's module is imported only when the command runs.

    Attributes:
        summary: one line for `cpn --help`.
        config: the frozen dataclass from which the options are built.
        run: the function that takes that config, and `progress` where it shows any.
        parse: a parser of the command's own (list of str -> config), for one whose defaults depend on its other
            options; None = the options are the dataclass.
        calls_others: the function also takes `run_config`, to call commands that lie above it.
    """

    summary: str
    config: str
    run: str
    parse: str | None = None
    calls_others: bool = False


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train CAM, SEAM or CPN from image labels",
        "cpn_fast.config.training:TrainConfig",
        "cpn_fast.cam.task:run_train",
        "cpn_fast.cam.options:parse",
    ),
    "label": Command(
        "write pseudo masks with a trained run", "cpn_fast.cam.options:LabelConfig", "cpn_fast.cam.label:run_label"
    ),
    "train-affinity": Command(
        "train AffinityNet on a labelling",
        "cpn_fast.config.training:AffinityConfig",
        "cpn_fast.affinity.command:run_affinity",
        "cpn_fast.affinity.options:parse",
    ),
    "refine": Command(
        "refine masks by random walk, dense CRF",
        "cpn_fast.refine.options:RefineConfig",
        "cpn_fast.refine.command:run_refine",
    ),
    "evaluate": Command(
        "score masks or a run against ground truth",
        "cpn_fast.scoring.options:EvaluateConfig",
        "cpn_fast.scoring.command:run_evaluate",
    ),
    "compare": Command(
        "differences of mIoU between scored runs, with intervals",
        "cpn_fast.scoring.compare_options:CompareConfig",
        "cpn_fast.scoring.compare:run_compare",
    ),
    "segment train": Command(
        "train DeepLab-LargeFOV on a folder of pseudo masks",
        "cpn_fast.config.training:SegmentConfig",
        "cpn_fast.segment.task:run_segment_train",
        "cpn_fast.segment.options:parse",
    ),
    "segment predict": Command(
        "write the masks of a segmentation run",
        "cpn_fast.segment.options:PredictConfig",
        "cpn_fast.segment.predict:run_segment_predict",
    ),
    "segment evaluate": Command(
        "score a segmentation run",
        "cpn_fast.segment.options:SegmentEvaluateConfig",
        "cpn_fast.segment.evaluate:run_segment_evaluate",
    ),
    "run": Command(
        "all stages from images to a segmentation model",
        "cpn_fast.pipeline.plan:PipelineConfig",
        "cpn_fast.pipeline.command:run_pipeline",
        "cpn_fast.pipeline.options:parse",
    ),
    "convert": Command(
        "write masks for another tool, or bring them back from it",
        "cpn_fast.convert.options:ConvertConfig",
        "cpn_fast.convert.command:run_convert",
    ),
    "review": Command(
        "look through masks in a browser and say which are good",
        "cpn_fast.review.options:ReviewConfig",
        "cpn_fast.review.command:run_review",
    ),
    "export": Command(
        "write a run as an ONNX model", "cpn_fast.config.export:ExportConfig", "cpn_export.to_onnx:run_export"
    ),
    "reproduce": Command(
        "make one of the paper's tables on any source",
        "cpn_fast.reproduce.options:ReproduceConfig",
        "cpn_fast.reproduce.command:run_reproduce",
        "cpn_fast.reproduce.options:parse",
    ),
    "report": Command(
        "write one HTML page about a run", "cpn_fast.report.options:ReportConfig", "cpn_fast.report.command:run_report"
    ),
    "demo": Command(
        "the whole pipeline on generated data",
        "cpn_fast.demo.options:DemoConfig",
        "cpn_fast.demo.command:run_demo",
        calls_others=True,
    ),
    "check-data": Command(
        "read a data set once and list its problems",
        "cpn_fast.data.check.options:CheckConfig",
        "cpn_fast.data.check.command:run_check",
    ),
    "superpixels": Command(
        "fill the cache of superpixels ahead of a training",
        "cpn_fast.cam.superpixel_options:SuperpixelsConfig",
        "cpn_fast.cam.superpixels:run_superpixels",
    ),
    "weights check": Command(
        "say what a file of weights is and which backbone it fits",
        "cpn_fast.weights.options:CheckWeightsConfig",
        "cpn_fast.weights.command:run_check_weights",
    ),
}
"""A new subcommand is one more line here; one of a group has both words as its key."""

FORMER_NAMES = {"affinity": "train-affinity", "postprocess": "refine"}
"""Names that commands had in the version before, which still run them."""


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
    name = " ".join(args[:words])
    return FORMER_NAMES.get(name, name), list(args[words:])


def _groups() -> set[str]:
    return {name.partition(" ")[0] for name in COMMANDS if " " in name}


def parse(name: str, args: Sequence[str]) -> Any:
    """Build the config of subcommand `name` from its arguments, without running it.

    Raises:
        SystemExit: with code 2 for arguments that don't fit (the message is on stderr), with 0 after `--help`.
    """
    from cpn_fast.config.backbones import trust_backbone
    from cpn_fast.training.options import value_of

    command = COMMANDS[name]
    trust_backbone(value_of(args, "--backbone") or "")
    if command.parse:
        return _imported(command.parse)(list(args))
    import tyro

    return tyro.cli(_imported(command.config), args=list(args), prog=f"cpn {name}", description=command.summary)


def _imported(name: str) -> Any:
    """What `module:name` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def config_class(name: str) -> Any:
    """The dataclass of subcommand `name`'s config."""
    return _imported(COMMANDS[name].config)


def run_config(name: str, config: Any) -> Any:
    """Run subcommand `name` with a config, and return what its function returns."""
    command = COMMANDS[name]
    function = _imported(command.run)
    from cpn_fast.console.terminal import TerminalProgress

    others = (run_config,) if command.calls_others else ()
    shown = {"progress": TerminalProgress()} if "progress" in signature(function).parameters else {}
    return function(config, *others, **shown)


def run(name: str, args: Sequence[str]) -> Any:
    """Parse the arguments of subcommand `name`, run it, and return what its function returns."""
    return run_config(name, parse(name, args))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None = `sys.argv[1:]`.

    Returns:
        The exit status: 0, 1 where `check-data` found problems, 2 for an error that the message explains, 3 where some
        images could not be done (the manifest says which and why; 0 with --allow-failures), 130 after Ctrl-C or
        SIGTERM, 141 where the reader of a pipe has closed it.
    """
    return piped(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(args: list[str]) -> int:
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
    if args[0] in FORMER_NAMES:
        sys.stderr.write(f"`cpn {args[0]}` is now `cpn {name}`; the next version forgets the old name\n")
    return _guarded_run(name, rest)


def _guarded_run(name: str, args: Sequence[str]) -> int:
    """The exit status of a subcommand; of one over images it says whether some of them could not be done."""
    failed = False

    def action() -> None:
        nonlocal failed
        config = parse(name, args)
        result = run_config(name, config)
        failed = getattr(result, "failed", 0) > 0 and not getattr(config, "allow_failures", False)

    return guarded(action) or (EXIT_FAILED_IMAGES if failed else 0)


def _version() -> str:
    try:
        return version("cpn-fast")
    except PackageNotFoundError:
        return "(not installed)"
