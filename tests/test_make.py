"""The promises of the Makefile: its targets run, shortened; where they would install something, that is asked of pip
alone."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.making import user_environment

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(target: str, repository: Path, *variables: str, options: tuple[str, ...] = ()) -> str:
    """Output of `make TARGET` with this Python's programs; `-o`: nothing is installed, however old the stamp is."""
    stamp = repository / ".venv" / ".installed"
    programs = f"BIN={Path(sysconfig.get_path('scripts'))}"
    done = subprocess.run(
        ["make", "-o", str(stamp), f"STAMP={stamp}", programs, *options, target, *variables],
        cwd=repository,
        env=user_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_demo(repository: Path, small_demo: Path, tmp_path: Path) -> None:
    """Every stage on a few images and steps; what it learns in them is worth nothing and is not looked at."""
    folder = tmp_path / "demo"
    said = make("demo", repository, f"DEMO=--max-steps 2 --data demo:{small_demo} --output {folder}")
    assert str(folder / "summary.json") in said.replace("\n", "")
    content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for method in ("cam", "cpn"):
        (miou,) = content[method]["miou"]
        assert 0 < miou < 1
        assert (folder / f"{method}-seed0" / "report.html").is_file()
    assert content["onnx_agreement"] >= 0.999
    assert {"pretrain", "train cam", "train cpn", "label", "export", "label onnx", "total"} <= set(content["seconds"])
    assert len(list((folder / "masks-onnx" / "SegmentationClass").glob("*.png"))) == 6


@pytest.mark.slow
def test_demo_full(repository: Path, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an empty folder, in which the pretrained backbone is made too, through every stage to the report.

    What make would run, in this process and at one scale: `test_demo` runs the scales and a program of its own, the
    pipeline's tests its processes.
    """
    from cpn_fast.cli.main import main as cpn
    from cpn_fast.demo import command as demo
    from tests.stages import run_stages_here

    folder = tmp_path / "full"
    given = f"DEMO=--max-steps 1 --data demo:{small_demo} --output {folder}"
    program, *words = shlex.split(make("demo-full", repository, given, options=("-n",)))
    assert Path(program).name == "cpn" and words[:2] == ["demo", "--full"]
    run_stages_here(monkeypatch)
    for name in ("SCALES", "SEGMENT_SCALES"):
        monkeypatch.setattr(demo, name, (1.0,))
    assert cpn(words) == 0
    assert {path.name for path in folder.glob("*.onnx")} == {"labeller.onnx", "segment.onnx"}
    for name in ("report.html", "segment/metrics.json", "masks/metrics.json", "masks-refined/metrics.json"):
        assert (folder / name).is_file(), name


@pytest.mark.slow
def test_bench(repository: Path) -> None:
    said = make("bench", repository, "BENCH=--quick -k 28-image benchmarks/test_cp_loss.py")
    assert "1 passed" in said and "times as fast" in said


def test_set_up_takes_the_runtime_that_fits(repository: Path, tmp_path: Path) -> None:
    """What `make setup` would do with a stamp that is not there."""

    def planned(*variables: str) -> str:
        done = subprocess.run(
            ["make", "-n", "setup", f"VENV={tmp_path / 'venv'}", *variables],
            cwd=repository,
            env=user_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert f".[train,{'cpu' if sys.platform == 'darwin' else 'gpu'},dev]" in planned()
    assert ".[train,cpu,dev]" in planned("RUNTIME=cpu")
    assert "cpn_kernels.native_library" in planned()


def test_every_target_is_phony(repository: Path) -> None:
    """A file called `test` or `docs` must not hide a target."""
    lines = (repository / "Makefile").read_text(encoding="utf-8").splitlines()
    (phony,) = (set(line.removeprefix(".PHONY:").split()) for line in lines if line.startswith(".PHONY:"))
    targets = {line.partition(":")[0] for line in lines if line[:1].islower() and ":" in line and ":=" not in line}
    assert targets == phony
