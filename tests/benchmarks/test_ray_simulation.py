"""What the simulation of a cluster says of a job, on one that was worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.ray_fake import mask_of
from benchmarks.ray_simulation import SPREAD, Drawn, told
from cpn_fast.files.mask_folder import MaskFolder


def drawn(folder: Path, count: int) -> Drawn:
    return Drawn(
        output=folder, items=range(count), settings={}, data="numbers", workers=1, folder=MaskFolder.at(folder),
        seconds=0.5, bad=frozenset({1}), slow=1, slower=10.0, places=folder,
    )  # fmt: skip


def test_what_is_told_of_a_job(tmp_path: Path) -> None:
    """Three workers of which one was killed after image 0; its place is taken by process 4, which does image 3."""
    jobs = drawn(tmp_path, 4)
    for item in (0, 2, 3):
        jobs.folder.write(jobs.id_of(item), mask_of(item))
    rows = [(0, 1, 100.0, 101.0), (1, 2, 100.0, 104.0), (2, 3, 101.0, 102.0), (3, 4, 103.0, 105.0)]
    entries = [
        {"id": jobs.id_of(item), "status": "error" if item == 1 else "ok", "by": by, "began": began, "ended": ended}
        for item, by, began, ended in rows
    ]
    found = told(entries, jobs, 100.0, 106.0, workers=3, alive={2, 3, 4})
    assert (found["lost"], found["doubled"], found["wrong"], found["failed"]) == (0, 0, 0, 1)
    assert found["utilisation"] == round((1 + 4 + 1 + 2) / (3 * 6), 3)
    assert found["tail_seconds"] == 106 - 102 and found["processes"] == 4 and found["ended"] == 1
    slept = sum(jobs.sleep_of(item) for item in range(4))
    assert found["least_seconds"] == round(slept / 2.1, 2)
    (tmp_path / "SegmentationClass/00000.png").unlink()
    worse = told([*entries[1:], entries[3]], jobs, 100.0, 106.0, workers=3, alive={2, 3, 4})
    assert (worse["lost"], worse["doubled"], worse["wrong"]) == (1, 1, 1)


def test_the_fake_network_takes_as_long_as_it_says_on_average(tmp_path: Path) -> None:
    seconds = np.array([drawn(tmp_path, 1).sleep_of(item) for item in range(5000)])
    assert abs(seconds.mean() - 0.5) < 0.02 and abs(np.log(seconds).std() - SPREAD) < 0.02
    assert drawn(tmp_path, 1).sleep_of(7) == seconds[7]
