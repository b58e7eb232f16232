"""`make test-faults` sees the faults that it looks for: each of its judges is shown one of each kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.faults import damaged, kills, starve, subjects
from benchmarks.faults.forks import Ended


def test_what_is_lost_changed_doubled_and_left_is_counted(tmp_path: Path) -> None:
    masks = tmp_path / "SegmentationClass"
    masks.mkdir()
    for name in ("a", "b", "c"):
        (masks / f"{name}.png").write_bytes(name.encode())
    lines = [json.dumps({"id": name, "status": "ok"}) for name in ("a", "b", "c")]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    unbroken = subjects.masks_in(tmp_path)
    assert kills.compare(unbroken, unbroken) == {"lost": 0, "different": 0, "doubled": 0, "left": 0}
    (masks / "a.png").unlink()
    (masks / "b.png").write_bytes(b"other")
    (masks / ".tmp-1-ab.png").touch()
    manifest.write_text("\n".join([*lines, lines[2], lines[1]]) + '\n{"id": "d", "sta')
    assert kills.compare(subjects.masks_in(tmp_path), unbroken) == {"lost": 1, "different": 1, "doubled": 2, "left": 1}


def test_steps_of_a_training_are_counted(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3)))
    unbroken = subjects.training_in(tmp_path)
    log.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 1, 3)))
    (tmp_path / "model.safetensors").write_bytes(b"others")
    found = kills.compare(subjects.training_in(tmp_path), unbroken)
    assert found == {"lost": 1, "different": 1, "doubled": 1, "left": 0}


@pytest.mark.parametrize(
    ("status", "said", "clear", "refused"),
    [
        (0, "", True, False),
        (2, "error: no", True, True),
        (2, "Traceback (most recent call last):\n", False, False),
        (-9, "", False, False),
        (None, "", False, False),
    ],
)
def test_a_clear_end(status: int | None, said: str, clear: bool, refused: bool) -> None:
    ended = Ended(status, 1.0, said, 100.0)
    assert starve.clear(ended) == clear and starve.refused(ended) == refused


def test_half_of_the_last_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("first\nsecond\n")
    starve.cut_last_line(path)
    assert path.read_text() == "first\nsec"


def test_faults_of_a_damaged_file_are_seen(tmp_path: Path) -> None:
    case = damaged.Case(tmp_path / "x", ("cpn", "label"), gives_masks=True)
    fault = damaged._fault
    assert "hung" in str(fault(case, Ended(None, 60, "", 1), tmp_path, 1))
    assert "900 MiB" in str(fault(case, Ended(2, 1, "error: no", 900), tmp_path, 100))
    assert "without a word" in str(fault(case, Ended(2, 1, "", 1), tmp_path, 1))
    assert fault(case, Ended(2, 1, "error: no", 1), tmp_path, 1) is None
    (tmp_path / "SegmentationClass").mkdir()
    Image.new("L", (4, 3)).save(tmp_path / "SegmentationClass" / "a.png")
    entry = {"id": "a", "status": "ok", "width": 4, "height": 3}
    for changed, said in (({}, None), ({"width": 5}, "a mask of (4, 3)"), ({"status": "error"}, "a has failed")):
        (tmp_path / "manifest.jsonl").write_text(json.dumps(entry | changed) + "\n")
        found = fault(case, Ended(0, 1, "", 1), tmp_path, 1)
        assert found is None if said is None else said in str(found)


@pytest.mark.slow
def test_the_command_feeds_a_kind_and_writes_its_record(repository: Path, tmp_path: Path) -> None:
    record = tmp_path / "faults.json"
    words = ["--parts", "damaged", "--only", "weights (.safetensors)", "--damaged", "5", "--output", str(record)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *words], cwd=repository, capture_output=True, text=True, check=True
    )
    row = json.loads(record.read_text())["damaged"]["weights (.safetensors)"]
    assert row["tried"] == 5 == row["read"] + row["refused"] and row["faults"] == [] and row["refused"] > 0
    assert done.stdout.endswith("0 faults\n")
