"""Which SLIC cuts a run's patches: named when the run begins, the same on resume, and refused where it would differ."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from cpn_fast.cam.options import parse
from cpn_fast.cam.task import run_train
from cpn_fast.config.presets import PRESETS
from cpn_fast.config.training import AugmentOptions, MethodOptions, PatchOptions, TrainConfig
from cpn_fast.data.superpixels.backend import broadcast_backend, resolve_run_backend
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder
from cpn_fast.train import main
from cpn_kernels import native_library
from cpn_kernels.ops.superpixels import native
from tests.grouped import grouped

needs_native = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")
BASE = ["--data", "voc:somewhere", "--output", "runs/x"]


def config(demo: Path, output: Path, backend: str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": f"demo:{demo}",
        "output": output,
        "backbone": "resnet38_tiny",
        "epochs": 1,
        "batch_size": 2,
        "workers": 0,
        "eval_every": 0,
        "accelerator": "cpu",
        "augment": AugmentOptions(crop=64),
        "patch": PatchOptions(segments=20, backend=backend),  # type: ignore[arg-type]
        "options": MethodOptions(warm_up=0.0),
        **changes,
    }
    return TrainConfig(**grouped(values))


def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine on which no compiler was found."""
    monkeypatch.setattr(native_library, "load", lambda: (None, "it was never built"))
    native._functions.cache_clear()


def stored(run: RunFolder) -> dict[str, Any]:
    return json.loads(run.config_path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("backend", ["auto", "native", "skimage", "fast-slic"])
def test_the_command_line_takes_every_backend(backend: str) -> None:
    assert parse([*BASE, "--patch.backend", backend]).patch.backend == backend


def test_auto_is_the_default_and_no_preset_changes_it() -> None:
    assert parse(BASE).patch.backend == "auto"
    assert {parse([*BASE, "--preset", preset]).patch.backend for preset in PRESETS} == {"auto"}


@needs_native
def test_auto_is_native_where_it_is_there(tmp_path: Path) -> None:
    settled = resolve_run_backend(config(tmp_path, tmp_path, "auto"), RunFolder(tmp_path))
    assert settled.patch == PatchOptions(segments=20, backend="native")


def test_auto_is_skimage_where_native_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_library(monkeypatch)
    assert resolve_run_backend(config(tmp_path, tmp_path, "auto"), RunFolder(tmp_path)).patch.backend == "skimage"


def test_runs_without_superpixels_name_none(tmp_path: Path) -> None:
    for changes in ({"method": "cam"}, {"patch": PatchOptions(kind="grid")}):
        given = config(tmp_path, tmp_path, "auto", **changes)
        assert resolve_run_backend(given, RunFolder(tmp_path)) == given


@needs_native
def test_the_run_says_what_made_its_patches_and_goes_on_with_it(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_train(config(small_demo, tmp_path / "run", "auto", max_steps=1))
    assert stored(run)["config"]["patch"]["backend"] == "native"
    assert run.backend_version == stored(run)["backend_version"] == "native 1"
    run_train(config(small_demo, run.path, "auto", max_steps=2, resume=True))
    assert len(run.records("step")) == 2

    before = run.config_path.read_bytes()
    with pytest.raises(DataError, match=r"patch\.backend \(run: 'native', now: 'skimage'\)"):
        run_train(config(small_demo, run.path, "skimage", max_steps=3, resume=True))
    without_library(monkeypatch)
    with pytest.raises(DataError, match=r"made by native 1; .*it was never built"):
        run_train(config(small_demo, run.path, "auto", max_steps=3, resume=True))
    assert run.config_path.read_bytes() == before and len(run.records("step")) == 2


def test_a_resume_with_native_at_hand_keeps_skimage(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        without_library(elsewhere)
        run = run_train(config(small_demo, tmp_path / "run", "auto", max_steps=1))
    assert run.backend_version == f"skimage {version('scikit-image')}"
    run_train(config(small_demo, run.path, "auto", max_steps=2, resume=True))
    assert run.config.patch.backend == "skimage" and len(run.records("step")) == 2


@pytest.mark.parametrize("made_by", ["skimage 0.1", "skimage"])
def test_another_version_is_refused(tmp_path: Path, made_by: str) -> None:
    given = config(tmp_path, tmp_path, "skimage")
    RunFolder(tmp_path).create(given, ("a",), made_by)
    with pytest.raises(DataError, match=rf"made by {made_by}, here is skimage \d.*start a new run"):
        resolve_run_backend(config(tmp_path, tmp_path, "auto", resume=True), RunFolder(tmp_path))


def test_a_run_that_does_not_say_wants_a_name(small_demo: Path, tmp_path: Path) -> None:
    run = run_train(config(small_demo, tmp_path / "run", "skimage", max_steps=1))
    content = stored(run)
    content["config"]["patch"]["backend"] = "auto"
    del content["backend_version"]
    run.config_path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.json: patch\.backend is 'auto'.*--patch\.backend native or skimage"):
        run_train(config(small_demo, run.path, "auto", max_steps=2, resume=True))
    run_train(config(small_demo, run.path, "skimage", max_steps=2, resume=True))
    assert run.config.patch.backend == "skimage" and len(run.records("step")) == 2


def test_processes_with_other_superpixels_are_refused(tmp_path: Path) -> None:
    class Second:
        global_rank = 1

        def __init__(self, first: str) -> None:
            self.first = first

        def broadcast(self, _: str) -> str:
            return self.first

    given, same = config(tmp_path, tmp_path, "skimage"), f"skimage {version('scikit-image')}"
    assert broadcast_backend(Second(same), given) == same  # type: ignore[arg-type]
    assert broadcast_backend(Second(same), config(tmp_path, tmp_path, "auto", method="cam")) is None  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"process 1 has superpixels of skimage.*the first process of native 1"):
        broadcast_backend(Second("native 1"), given)  # type: ignore[arg-type]


def test_a_backend_that_is_not_installed_is_named(
    small_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("fast_slic") is not None:
        pytest.skip("fast-slic is installed")
    arguments = ["--data", f"demo:{small_demo}", "--output", str(tmp_path / "run"), "--patch.backend", "fast-slic"]
    assert main([*arguments, "--backbone", "resnet38_tiny", "--accelerator", "cpu"]) == 2
    assert "--patch.backend fast-slic" in capsys.readouterr().err and not (tmp_path / "run").exists()
