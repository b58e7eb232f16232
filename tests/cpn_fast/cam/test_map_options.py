"""What follows from a run: scales of the training size, refinement by preset and heads."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpn_fast.cam.map_options import MapOptions, training_side
from cpn_fast.config.refine import RefineOptions
from cpn_fast.config.training import AugmentOptions, MethodOptions, TrainConfig
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder


def run_of(path: Path, **more) -> RunFolder:
    path.mkdir()
    run = RunFolder(path)
    run.create(TrainConfig(data="demo:", output=path, augment=AugmentOptions(crop=256), **more), ("cat",))
    return run


def test_defaults_are_raw_once_at_sizes_of_the_training(tmp_path) -> None:
    run = run_of(tmp_path / "cam", method="cam")
    found = MapOptions().resolved(run)
    assert training_side(run) == round((256 + 439) / 2) == 348
    assert (found.scales, found.side, found.flip) == ((1.0, 1.5, 2.0), 348, True)
    assert found.refine == RefineOptions("raw", "fused", 1.0)
    assert "348 pixels" in str(found) and "raw refinement of their sum" in str(found)
    settings = {"scales": [1.0, 1.5, 2.0], "scale_side": 348, "flip": True}
    assert found.settings() == settings | {"refine": "raw", "refine_at": "fused", "affinity_power": 1.0}


def test_pairs_are_said(tmp_path) -> None:
    found = MapOptions(pairs=2).resolved(run_of(tmp_path / "cam", method="cam"))
    assert found.settings()["pairs"] == 2 and "2 complementary pairs" in str(found)


def test_given_scales_are_of_the_image_unless_said(tmp_path) -> None:
    run = run_of(tmp_path / "cam", method="cam")
    assert MapOptions((0.5, 1.0)).resolved(run).side is None
    assert MapOptions((0.5, 1.0), "training").resolved(run).side == 348
    image = MapOptions(scales_of="image").resolved(run)
    assert (image.scales, image.side) == ((0.5, 1.0, 1.5, 2.0), None)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_presets_of_the_paper_label_as_it_does(tmp_path, preset) -> None:
    found = MapOptions().resolved(run_of(tmp_path / "cpn", preset=preset))
    assert (found.scales, found.side) == ((0.5, 1.0, 1.5, 2.0), None)
    assert found.refine == RefineOptions("learnt", "scale")
    plain = MapOptions().resolved(run_of(tmp_path / "cam", preset=preset, method="cam"))
    assert plain.refine.refine == "none"
    chosen = MapOptions(refine="raw", refine_at="fused").resolved(run_of(tmp_path / "raw", preset=preset))
    assert chosen.refine == RefineOptions("raw", "fused")


def test_a_run_with_pixel_labels_takes_their_head(tmp_path) -> None:
    run = run_of(tmp_path / "cpn", pixel_masks=tmp_path)
    assert MapOptions().resolved(run).refine == RefineOptions("pixels-raw", "fused", 2.0)
    assert MapOptions(affinity_power=1.0).resolved(run).refine.power == 1.0
    assert MapOptions(refine="pixels").resolved(run).refine == RefineOptions("pixels", "fused", 1.0)
    assert MapOptions(refine="raw").resolved(run).refine.refine == "raw"


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({"refine": "learnt"}, {"method": "cam"}, "no refinement heads"),
        ({"refine": "learnt"}, {"options": MethodOptions(pcm=False)}, "no refinement heads"),
        ({"refine": "pixels"}, {}, "learned no pixel labels"),
        ({"affinity_power": 0.0}, {}, "--affinity-power 0.0"),
        ({"scales": (9.0,)}, {}, "--scales 9.0"),
        ({"pairs": -1}, {}, "--pairs -1"),
        ({"pairs": 17}, {}, "--pairs 17: expected 0 to 16"),
        (
            {"pairs": 2},
            {"pixel_masks": Path("masks")},
            "--pairs 2 is for class activation maps, found --refine pixels-raw",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, config, message) -> None:
    with pytest.raises(DataError, match=message):
        MapOptions(**options).resolved(run_of(tmp_path / "run", **config))
