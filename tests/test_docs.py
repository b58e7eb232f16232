"""What README and docs/ promise: commands for a CPU run here, in order, in one folder; others go through the parsers.

Python blocks run too, and what is named (files, functions, errors, options) is looked for in the code.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from cpn_fast.cli import main as cli
from cpn_fast.config.training import MethodOptions
from cpn_fast.models.backbones import create_backbone, mobilenet_v2
from cpn_fast.models.weights.layouts import layout_of
from tests.stages import run_stages_here

ROOT = Path(__file__).resolve().parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
NAVIGATION = re.findall(
    r"- (?:\w+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
)
PAGES = [README, *(DOCS / name for name in NAVIGATION)]
GUIDE = [page for page in PAGES if page.parent.name == "guide"]
DOOR = [README, *(page for page in PAGES if page.parent.name == "start")]
TAGS = ("cpu", "gpu", "voc", "parsed", "setup", "python", "none")
"""Of a block: run here; the parser's three times; targets of make; Python that runs; nothing that a test could do."""
SMALL_TRAINING = (
    *("--max-steps", "2", "--epochs", "1", "--crop", "64", "--batch-size", "2", "--workers", "0", "--val-images", "2"),
)
SMALL_TEXT = " ".join(SMALL_TRAINING)
SMALL = {
    "train": SMALL_TRAINING,
    "train-affinity": (*SMALL_TRAINING, "--beta", "0.3"),  # the best score of a network that knows nothing may be 0
    "refine": ("--beta", "0.3"),
    "reproduce": (*SMALL_TRAINING, "--eval-every", "0", "--images", "2", "--scales", "1"),
    "segment train": SMALL_TRAINING,
    "segment evaluate": ("--scales", "0.5", "--no-flip"),
    "segment predict": ("--scales", "0.5", "--no-flip"),
    "export": ("--scales", "1", "--no-flip"),
    "run": (
        *("--scales", "1", "--train", f"{SMALL_TEXT} --patch grid", "--affinity", f"{SMALL_TEXT} --beta 0.3"),
        *("--refinement", "--beta 0.3"),
        *("--segmentation", SMALL_TEXT, "--evaluate", "--scales 1 --no-flip", "--export", "--scales 1 --no-flip"),
    ),
}
"""What the test adds, so that a command that otherwise runs as README has it takes seconds."""


def blocks(text: str, name: str = "text") -> Iterator[tuple[str, list[str]]]:
    """(tag, lines) of every fenced block of a language; a command may go on over lines that end in a backslash."""
    for before, language, body in re.findall(r"^([^\n]*)\n```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        found = re.fullmatch(r"<!-- run: (\w+) -->", before)
        tag = found[1] if found else ""
        assert tag in TAGS and (tag == "python") == (language == "python"), (
            f"{name}: a block of {language} below {before!r}; expected `<!-- run: TAG -->` with one of {TAGS} above it"
        )
        if tag == "python":
            yield tag, body.splitlines()
            continue
        lines = body.replace("\\\n", " ").splitlines()
        yield tag, [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def tagged(*tags: str, pages: Sequence[Path] = PAGES) -> list[str]:
    """The commands of these pages with one of these tags, each once, in order."""
    found = [
        command
        for page in pages
        for tag, commands in blocks(page.read_text(encoding="utf-8"), page.name)
        if tag in tags
        for command in commands
    ]
    return list(dict.fromkeys(found))


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


@pytest.mark.parametrize("text", ["```python\nx = 1\n```\n", "<!-- run: later -->\n```bash\ncpn\n```\n"])
def test_blocks_without_a_known_tag_are_refused(text: str) -> None:
    with pytest.raises(AssertionError, match="expected"):
        list(blocks(f"\n{text}"))


def test_lines_that_end_in_a_backslash_go_on() -> None:
    text = "<!-- run: cpu -->\n```bash\n# why\ncpn a \\\n  --b\ncpn c\n```\n"
    assert list(blocks(text)) == [("cpu", ["cpn a    --b", "cpn c"])]


@pytest.mark.parametrize("command", tagged("gpu", "voc", "parsed", "cpu"))
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


def test_the_readme_is_a_door() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(NAVIGATION) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path, repository: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:cpn_fast|kernels|export|benchmarks|tests|docs|docker)/[\w/.]+)`", text)
    assert [name for name in named if not (repository / name).exists()] == []
    linked = [target for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in target]
    assert [name for name in linked if not (page.parent / name).exists()] == []


def definitions(path: Path) -> set[str]:
    """Names of the functions and classes at a file's top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_functions_that_stand_for_equations_exist(repository: Path) -> None:
    text = (DOCS / "method" / "equations.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`: `(\w+)`", text)
    assert len(named) > 20
    assert [(file, name) for file, name in named if name not in definitions(repository / file)] == []


