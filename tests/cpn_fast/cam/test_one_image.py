"""The pure function behind `cpn label`: its masks and entries against those of the job, image by image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cpn_fast
from cpn_fast.cam.label import run_label
from cpn_fast.cam.options import LabelConfig
from cpn_fast.data.sources.demo_scenes import CLASSES
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.runs.folder import RunFolder


def test_it_gives_what_the_job_writes(tmp_path: Path, make_run: Callable[..., RunFolder]) -> None:
    run = make_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    images = {f"p{n}": rng.integers(0, 256, (24 + 8 * n, 40, 3), np.uint8) for n in range(3)}
    labels = {"p0": [CLASSES[0]], "p1": [CLASSES[2], CLASSES[1]], "p2": None}
    (tmp_path / "data").mkdir()
    lines = ["image,labels"]
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / "data" / f"{name}.png")
        lines.append(f"{name}.png,{';'.join(labels[name] or ())}")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    options = {"scales": (0.5, 1.0), "beta": 0.3, "void_band": (0.28, 0.32), "device": "cpu"}
    config = LabelConfig(run.path, f"folder:{tmp_path}/data", tmp_path / "m", split="all", sheet=0, **options)
    run_label(config)
    folder = MaskFolder.at(tmp_path / "m")
    entries = folder.manifest().entries()
    settings = cpn_fast.label_settings(run.path, **options)
    for name, image in images.items():
        before = image.copy()
        mask, entry = cpn_fast.label_image(image, labels[name], settings)
        np.testing.assert_array_equal(mask, np.asarray(Image.open(folder.mask_file(name))))
        assert entry == {key: entries[name][key] for key in entry} and len(entry) == 7
        np.testing.assert_array_equal(image, before)
    with pytest.raises(DataError, match="'dragon' is no class"):
        cpn_fast.label_image(images["p0"], ["dragon"], settings)
    with pytest.raises(DataError, match=r"float64 \[24, 40, 3\], expected uint8"):
        cpn_fast.label_image(images["p0"].astype(float), None, settings)  # type: ignore[arg-type]
