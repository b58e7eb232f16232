"""Masks into shards: what is written, skipped, rebuilt, refused, and done by two processes; read by other libraries."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.jobs import Entry, ImageJobs, JobSummary, error_entry
from cpn_fast.files.shards.job import run_into_shards
from cpn_fast.files.shards.masks import ShardWriter, shard_about
from cpn_fast.files.sink import Sink

SETTINGS = {"classes": ["a", "b"], "size": 3}


def mask_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 3, (5, 4), np.uint8)


@dataclass(frozen=True, kw_only=True)
class Masks(ImageJobs[int, int]):
    """A random mask for each number."""

    verb: ClassVar[str] = "draw"
    participle: ClassVar[str] = "drawn"

    folder: ShardWriter
    bad: frozenset[int] = frozenset()
    calls: list[int] = field(default_factory=list)
    before: Callable[[int], None] = lambda number: None

    def id_of(self, item: int) -> str:
        return f"in/x.{item}"

    def is_done(self, item: int, entry: Mapping[str, Any]) -> bool:
        raise AssertionError("a shard is done or not")

    def bytes_needed(self, todo: Sequence[int]) -> float:
        return 100 * len(todo)

    def prepare(self) -> None:
        self.folder.write_labelmap(("a", "b"))

    def work(self, item: int) -> Entry:
        self.calls.append(item)
        self.before(item)
        name, image = self.id_of(item), Path(f"{item}.jpg")
        if item in self.bad:
            return error_entry(name, image, "is odd")
        self.folder.write(name, mask_of(item))
        return {**self.folder.describe(name, image, mask_of(item)), "labels": ["b"], "confidence": item / 10}


def job(output: Path, count: int = 8, kind: Sink = "wds", size: int = 3, **more: Any) -> tuple[Masks, JobSummary]:
    writer = ShardWriter(output, output, kind, size, SETTINGS)
    jobs = Masks(output=output, items=range(count), settings=SETTINGS, data="d", workers=2, folder=writer, **more)
    return jobs, run_into_shards(jobs, writer)


def shards(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("masks-*"))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_tars_hold_png_and_entry_of_each_image_and_the_settings(tmp_path: Path) -> None:
    jobs, summary = job(tmp_path / "m", bad=frozenset({4}))
    assert (summary.written, summary.skipped, summary.failed) == (7, 0, 1)
    assert shards(tmp_path / "m") == ["masks-000000.tar", "masks-000001.tar", "masks-000002.tar"]
    found = {}
    for number, path in enumerate(sorted((tmp_path / "m").glob("*.tar"))):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            found |= {name: tar.extractfile(name).read() for name in names if name != "__settings__"}  # type: ignore[union-attr]
            assert names[0] == "__settings__" and json.loads(tar.extractfile(names[0]).read()) == SETTINGS  # type: ignore[union-attr]
        assert shard_about(path) == SETTINGS and len(names) == (7, 6, 5)[number]
    for number in set(range(8)) - {4}:
        np.testing.assert_array_equal(pixels(found[f"in/x.{number}.png"]), mask_of(number))
        entry = json.loads(found[f"in/x.{number}.json"])
        assert (entry["labels"], entry["confidence"], entry["status"]) == (["b"], number / 10, "ok")
    assert "in/x.4.png" not in found and json.loads(found["in/x.4.json"])["error"] == "is odd"
    assert [entry["id"] for entry in summary.done] == [f"in/x.{n}" for n in (0, 1, 2, 3, 5, 6, 7)]
    assert not jobs.folder._held


def test_parquet_holds_a_row_for_each_image(tmp_path: Path) -> None:
    job(tmp_path / "m", kind="parquet", bad=frozenset({4}))
    rows = [row for path in sorted((tmp_path / "m").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["id"] for row in rows] == [f"in/x.{number}" for number in range(8)]
    for number, row in enumerate(rows):
        if number == 4:
            assert row["mask"] is None and json.loads(row["entry"])["error"] == "is odd"
        else:
            np.testing.assert_array_equal(pixels(row["mask"]["bytes"]), mask_of(number))
            assert (row["labels"], row["confidence"]) == (["b"], number / 10)
    assert shard_about(tmp_path / "m" / "masks-000001.parquet") == SETTINGS


@pytest.mark.parametrize("kind", ["wds", "parquet"])
def test_shards_are_read_as_a_folder_of_masks_is(tmp_path: Path, kind: Sink) -> None:
    job(tmp_path / "m", kind=kind, bad=frozenset({4}))
    folder = find_masks(tmp_path / "m")
    assert folder is not None and folder.classes() == ("a", "b")
    assert set(folder.paths()) == {f"in/x.{number}" for number in range(8)} - {"in/x.4"}
    for number in (7, 0, 3):
        np.testing.assert_array_equal(folder.read(f"in/x.{number}", 2), mask_of(number))
    assert folder.has("in/x.7") and not folder.has("in/x.4") and not folder.has("in/x.8")
    entries = folder.manifest().entries()
    assert [entries[f"in/x.{n}"]["status"] for n in range(8)] == ["ok"] * 4 + ["error"] + ["ok"] * 3
    with pytest.raises(DataError, match=r"mask values \[2\]"):
        folder.read("in/x.0", 1)


def test_a_rerun_makes_the_shards_that_are_missing_alone_and_the_same_bytes(tmp_path: Path) -> None:
    job(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").glob("masks-*")}
    (tmp_path / "m" / "masks-000001.tar").unlink()
    (tmp_path / "m" / ".tmp-1-abc.tar").write_bytes(before["masks-000001.tar"][:1000])  # a writer that was killed
    jobs, summary = job(tmp_path / "m")
    assert sorted(jobs.calls) == [3, 4, 5] and (summary.written, summary.skipped) == (3, 5)
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").glob("masks-*")} == before
    assert not list((tmp_path / "m").glob(".tmp*"))


def test_other_settings_are_refused_and_overwritten(tmp_path: Path) -> None:
    job(tmp_path / "m")
    writer = ShardWriter(tmp_path / "m", tmp_path / "m", "wds", 4, {**SETTINGS, "size": 4})
    jobs = Masks(output=tmp_path / "m", items=range(8), settings=writer.about, data="d", workers=1, folder=writer)
    with pytest.raises(DataError, match=r"size \(there: 3, now: 4\)"):
        run_into_shards(jobs, writer)
    assert not jobs.calls
    _, summary = job(tmp_path / "m", count=2, overwrite=True)
    assert summary.written == 2 and shards(tmp_path / "m") == ["masks-000000.tar"]


def test_parts_write_different_shards_and_together_all(tmp_path: Path) -> None:
    first, summary = job(tmp_path / "m", shard="1/2")
    assert sorted(first.calls) == [0, 1, 2, 6, 7] and summary.written == 5
    second, _ = job(tmp_path / "m", shard="2/2")
    assert sorted(second.calls) == [3, 4, 5] and len(shards(tmp_path / "m")) == 3


def test_a_folder_that_lacks_a_shard_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job(tmp_path / "m", shard="1/2", command="cpn label again")
    folder = find_masks(tmp_path / "m")
    assert folder is not None
    folder.warn_if_half_done()
    assert "5 of 8 images have a mask; to finish it: `cpn label again`" in caplog.text


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    job(tmp_path / "m")
    path = tmp_path / "m" / "masks-000001.tar"
    path.write_bytes(path.read_bytes()[:700])
    folder = find_masks(tmp_path / "m")
    assert folder is not None
    with pytest.raises(DataError, match=r"masks-000001.tar: "):
        folder.has("in/x.0")


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_job import job
def slowly(number):
    Path({output!r} + f".seen-{{number}}-" + str(time.monotonic_ns())).touch()
    while number >= 5 and Path({output!r} + ".hold").exists():
        time.sleep(0.02)
try:
    job(Path({output!r}), count=12, before=slowly, **{more!r})
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def start(output: Path, **more: Any) -> subprocess.Popen[str]:
    code = WORKER.format(folder=str(Path(__file__).parent), output=str(output), more=more)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def worked_on(output: Path) -> list[int]:
    return sorted(
        int(path.name.split(".seen-")[1].split("-")[0]) for path in output.parent.glob(f"{output.name}.seen-*")
    )


def test_two_processes_on_one_folder_do_no_image_twice(tmp_path: Path) -> None:
    output, hold = tmp_path / "m", tmp_path / "m.hold"
    hold.touch()
    first = start(output)
    while not worked_on(output):
        time.sleep(0.02)
    second = start(output)
    assert "is writing here" in second.communicate(timeout=60)[1] and second.returncode == 1
    hold.unlink()
    assert first.wait(timeout=60) == 0
    assert worked_on(output) == list(range(12))
    parts = tmp_path / "parts"
    both = [start(parts, shard=f"{part}/2") for part in (1, 2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert worked_on(parts) == list(range(12)) and len(shards(parts)) == 4
    assert [path.read_bytes() for path in sorted(parts.glob("masks-*"))] == [
        path.read_bytes() for path in sorted(output.glob("masks-*"))
    ]


def test_a_killed_writer_leaves_whole_shards_alone(tmp_path: Path) -> None:
    output = tmp_path / "m"
    (tmp_path / "m.hold").touch()  # it comes to its second shard and no further
    process = start(output)
    while not shards(output) if output.is_dir() else True:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = {path.name: path.read_bytes() for path in output.glob("masks-*")}
    assert len(left) == 1
    jobs, summary = job(output, count=12)
    assert summary.skipped == 3 * len(left) and sorted(jobs.calls) == list(range(3 * len(left), 12))
    job(tmp_path / "whole", count=12)
    for path in (tmp_path / "whole").glob("masks-*"):
        assert (output / path.name).read_bytes() == path.read_bytes()
