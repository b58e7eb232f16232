"""The background score of a pixel head without ground truth: as much object as in the maps that labelled its pixels."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpn_fast.cam import score_by_share
from cpn_fast.cam.label import LabelConfig, run_label
from cpn_fast.cam.score_by_share import pixels_by_score, score_at_share
from cpn_fast.data.sources.demo_scenes import CLASSES
from cpn_fast.files.errors import DataError
from cpn_fast.files.mask_folder import MaskFolder
from cpn_fast.files.masks import read_mask
from cpn_fast.metrics.beta_sweep import BETAS
from cpn_fast.models import create_model
from cpn_fast.runs.background import FOUND_NAME
from cpn_fast.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]
COUNT = 18


@pytest.mark.parametrize("share", [0.0, 0.013, 0.2, 0.5, 0.77, 1.0])
def test_the_score_is_that_of_the_nearest_share(share: float) -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.beta(2, 5, 4000), np.round(rng.random(500), 2), [0.0, 1.0]]).astype(np.float32)
    found = score_at_share(pixels_by_score(scores), share)
    distances = {float(beta): abs(float((scores > beta).mean()) - share) for beta in BETAS}
    assert distances[float(np.float32(found))] <= min(distances.values()) + 1e-12
    lower = [distance for beta, distance in distances.items() if beta < np.float32(found)]
    assert not lower or min(lower) > distances[float(np.float32(found))]


def test_scores_of_two_images_are_counted_together() -> None:
    one, other = np.float32([0.0, 0.005, 0.25, 1.0]), np.float32([0.015])
    counted = pixels_by_score(one) + pixels_by_score(other)
    # 0 is above none, 0.005 above the score 0, 0.015 above two; a score is not above itself.
    assert {place: int(count) for place, count in enumerate(counted) if count} == {0: 1, 1: 1, 2: 1, 25: 1, 100: 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`folder:PATH` of 18 images of blurred colours with a class or two each."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    rows = ["image,labels"]
    for number in range(COUNT):
        blocks = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        blocks.resize((40, 32) if number % 3 else (48, 24), Image.Resampling.BICUBIC).save(root / f"{number}.png")
        rows.append(f"{number}.png,{';'.join(CLASSES[number % 3 : number % 3 + 1 + number % 2])}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def labelling(run: RunFolder, photos: Path, output: Path, **more: object) -> LabelConfig:
    values = {"split": "all", "scales": (1.0,), "flip": False, "device": "cpu", "sheet": 0} | more
    return LabelConfig(run.path, f"folder:{photos}", output, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rounds(make_run: MakeRun, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Masks with a void margin of one untrained network, and the run of another with a head for them."""
    root = tmp_path_factory.mktemp("rounds")
    first = make_run(root / "first", method="cam")
    masks = root / "first-masks"
    run_label(labelling(first, photos, masks, void_margin=(0.15, 0.1)))
    second = make_run(root / "second", method="cam", weights=False)
    config = dataclasses.replace(second.config, pixel_masks=masks)
    second.create(config, CLASSES)
    torch.manual_seed(1)
    net = create_model(config, len(CLASSES))
    torch.nn.init.normal_(net.pixels.weight, std=3.0)  # it begins with zeros, for which all scores are even
    second.save_model(net, 0)
    return masks, second.path


@pytest.fixture
def second(rounds: tuple[Path, Path], tmp_path: Path) -> RunFolder:
    """A copy of that run, which nobody has labelled with."""
    shutil.copytree(rounds[1], tmp_path / "second")
    return RunFolder(tmp_path / "second")


def settings(output: Path) -> dict[str, object]:
    found: dict[str, object] = MaskFolder.at(output).settings()
    return found


def test_a_margin_is_a_band_around_the_background_score(
    make_run: MakeRun, photos: Path, rounds: tuple[Path, Path], tmp_path: Path
) -> None:
    first = RunFolder(rounds[0].parent / "first")
    run_label(labelling(first, photos, tmp_path / "band", beta=0.45, void_band=(0.3, 0.55)))
    run_label(labelling(first, photos, tmp_path / "plain", beta=0.45))
    assert settings(rounds[0])["beta"] == 0.45 and settings(rounds[0])["void_band"] == [0.3, 0.55]
    plain = MaskFolder.at(tmp_path / "plain").manifest().entries()
    entries = MaskFolder.at(rounds[0]).manifest().entries()
    assert len(entries) == COUNT
    for name, entry in entries.items():
        one, other = (MaskFolder.at(path).read(name) for path in (rounds[0], tmp_path / "band"))
        assert (one == other).all()
        assert entry["above_beta"] == pytest.approx(plain[name]["foreground"], abs=1e-4)
        assert "above_beta" not in plain[name]