def test_every_option_of_the_method_has_its_reading() -> None:
    text = (DOCS / "method" / "readings.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(MethodOptions) if f"`{field.name}`" not in text] == []


def test_errors_of_the_troubleshooting_page_are_those_of_the_code(repository: Path) -> None:
    """A heading in lower case is a part of a message; the others are symptoms without one."""
    code = "".join(
        path.read_text(encoding="utf-8")
        for package in ("cpn_fast", "kernels", "export")
        for path in (repository / package).rglob("*.py")
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a message of several lines is one
    headings = re.findall(r"^### (.+)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(headings) >= 30
    assert [text for text in headings if not text[0].isupper() and text not in code] == []


@pytest.fixture(scope="module")
def hooks() -> Any:
    """The module of docs/ that puts the parser's help into the command line's reference."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_options_in_the_text_exist(hooks: Any) -> None:
    """Every `--option` in inline code is one of some command, of a tool of ours, or named here with its owner."""
    known = set(re.findall(r"--[a-z][\w.-]*", hooks.command_line()))
    known |= {"--version", "--help"}  # cpn itself
    known |= {
        "--threads",
        "--force-reinstall",
        "--no-deps",
        "--record",
        "--quick",
        "--times",
        "--max-restarts",
    }  # cpn_export.parity, pip, benchmarks, torchrun
    for page in PAGES:
        inline = " ".join(
            re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S))
        )
        named = {option.rstrip(".") for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", inline)}
        assert named <= known | {"--options.NAME"}, (page.name, sorted(named - known))


def test_the_command_lines_reference_comes_from_the_parser(hooks: Any) -> None:
    assert hooks.MARKER in (DOCS / "reference" / "cli.md").read_text(encoding="utf-8").splitlines()
    assert "--instances" in hooks.help_of("convert") and "--image-labels" in hooks.help_of(None)
    assert hooks.on_page_markdown("nothing to put in") == "nothing to put in"


def write_weights(folder: Path) -> None:
    torch.manual_seed(0)
    save_file(create_backbone("mobilenet_v2").state_dict(), folder / "mobilenet_v2_imagenet.safetensors")


@pytest.fixture
def class_folders(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`photos` with a folder for each class, one photo beside it, and weights of the name that README uses."""
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(sorted((small_demo / "JPEGImages").glob("train_*.jpg"))):
        folder = tmp_path / "photos" / ("dog", "cat")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
        shutil.copy(path, tmp_path / "dog.jpg")
    write_weights(tmp_path)
    return tmp_path


@pytest.fixture
def one_block_a_stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MobileNetV2 with 7 blocks instead of 17: what it costs grows with them. README's commands take all of them."""
    layout_of.cache_clear()
    monkeypatch.setattr(mobilenet_v2, "STAGES", tuple((*stage[:2], 1, stage[3]) for stage in mobilenet_v2.STAGES))
    for name, last in (("LAST_OF_32", 3), ("LAST_OF_96", 5)):
        monkeypatch.setattr(mobilenet_v2, name, last)
    yield
    layout_of.cache_clear()  # which may hold the small one


@pytest.fixture
def photos(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_block_a_stage: None) -> Path:
    """A folder with a CSV as the guide describes it, with masks, beside weights of the name that the guide uses."""
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
    write_weights(tmp_path)
    write_shards(root, tmp_path)
    return root


def write_shards(photos: Path, target: Path) -> None:
    """The photos in two tars and a Parquet file, as the page of shards has them."""
    (target / "shards").mkdir()
    (target / "tables").mkdir()
    shutil.copy(photos / "classes.txt", target / "shards")
    rows = [line.split(",") for line in (photos / "labels.csv").read_text(encoding="utf-8").splitlines()[1:]]
    for part in range(2):
        with tarfile.open(target / "shards" / f"train-{part:03}.tar", "w") as tar:
            for name, labels, _ in rows[2 * part : 2 * part + 2]:
                stem = name.removesuffix(".jpg")
                tar.add(photos / "images" / name, name)
                tar.add(photos / "masks" / f"{stem}.png", f"{stem}.mask.png")
                text = io.BytesIO(labels.encode())
                info = tarfile.TarInfo(f"{stem}.cls")
                info.size = len(labels)
                tar.addfile(info, text)
    images = [{"bytes": (photos / "images" / name).read_bytes(), "path": name} for name, _, _ in rows]
    table = pyarrow.table({"image": images, "labels": [labels.split(";") for _, labels, _ in rows]})
    pyarrow.parquet.write_table(table, target / "tables" / "train-00000-of-00001.parquet")


def decide(masks: Path) -> None:
    """What a person does on the page of `cpn review`: one mask is rejected, one to be corrected, the others good."""
    folder = masks / "SegmentationClass"
    names = [path.relative_to(folder).with_suffix("") for path in sorted(folder.rglob("*.png"))]
    said = ["rejected", "needs-correction", *["accepted"] * (len(names) - 2)]
    rows = [f"{name},{decision}" for name, decision in zip(names, said, strict=True)]
    (masks / "review.csv").write_text("\n".join(["name,decision", *rows]) + "\n", encoding="utf-8")


def run_commands(pages: Sequence[Path], capsys: pytest.CaptureFixture[str]) -> None:
    from cpn_export.label import main as cpn_label

    for command in tagged("cpu", pages=pages):
        program, words = cpn_words(command)
        small = SMALL.get(cli.split_name(words)[0], ())
        status = cpn_label(words) if program == "cpn-label" else cli.main([*words, *small])
        assert status == 0, f"{command}\n{capsys.readouterr().err}"
        if words[0] == "review":
            decide(Path(words[1]))


def run_python(pages: Sequence[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Each Python block of the pages; it shows something."""
    codes = [code for page in pages for tag, code in blocks(page.read_text(encoding="utf-8")) if tag == "python"]
    assert codes
    for code in codes:
        capsys.readouterr()
        exec("\n".join(code), {})
        assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_readme_and_the_first_steps_run(class_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_commands(DOOR, capsys)
    for path in ("runs/photos/report.html", "masks/labelmap.txt", "masks.json", "masks.zip", "model.onnx"):
        assert (class_folders / path).is_file(), path
    run_python(DOOR, capsys)


@pytest.mark.slow
def test_the_page_of_shards_runs(
    photos: Path, make_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(photos.parent / "runs" / "csv")
    run_commands([DOCS / "guide" / "shards.md"], capsys)
    assert len(list((photos.parent / "masks-shards").glob("masks-*.tar"))) == 2
    for path in ("masks-shards/metrics.json", "masks-shards.json", "runs/from-shards/model.safetensors"):
        assert (photos.parent / path).is_file(), path


@pytest.mark.slow
def test_the_guide_runs(photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_stages_here(monkeypatch)
    run_commands(GUIDE, capsys)
    run_python([DOCS / "reference" / "python.md"], capsys)
    made = photos.parent
    for path in (
        "runs/csv/metrics.json",
        "runs/segment/metrics.json",
        "runs/tables/table3.png",
        "runs/tables/time.csv",
        "runs/model/report.html",
        "runs/model/labeller.onnx",
        "runs/model/segment.onnx",
        "masks-csv/metrics.json",
        "masks-csv/labelmap.txt",
        "masks-csv.json",
        "masks-csv.zip",
        "masks-studio.json.config.xml",
        "masks-yolo/data.yaml",
        "masks-voc-folder/labelmap.txt",
        "runs/corrected/metrics.jsonl",
        "masks-csv/review.html",
        "runs/accepted/metrics.jsonl",
        "to-correct.json",
        "rejected.json",
    ):
        assert (made / path).is_file(), path
    ids = sorted(path.relative_to(photos / "images").with_suffix("") for path in photos.rglob("*.jpg"))
    assert len(ids) == 4
    corrected = ("masks-corrected", "masks-corrected-yolo", "predicted-corrected")
    for folder in ("masks-csv", "masks-crf", "masks-walk", "masks-onnx", "masks-int8", "predicted", *corrected):
        masks = made / folder / "SegmentationClass"
        assert sorted(path.relative_to(masks).with_suffix("") for path in masks.rglob("*.png")) == ids
