"""`--engine ray` of the commands that count: scores and superpixels are those of this process, byte for byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpn_fast.cam.superpixel_options import SuperpixelsConfig
from cpn_fast.cam.superpixels import run_superpixels
from cpn_fast.cluster.ray_engine import RayEngine
from cpn_fast.config.training import AugmentOptions, PatchOptions
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.superpixels import cache as superpixel_cache
from cpn_fast.files.errors import DataError
from cpn_fast.files.find_masks import find_masks
from cpn_fast.files.masks import write_labelmap, write_mask
from cpn_fast.files.progress import SILENT
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.counting import counted
from cpn_fast.metrics.confusion import confusion_of
from cpn_fast.runs.folder import RunFolder
from cpn_fast.scoring.command import EvaluateConfig, run_evaluate
from cpn_fast.scoring.mask_counts import MaskCounts
from cpn_fast.segment.evaluate import SegmentEvaluateConfig, run_segment_evaluate
from tests.cpn_fast.cluster.deadly import DeadlySource
from tests.cpn_fast.segment.test_predict import make_segment_run
from tests.cpn_fast.segment.voc_squares import make

pytestmark = pytest.mark.slow

CLASSES = ("cat", "dog")
IMAGES = 12


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images with ground truth (the third without), and masks of them (the fifth without)."""
    folder = tmp_path_factory.mktemp("scored")
    data, masks = folder / "data", folder / "masks"
    (data / "images").mkdir(parents=True)
    (data / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        size = (20 + number, 30)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(data / f"images/{number:02d}.png")
        if number != 2:
            write_mask(data / f"masks/{number:02d}.png", rng.choice(np.array([0, 1, 2, 255], np.uint8), size))
        if number != 4:
            write_mask(masks / f"SegmentationClass/{number:02d}.png", rng.integers(0, 3, size, np.uint8))
    write_labelmap(masks / "labelmap.txt", CLASSES)
    return data, masks


def same_bytes(folder: Path, do: Callable[..., Any], names: tuple[str, ...]) -> Any:
    """`do(output=..., engine=...)` writes the same files on the cluster and here; gives what it returned here."""
    results = {engine: do(output=folder / engine, engine=engine) for engine in ("local", "ray")}
    for name in names:
        local, ray = ((folder / engine / name).read_bytes() for engine in ("local", "ray"))
        assert local == ray and local
    assert json.dumps(results["local"]) == json.dumps(results["ray"])
    return results["local"]


def test_scores_of_masks(cluster: Any, scored: tuple[Path, Path], tmp_path: Path) -> None:
    data, masks = scored

    def evaluate(**to: Any) -> Any:
        return run_evaluate(EvaluateConfig(masks, f"folder:{data}", split="all", allow_missing=True, **to))

    found = same_bytes(tmp_path, evaluate, ("metrics.json", "counts.npz"))
    assert (found["images"], found["missing"], found["without_mask"]) == (IMAGES - 2, 1, 1)
    for engine in ("local", "ray"):
        with pytest.raises(
            DataError, match=r"1 of 11 images with ground truth have no mask there, the first .*04\.png"
        ):
            run_evaluate(EvaluateConfig(masks, f"folder:{data}", split="all", engine=engine, output=tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_scores_of_a_run(cluster: Any, make_run: Callable[..., RunFolder], small_demo: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run").path
    options = {"split": "val", "scales": (0.5, 1.0), "device": "cpu"}

    def evaluate(**to: Any) -> Any:
        return run_evaluate(EvaluateConfig(run, f"demo:{small_demo}", **options, **to))

    found = same_bytes(tmp_path, evaluate, ("metrics.json", "counts.npz"))
    assert found["images"] == 6 and found["miou"] is not None and found["classifier"]["map"] is not None
    broken = Path(shutil.copytree(small_demo, tmp_path / "demo"))
    image = open_source(f"demo:{broken}").records("val")[3].image_path
    Path(str(image)).write_bytes(b"no image")
    config = EvaluateConfig(run, f"demo:{broken}", output=tmp_path / "none", **options)
    same_error(lambda engine: run_evaluate(replace(config, engine=engine)), r"a score needs every image of the split")
    assert not (tmp_path / "none").exists()


def test_scores_of_a_segmentation_run(cluster: Any, tmp_path: Path) -> None:
    data = make(tmp_path / "voc")
    run = make_segment_run(tmp_path / "run", data)

    def evaluate(**to: Any) -> Any:
        return run_segment_evaluate(
            SegmentEvaluateConfig(run, f"voc:{data}", scales=(0.5,), crf=True, device="cpu", **to)
        )

    assert same_bytes(tmp_path, evaluate, ("metrics.json",))["images"] > 1


def same_error(do: Callable[..., Any], match: str) -> None:
    said = []
    for engine in ("local", "ray"):
        with pytest.raises(DataError, match=match) as error:
            do(engine=engine)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_broken_image_ends_the_score_with_the_same_words(
    cluster: Any, scored: tuple[Path, Path], tmp_path: Path
) -> None:
    data = Path(shutil.copytree(scored[0], tmp_path / "data"))
    (data / "masks/07.png").write_bytes(b"no image")
    config = EvaluateConfig(scored[1], f"folder:{data}", split="all", allow_missing=True, output=tmp_path / "scores")
    same_error(lambda engine: run_evaluate(replace(config, engine=engine)), r"07\.png")
    assert not (tmp_path / "scores").exists()


def test_a_lost_worker_counts_no_image_twice_and_none_not_at_all(
    cluster: Any, scored: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, masks = scored
    folder = find_masks(masks)
    assert folder is not None
    source = DeadlySource(data, "06", tmp_path / "once")
    mapping = ClassMapping.between(source.classes, CLASSES)
    work = MaskCounts(workers=1, source=source, folder=folder, mapping=mapping)
    records = source.records("all")
    entries = list(counted(work, records, RayEngine(), SILENT))
    assert (tmp_path / "once").exists() and "images are done again" in caplog.text
    assert sorted(entry["id"] for entry in entries) == [record.id for record in records]
    for entry in entries:
        if entry["counts"] is not None:
            truth = np.asarray(Image.open(data / f"masks/{entry['id']}.png"))
            expected = confusion_of(truth, folder.read(entry["id"]), len(CLASSES))
            np.testing.assert_array_equal(entry["counts"], expected)
    assert [entry["id"] for entry in entries if entry["counts"] is None] in (["02", "04"], ["04", "02"])
    always = replace(work, source=DeadlySource(data, "06", None))
    with pytest.raises(DataError, match=r"06\.png: two workers ended over this image.*a score needs every image"):
        list(counted(always, records, RayEngine(), SILENT))


def test_superpixels_are_the_same_files(
    cluster: Any, scored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(scored[0], tmp_path / "data"))
    (data / "labels.csv").write_text("image,labels\n" + "".join(f"{n:02d}.png,cat\n" for n in range(IMAGES)))

    def fill(engine: str, name: str) -> Any:
        patch = PatchOptions(segments=20, cache_dir=tmp_path / name)
        augment = AugmentOptions(crop=16)
        return run_superpixels(SuperpixelsConfig(data=f"folder:{data}", split="all", patch=patch, augment=augment,
                                                 engine=engine, workers=1))  # fmt: skip

    def files(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}

    local, ray = fill("local", "local"), fill("ray", "ray")
    assert local.computed == ray.computed == IMAGES
    assert replace(local, seconds=0) == replace(ray, seconds=0)
    assert len(files("local")) == IMAGES and files("local") == files("ray")
    sorted((tmp_path / "ray").rglob("*.npz"))[0].unlink()
    again = fill("ray", "ray")  # only what is missing
    assert (again.computed, again.reused) == (1, IMAGES - 1) and files("local") == files("ray")
    (data / "images/07.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"07\.png"):
        fill("ray", "ray")
    monkeypatch.setattr(superpixel_cache, "backend_version", lambda backend: "native 0")
    with pytest.raises(DataError, match="superpixels are those of native 0 where the command was given"):
        fill("ray", "other")
