from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cpn_fast.cli import main as cli
from cpn_fast.files.errors import DataError
from cpn_fast.refine.options import HARD_PROBABILITY
from cpn_kernels.ops.dense_crf import GT_PROB

ARGUMENTS = {
    "train": ["--data", "demo:", "--output", "runs/x", "--method", "cpn", "--patch", "grid", "--crop", "96"],
    "label": ["runs/x", "--data", "demo:", "--output", "masks", "--split", "val"],
    "train-affinity": ["masks", "--output", "runs/aff", "--crop", "96", "--backbone", "mobilenet_v2"],
    "refine": ["masks", "--crf", "--output", "refined", "--preset", "segmentation", "--iterations", "5"],
    "evaluate": ["runs/x", "--data", "demo:", "--split", "val", "--scales", "0.5", "1"],
    "segment train": ["--data", "demo:", "--masks", "masks", "--output", "runs/seg", "--crop", "96"],
    "segment predict": ["runs/seg", "--data", "demo:", "--split", "val", "--output", "predicted", "--crf"],
    "segment evaluate": ["runs/seg", "--data", "demo:", "--split", "val", "--crf", "--scales", "1"],
    "run": ["--data", "demo:", "--output", "runs/y", "--train", "--epochs 2 --lr 0.1", "--refine", "walk"],
    "convert": ["masks", "--format", "coco", "--output", "masks.json", "--instances", "components"],
    "export": ["runs/x", "--output", "model.onnx", "--scales", "0.5", "1", "--flip"],
    "reproduce": ["table1", "--data", "demo:", "--output", "runs/x", "--seeds", "1", "2", "--crop", "96"],
    "report": ["runs/x", "--images", "3"],
    "demo": ["--seeds", "2"],
    "check-data": ["demo:"],
    "compare": ["runs/a", "runs/b"],
    "superpixels": ["--data", "demo:", "--crop", "96"],
    "weights check": ["backbone.pth"],
    "review": ["masks", "--serve", "--port", "8000"],
}


def test_every_command_has_arguments_here() -> None:
    assert set(ARGUMENTS) == set(cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_arguments_become_the_commands_config(name: str) -> None:
    config = cli.parse(name, ARGUMENTS[name])
    assert type(config).__name__ == cli.COMMANDS[name].config.partition(":")[2]


def test_arguments_reach_their_fields() -> None:
    assert cli.parse("evaluate", ARGUMENTS["evaluate"]).scales == (0.5, 1.0)
    assert cli.parse("evaluate", ["a", "b", "c", "--data", "demo:"]).others == (Path("b"), Path("c"))
    assert cli.parse("train-affinity", ARGUMENTS["train-affinity"]).augment.crop == 96
    assert cli.parse("train", ARGUMENTS["train"]).augment.crop == 96
    assert cli.parse("demo", ARGUMENTS["demo"]).seeds == 2


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cpn_fast.cli.main import main; status = main(['--help']); "
        "heavy = [m for m in ('torch', 'numpy', 'tyro', 'onnxruntime', 'pydantic') if m in sys.modules]; "
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout and command.summary in done.stdout


HEAVY = (
    *("torch", "torchvision", "lightning_fabric", "triton", "cv2", "onnx", "onnxruntime", "onnxscript", "matplotlib"),
    *("skimage", "scipy", "pycocotools", "torchmetrics", "tensorboard", "jinja2", "safetensors"),
)
HELP = """
import io, json, sys
from contextlib import redirect_stdout
from cpn_fast.cli.main import COMMANDS, main

shown, loaded = {}, {}
for name in COMMANDS:
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            main([*name.split(), "--help"])
    except SystemExit as stopped:
        shown[name] = stopped.code == 0 and f"cpn {name}" in text.getvalue()
    loaded[name] = [module for module in sys.argv[1:] if module in sys.modules]
print(json.dumps([shown, loaded]))
"""


def test_help_of_every_command_loads_nothing_heavy() -> None:
    """In one process: what the help of any command imports is there for all that follow, so the first is to blame."""
    done = subprocess.run([sys.executable, "-c", HELP, *HEAVY], capture_output=True, text=True, timeout=120, check=True)
    shown, loaded = json.loads(done.stdout)
    assert shown == dict.fromkeys(cli.COMMANDS, True)
    assert loaded == {name: [] for name in cli.COMMANDS}


def test_the_package_itself_is_free_of_heavy_libraries() -> None:
    code = "import sys, cpn_fast; sys.exit(str([m for m in sys.argv[1:] if m in sys.modules] or '') or 0)"
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_functions_of_the_table_are_there(name: str) -> None:
    command = cli.COMMANDS[name]
    for target in (command.config, command.run, command.parse or command.run):
        module, _, attribute = target.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_hard_masks_are_as_sure_as_the_operator_takes_them() -> None:
    assert HARD_PROBABILITY == GT_PROB


def test_no_command_shows_usage_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: cpn COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "status"), [(["segment"], 2), (["segment", "--help"], 0)])
def test_group_of_commands_shows_its_own(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == status
    shown = capsys.readouterr().out
    assert "usage: cpn segment COMMAND" in shown and "segment predict" in shown and "check-data" not in shown


def test_unknown_command_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["segment", "tarin", "--output", "x"]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'segment tarin'" in error and "segment train" in error


def test_option_after_a_group_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["segment", "--data", "x"]) == 2
    assert "unknown command 'segment --data'" in capsys.readouterr().err


def test_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tarin"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'tarin'" in error and "train" in error and "check-data" in error


def test_wrong_option_exits_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", "runs/x", "--imagse", "3"])
    assert stopped.value.code == 2


def test_data_error_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "no run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "no run" in error and "config.json" in error


def test_message_over_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError("first\n  second")

    assert cli.guarded(fail) == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_too_many_open_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that this process may open are open, as with a low `ulimit -n`."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []

    def open_all() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        while True:
            held.append(os.open(tmp_path, os.O_RDONLY))

    try:
        assert cli.guarded(open_all) == 2
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    error = capsys.readouterr().err
    assert "Too many open files" in error and "ulimit -n" in error and error.count("\n") == 1


def test_half_a_surrogate_pair_is_printed_as_an_escape() -> None:
    """A class name of a JSON file may hold one."""
    code = "from cpn_fast.console.exit_status import guarded; print(guarded(lambda: print('a \\ud800')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a \\ud800\n0\n"


def test_interrupt_exits_130() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert cli.guarded(interrupt) == 130


def test_missing_optional_package_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    def use_torch() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert cli.guarded(use_torch) == 2
    error = capsys.readouterr().err
    assert "'torch'" in error and "cpn-fast[train]" in error


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'cpn_fast.x'", name="cpn_fast.x"), ZeroDivisionError("a fault")]
)
def test_faults_of_the_program_keep_their_traceback(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        cli.guarded(fail)


@pytest.mark.parametrize(("former", "name"), [("affinity", "train-affinity"), ("postprocess", "refine")])
def test_a_former_name_runs_the_command_and_says_so_once(
    former: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([former, str(tmp_path / "nothing"), "--output", str(tmp_path / "out")]) == 2
    said, error = capsys.readouterr().err.splitlines()
    assert said == f"`cpn {former}` is now `cpn {name}`; the next version forgets the old name"
    assert error.startswith("error: ") and "nothing" in error
    assert f"\n  {former} " not in cli.usage() and f"\n  {name} " in cli.usage()
