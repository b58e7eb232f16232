"""The wheel, and what its base needs: built, installed without extras in a fresh environment, used on an image."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from cpn_fast.files.images import read_image
from cpn_fast.files.masks import read_mask, write_labelmap, write_mask
from cpn_fast.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tracked files, built apart from the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache", ".benchmarks", "libcpn_*")
    shutil.copytree(repository, tree, ignore=ignored)
    # The build's own requirements are in [dev]; cmake is fetched by an isolated build where the machine has none.
    isolation = (
        ["--no-build-isolation"] if shutil.which("cmake") and importlib.util.find_spec("scikit_build_core") else []
    )
    # The CUDA half takes minutes on a busy machine and is no other file.
    options = [*isolation, "-C", "cmake.define.CPN_CUDA=OFF"]
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "-w", folder / "dist", tree)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def runtime_extra() -> str:
    """The extra whose onnxruntime is installed here: "gpu" or "cpu"."""
    names = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    return "gpu" if "onnxruntime-gpu" in names else "cpu"


def distributions_of(wheel_metadata: str, extra: str = "") -> dict[str, importlib.metadata.Distribution]:
    """The distributions that the wheel's base and one extra require, and what those require, from this environment."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [
        Requirement(line.removeprefix("Requires-Dist: "))
        for line in wheel_metadata.splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            waiting += [Requirement(text) for text in found[name].requires or ()]
        assert requirement.specifier.contains(found[name].version, prereleases=True), f"{requirement}"
    return found


@pytest.fixture(scope="module")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment with the wheel and its base requirements, linked from here, not downloaded."""
    root = tmp_path_factory.mktemp("base") / "venv"
    venv.create(root, symlinks=True, with_pip=False)
    python = root / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode("utf-8")
    for distribution in distributions_of(text, runtime_extra()).values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    assert "onnxruntime" not in {name.partition("-")[0] for name in distributions_of(text)}, "an extra brings it"
    return python


@pytest.mark.slow
def test_wheel_holds_the_three_packages_and_the_licence(wheel: Path, repository: Path) -> None:
    assert wheel.name.startswith("cpn_fast-") and "-py3-none-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    for package in ("cpn_fast", "kernels/cpn_kernels", "export/cpn_export"):
        folder = repository / package
        files = [path for path in folder.rglob("*") if path.suffix in (".py", ".typed", ".html", ".css", ".js")]
        assert len(files) > 10
        assert {path.relative_to(folder.parent).as_posix() for path in files} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    has_compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    assert ("cpn_kernels/libcpn_native.so" in names) == has_compiler
    assert "cpn = cpn_fast.cli.main:main" in entry_points and "cpn-label = cpn_export.label:main" in entry_points


@pytest.mark.slow
def test_base_has_no_torch(base_python: Path) -> None:
    code = (
        "import importlib.util as u; print([m for m in ('torch', 'onnx', 'cv2', 'lightning_fabric') if u.find_spec(m)])"
    )
    assert run(base_python, "-c", code).strip() == "[]"


@pytest.mark.slow
def test_base_says_what_training_needs(base_python: Path, tmp_path: Path) -> None:
    program = base_python.parent / "cpn"
    assert "check-data" in run(program, "--help")
    words = ("train", "--data", tmp_path, "--output", tmp_path / "run")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cpn-fast[train]" in done.stderr


@pytest.mark.slow
def test_base_checks_and_converts(base_python: Path, small_demo: Path, tmp_path: Path) -> None:
    program = base_python.parent / "cpn"
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("train_0000", "train_0001"):
        shutil.copy(small_demo / "JPEGImages" / f"{name}.jpg", folder)
    (folder / "labels.csv").write_text("image,labels\ntrain_0000.jpg,cat\ntrain_0001.jpg,dog\n", encoding="utf-8")
    assert "cpn-fast[train]" in run(program, "check-data", folder)
    write_mask(tmp_path / "masks" / "SegmentationClass" / "a.png", np.ones((4, 6), np.uint8))
    write_labelmap(tmp_path / "masks" / "labelmap.txt", ("cat",))
    run(program, "convert", tmp_path / "masks", "--format", "cvat", "--output", tmp_path / "masks.zip")
    words = ("convert", tmp_path / "masks", "--format", "coco", "--output", tmp_path / "masks.json")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "cpn-fast[report]" in done.stderr


@pytest.mark.slow
def test_base_says_how_to_get_a_runtime(base_python: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"a model")
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError(name='onnxruntime')\n", encoding="utf-8")
    words = (tmp_path / "model.onnx", tmp_path, "--output", tmp_path / "masks")
    code = "import sys; from cpn_export.label import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [base_python, "-c", code, *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cpn-fast[cpu]" in done.stderr and "cpn-fast[gpu]" in done.stderr


@pytest.mark.slow
def test_base_labels_an_image(base_python: Path, make_run: MakeRun, small_demo: Path, tmp_path: Path) -> None:
    from cpn_export.to_onnx import ExportConfig, run_export

    trained = make_run(tmp_path / "run", method="cam")
    model = run_export(ExportConfig(trained.path, tmp_path / "model.onnx", scales=(1.0,), flip=False, beta=0.3))
    image = small_demo / "JPEGImages" / "val_0000.jpg"
    run(base_python.parent / "cpn-label", model, image, "--output", tmp_path / "masks")
    (found,) = (tmp_path / "masks" / "SegmentationClass").rglob("*.png")
    mask = read_mask(found, len(trained.classes))
    assert mask.shape == read_image(image).shape[:2]
    assert len(np.unique(mask)) > 1, "a mask of background alone would not show that the model ran"


def test_every_dependency_is_pinned_within_its_range(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): value for name, value in pins.items()}
    wanted = [
        *project["dependencies"],
        *(text for group in project["optional-dependencies"].values() for text in group),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate({"extra": "", "sys_platform": "linux"}):
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), str(requirement)


def test_constraints_match_what_the_tests_run_with(repository: Path) -> None:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    runtime = "onnxruntime-gpu" if runtime_extra() == "gpu" else "onnxruntime"
    for name in ("numpy", "torch", runtime, "lightning-fabric"):
        (pin,) = (line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))
        assert importlib.metadata.version(name).partition("+")[0] == pin
