"""The warning about images of another size than a network was trained on."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpn_fast.config.training import AugmentOptions, SegmentAugment, SegmentConfig, TrainConfig
from cpn_fast.data.types import Record
from cpn_fast.inference.image_size import warn_of_size
from cpn_fast.runs.folder import RunFolder


def records(folder: Path, *sides: int) -> list[Record]:
    found = []
    for number, side in enumerate(sides):
        path = folder / f"{number}.png"
        Image.fromarray(np.zeros((side // 2, side, 3), np.uint8)).save(path)
        found.append(Record(str(number), path, None))
    return found


@pytest.mark.parametrize(
    ("sides", "max_side", "warned"),
    [
        ((260, 304, 310), 1024, "at most 200 pixels, these have 304.*--max-side 200"),
        ((300, 301, 302), 1024, "these have 301"),
        ((300, 300, 300), 1024, None),  # 1.5 times as long, not more
        ((900, 900, 900), 250, None),
        ((900, 900, 900), 310, "these have 310"),
        ((100, 200, 900), 1024, None),
        ((), 1024, None),
    ],
)
def test_the_median_of_the_long_sides_decides(sides, max_side, warned, tmp_path, caplog):
    run = RunFolder(tmp_path / "run")
    augment = SegmentAugment(crop=100, resize=(100, 200))
    run.create(SegmentConfig(data="folder:x", output=run.path, masks="truth", augment=augment), ["a"])
    with caplog.at_level(logging.WARNING, logger="cpn_fast"):
        warn_of_size(run, records(tmp_path, *sides), max_side)
    if warned is None:
        assert not caplog.records
    else:
        assert len(caplog.records) == 1
        assert re.search(warned, caplog.records[0].getMessage())


def test_the_range_that_follows_from_the_crop_counts_and_torn_files_do_not(tmp_path, caplog):
    run = RunFolder(tmp_path / "run")
    run.create(TrainConfig(data="folder:x", output=run.path, augment=AugmentOptions(crop=448)), ["a"])
    images = records(tmp_path, 1200, 1200, 700)  # 448 px crops are of images of up to 768
    images[0].image_path.write_bytes(b"no image")
    warn_of_size(run, images, 2000)
    assert not caplog.records  # the median of 1200 and 700 is 950
    warn_of_size(run, images[:2], 2000)
    assert "at most 768 pixels, these have 1200" in caplog.text
