"""The command line, `cpn COMMAND ...`: the one place that sees every part; imports each only when it is asked for."""

from __future__ import annotations

import errno
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cpn_fast.files.errors import DataError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


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
    """

    summary: str
    module: str
    config: str
    run: str
    parse: str | None = None


COMMANDS: dict[str, Command] = {
    "train": Command("train CAM, SEAM or CPN from image labels", "cpn_fast.train", "TrainConfig", "run_train", "parse"),
    "label": Command("write pseudo masks with a trained run", "cpn_fast.label", "LabelConfig", "run_label"),
    "affinity": Command(
        "train AffinityNet on a labelling", "cpn_fast.affinity.command", "AffinityConfig", "run_affinity", "parse"
    ),
    "postprocess": Command(
        "refine masks by random walk, dense CRF", "cpn_fast.postprocess", "PostprocessConfig", "run_postprocess"
    ),
    "evaluate": Command(
        "score masks or a run against ground truth", "cpn_fast.evaluate", "EvaluateConfig", "run_evaluate"
    ),
    "segment train": Command(
        "train DeepLab-LargeFOV on a folder of pseudo masks",
        "cpn_fast.segment.train",
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
    ),
    "report": Command("write one HTML page about a run", "cpn_fast.report", "ReportConfig", "run_report"),
    "demo": Command("the whole pipeline on generated data", "cpn_fast.demo", "DemoConfig", "run_demo"),
    "check-data": Command(
        "read a data set once and list its problems", "cpn_fast.data.check", "CheckConfig", "run_check"
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
    return getattr(importlib.import_module(COMMANDS[name].module), COMMANDS[name].run)(config)


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
        return _fail(f"unknown command {name!r}; known: {', '.join(COMMANDS)}")
    return guarded(lambda: run(name, rest))


def guarded(action: Callable[[], Any]) -> int:
    """Run `action` and turn what a user can mend into one line on stderr.

    Returns:
        0 where it ended, 2 after a `DataError`, a missing optional package, a full disk or a missing permission, 130
        after Ctrl-C. Other exceptions pass: they are faults of the program and keep their traceback.
    """
    _log_to_terminal()
    try:
        action()
    except DataError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("cpn_fast", "cpn_kernels", "cpn_export"):
            raise
        return _fail(f"this command needs the package {error.name!r}; install it with: pip install 'cpn-fast[train]'")
    except OSError as error:
        if error.errno not in _FULL + _FORBIDDEN:
            raise
        mend = "free disk space" if error.errno in _FULL else "correct the permissions, or give another folder"
        return _fail(f"{error.filename or 'a file'}: {error.strerror}; {mend}, and give the same command again")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    return 0


def _fail(message: str) -> int:
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return EXIT_ERROR


def _version() -> str:
    try:
        return version("cpn-fast")
    except PackageNotFoundError:
        return "(not installed)"


def _log_to_terminal() -> None:
    """Show the library's log records, unless the caller has set up logging already."""
    from rich.logging import RichHandler

    logger = logging.getLogger("cpn_fast")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = RichHandler(show_path=False, show_time=False, markup=False)
        for name in ("cpn_fast", "cpn_kernels", "cpn_export"):
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