def test_masks_show_as_much_object_as_the_teacher(
    second: RunFolder, photos: Path, rounds: tuple[Path, Path], tmp_path: Path
) -> None:
    run_label(labelling(second, photos, tmp_path / "masks"))
    teacher = MaskFolder.at(rounds[0]).manifest().entries().values()
    sizes = np.array([entry["width"] * entry["height"] for entry in teacher])
    share = float(np.average([entry["above_beta"] for entry in teacher], weights=sizes))

    def object_share(beta: float) -> float:
        output = tmp_path / f"at {beta}"
        run_label(labelling(second, photos, output, beta=beta))
        masks = [read_mask(path, len(CLASSES)) for path in (output / "SegmentationClass").glob("*.png")]
        return float(np.concatenate([mask.ravel() > 0 for mask in masks]).mean())

    found = settings(tmp_path / "masks")["beta"]
    assert isinstance(found, float) and found != 0.5
    distances = {beta: abs(object_share(beta) - share) for beta in (found - 0.01, found, found + 0.01)}
    assert distances[found] == min(distances.values())
    stored = json.loads((second.path / FOUND_NAME).read_text())
    assert stored["beta"] == found and stored["share"] == pytest.approx(share, abs=1e-4)
    assert second.beta == found  # of single images and exports
    assert second.background_score(None, "pixels") == 0.5 and second.background_score(None, "raw") == 0.45


def test_it_is_found_once(second: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_label(labelling(second, photos, tmp_path / "masks"))
    looked = []
    monkeypatch.setattr(score_by_share, "teacher_shares", lambda *_: looked.append(1) or {})
    run_label(labelling(second, photos, tmp_path / "again", shard="1/9"))
    assert not looked and settings(tmp_path / "again")["beta"] == settings(tmp_path / "masks")["beta"]
    run_label(labelling(second, photos, tmp_path / "flipped", flip=True, shard="1/9"))  # other maps, looked for anew
    assert looked


def test_ground_truth_goes_first(second: RunFolder, photos: Path, tmp_path: Path) -> None:
    second.scores_path.write_text(json.dumps({"beta": 0.37}))
    run_label(labelling(second, photos, tmp_path / "masks", shard="1/9"))
    assert settings(tmp_path / "masks")["beta"] == 0.37
    assert not (second.path / FOUND_NAME).exists()


@pytest.mark.parametrize("lost", ["masks", "few", "shares"])
def test_without_what_the_teacher_said_it_stays_even(
    second: RunFolder,
    photos: Path,
    rounds: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    masks = tmp_path / "moved"
    shutil.copytree(rounds[0], masks)
    second.create(dataclasses.replace(second.config, pixel_masks=masks), CLASSES)
    if lost == "masks":
        shutil.rmtree(masks)
    elif lost == "few":
        monkeypatch.setattr(score_by_share, "LEAST", COUNT + 1)
    else:  # masks that a person drew have no maps
        (masks / "manifest.jsonl").unlink()
    run_label(labelling(second, photos, tmp_path / "masks", shard="1/9"))
    assert settings(tmp_path / "masks")["beta"] == 0.5 and not (second.path / FOUND_NAME).exists()


def test_a_run_folder_that_may_not_be_written_to(
    second: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(score_by_share, "write_found", refuse)
    run_label(labelling(second, photos, tmp_path / "masks", shard="1/9"))
    assert settings(tmp_path / "masks")["beta"] != 0.5 and second.beta == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"void_margin": (0.1, -0.1)}, r"--void-margin 0\.1 -0\.1: expected two distances"),
        ({"void_margin": (0.1, 0.1), "void_band": (0.2, 0.4)}, r"--void-margin 0\.1 0\.1: --void-band says"),
    ],
    ids=["negative", "both"],
)
def test_margins_that_do_not_fit(second: RunFolder, photos: Path, tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        run_label(labelling(second, photos, tmp_path / "masks", **options))
    assert not (tmp_path / "masks").exists()


def test_scores_of_runs_that_were_never_scored(make_run: MakeRun, second: RunFolder, tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", method="cam", weights=False)
    assert (plain.beta, plain.background_score(None, "none"), second.beta) == (0.45, 0.25, 0.5)
    paper = make_run(tmp_path / "paper", method="cam", weights=False)
    paper.create(dataclasses.replace(paper.config, preset="paper"), CLASSES)
    assert paper.beta == 0.25  # the paper's CAM is not refined
    (second.path / FOUND_NAME).write_text('{"beta": "high", "refine": "pixels-raw"}')
    with pytest.raises(DataError, match=rf"{FOUND_NAME}: key beta: found .*high"):
        _ = second.beta
    assert second.background_score(0.3) == 0.3
