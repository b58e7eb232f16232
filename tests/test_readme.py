"""README's commands: those for a CPU run here, in order, in one folder; the others go through the real parsers."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cpn_fast.cli import main as cli
from cpn_fast.models.backbones import create_backbone
from cpn_fast.pipeline.command import run_pipeline
from cpn_fast.pipeline.runner import Outcome

README = Path(__file__).resolve().parents[1] / "README.md"
TAGS = ("cpu", "gpu", "voc", "setup")
SMALL_TRAINING = (
    *("--max-steps", "2", "--epochs", "1", "--crop", "64", "--batch-size", "2", "--workers", "0", "--val-images", "2"),
)
SMALL_TEXT = " ".join(SMALL_TRAINING)
SMALL = {
    "train": SMALL_TRAINING,
    "affinity": SMALL_TRAINING,
    "reproduce": (*SMALL_TRAINING, "--eval-every", "0", "--images", "2", "--scales", "1"),
    "segment train": SMALL_TRAINING,
    "segment evaluate": ("--scales", "0.5", "--no-flip"),
    "segment predict": ("--scales", "0.5", "--no-flip"),
    "export": ("--scales", "1", "--no-flip"),
    "run": (
        *("--scales", "1", "--train", f"{SMALL_TEXT} --patch grid", "--affinity", f"{SMALL_TEXT} --beta 0.3"),
        *("--postprocess", "--beta 0.3"),  # the best score of a network that has learnt nothing may be 0
        *("--segmentation", SMALL_TEXT, "--evaluate", "--scales 1 --no-flip", "--export", "--scales 1 --no-flip"),
    ),
}
"""What the test adds, so that a command that otherwise runs as README has it takes seconds."""


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """(tag, commands) of every fenced block; a command may go on over lines that end in a backslash."""
    for info, body in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        language, _, tag = info.strip().partition(" ")
        assert language == "bash" and tag in TAGS, f"block ```{info}: expected ```bash and one of {TAGS}"
        lines = body.replace("\\\n", " ").splitlines()
        yield tag, [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def tagged(*tags: str) -> list[str]:
    return [
        command for tag, commands in blocks(README.read_text(encoding="utf-8")) if tag in tags for command in commands
    ]


def cpn_words(command: str) -> tuple[str, list[str]]:
    """("cpn" or "cpn-label", its arguments); `[torchrun ...|python] -m cpn_fast.train` is `cpn train`."""
    words = shlex.split(command, comments=True)
    if words[0] in ("python", "torchrun") and "cpn_fast.train" in words:
        return "cpn", ["train", *words[words.index("cpn_fast.train") + 1 :]]
    assert words[0] in ("cpn", "cpn-label"), f"{command!r}: neither cpn nor cpn-label"
    return words[0], words[1:]


def parse(command: str) -> Any:
    program, words = cpn_words(command)
    if program == "cpn":
        return cli.parse(*cli.split_name(words))
    import tyro

    from cpn_export.label import LabelOnnxConfig

    return tyro.cli(LabelOnnxConfig, args=words)


def test_blocks_of_another_tag_are_refused() -> None:
    with pytest.raises(AssertionError, match="python"):
        list(blocks("```python\nx = 1\n```\n"))


def test_lines_that_end_in_a_backslash_go_on() -> None:
    assert list(blocks("```bash cpu\n# why\ncpn a \\\n  --b\ncpn c\n```\n")) == [("cpu", ["cpn a    --b", "cpn c"])]


@pytest.mark.parametrize("command", tagged("gpu", "voc", "cpu"))
def test_command_is_understood_by_the_real_parser(command: str) -> None:
    parse(command)


def test_an_option_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(SystemExit):
        parse("cpn train --data photos --output runs/x --no-such-option 1")


def test_setup_commands_are_make_targets(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    commands = [shlex.split(command, comments=True) for command in tagged("setup")]
    assert commands
    for program, target, *_ in commands:
        assert program == "make" and re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_files_that_the_readme_names_exist(repository: Path) -> None:
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"`((?:cpn_fast|kernels|export|benchmarks|tests)/[\w/.]+)`", text)
    named += [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert named
    assert [name for name in named if not (repository / name).exists()] == []


@pytest.fixture
def photos(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as README describes it, with masks, beside weights of the name that README uses."""
    from cpn_fast.data.sources.open import open_source

    monkeypatch.chdir(tmp_path)
    root = tmp_path / "photos"
    (root / "images" / "holiday").mkdir(parents=True)
    (root / "masks" / "holiday").mkdir(parents=True)
    source = open_source(f"demo:{small_demo}")
    lines = ["image,labels,split"]
    for record in source.records("train")[:4]:
        name = f"holiday/{record.id}"
        shutil.copy(record.image_path, root / "images" / f"{name}.jpg")
        assert record.mask_path is not None and record.labels is not None
        shutil.copy(record.mask_path, root / "masks" / f"{name}.png")
        lines.append(f"{name}.jpg,{';'.join(source.classes[label] for label in record.labels)},train")
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "classes.txt").write_text("\n".join(source.classes) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    save_file(create_backbone("mobilenet_v2").state_dict(), tmp_path / "mobilenet_v2_imagenet.safetensors")
    return root


@pytest.mark.slow
def test_cpu_commands_run(photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cpn_export.label import main as cpn_label

    # The stages of `cpn run` in this process: a dozen others would load torch a dozen times.
    monkeypatch.setattr(run_pipeline, "__defaults__", (lambda argv, lock: Outcome(cli.main(list(argv)), 1.0, 1.0),))
    for command in tagged("cpu"):
        program, words = cpn_words(command)
        small = SMALL.get(cli.split_name(words)[0], ())
        status = cpn_label(words) if program == "cpn-label" else cli.main([*words, *small])
        assert status == 0, f"{command}\n{capsys.readouterr().err}"
    made = photos.parent
    for path in (
        "runs/photos/report.html",
        "runs/photos/metrics.json",
        "runs/segment/metrics.json",
        "runs/tables/table3.png",
        "runs/tables/time.csv",
        "runs/model/report.html",
        "runs/model/labeller.onnx",
        "runs/model/segment.onnx",
        "masks/metrics.json",
        "masks/labelmap.txt",
        "masks.json",
        "masks.zip",
    ):
        assert (made / path).is_file(), path
    ids = sorted(path.relative_to(photos / "images").with_suffix("") for path in photos.rglob("*.jpg"))
    assert len(ids) == 4
    for folder in ("masks", "masks-crf", "masks-walk", "masks-onnx", "masks-int8", "predicted"):
        masks = made / folder / "SegmentationClass"
        assert sorted(path.relative_to(masks).with_suffix("") for path in masks.rglob("*.png")) == ids
