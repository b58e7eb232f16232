"""`cpn compare`: its table and JSON, and targets that do not go together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cpn_fast.cli.main import main as cpn
from cpn_fast.files.errors import DataError
from cpn_fast.metrics.beta_sweep import BetaSweep
from cpn_fast.metrics.image_counts import ImageCounts, ScoredImages, write_counts
from cpn_fast.scoring.compare import open_target, run_compare
from cpn_fast.scoring.compare_options import CompareConfig

IDS = tuple(f"image{index}" for index in range(8))


def scored(path, noise: float, ids=IDS, classes=("cat", "dog"), maps=("cam", "rcam")):
    path.mkdir()
    found = {}
    for step, name in enumerate(maps):
        masks, rng = np.random.default_rng(4), np.random.default_rng(7)
        sweep = BetaSweep(2, keep_images=True)
        for _ in ids:
            mask = masks.integers(0, 3, (5, 6)).astype(np.uint8)
            clean = np.stack([(mask == c + 1) * 0.6 for c in range(2)])
            sweep.update((clean + noise / (1 + step) * rng.random((2, 5, 6))).clip(0, 1), mask)
        found[name] = ImageCounts.of(sweep.per_image, 2)
    write_counts(path / "counts.npz", ScoredImages(ids, classes, found))
    return path


def test_table_and_json(tmp_path, capsys) -> None:
    bad, good = scored(tmp_path / "bad", 1.6), scored(tmp_path / "good", 0.8)
    output = tmp_path / "found.json"
    assert cpn(["compare", str(bad), f"{bad}:cam", str(good), "--resamples", "100", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert [entry["second"] for entry in found["comparisons"]] == [f"{bad}:cam", str(good)]
    worse, better = found["comparisons"]
    assert worse["best"]["difference"]["value"] < 0 < better["best"]["difference"]["value"]
    assert better["halves"]["images"] == 4 and better["best"]["images"] == 8
    for protocol in ("halves", "best"):
        result = better[protocol]
        assert result["difference"]["value"] == pytest.approx(result["second"]["value"] - result["first"]["value"])
        assert result["difference"]["low"] <= result["difference"]["value"] <= result["difference"]["high"]
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{100 * better['best']['difference']['value']:+.1f}" in shown
    assert "95%" in shown and "100 resamples" in shown


def test_a_group_of_seeds(tmp_path) -> None:
    runs = [scored(tmp_path / name, noise) for name, noise in (("a0", 1.0), ("a1", 1.2), ("b", 0.4))]
    found = run_compare(CompareConfig(f"{runs[0]},{runs[1]}", (str(runs[2]),), resamples=50))
    assert (found["seeds"], found["comparisons"][0]["seeds"]) == (2, 1)
    assert "runs" in found["interval"]
    alone = [run_compare(CompareConfig(str(run), (str(runs[2]),), resamples=5)) for run in runs[:2]]
    values = [entry["comparisons"][0]["best"]["first"]["value"] for entry in alone]
    assert found["comparisons"][0]["best"]["first"]["value"] == pytest.approx(np.mean(values))


def test_the_map_of_a_run_is_rcam_where_it_has_one(tmp_path) -> None:
    both, plain = scored(tmp_path / "both", 1.0), scored(tmp_path / "plain", 1.0, maps=("cam",))
    target = open_target(str(both))
    assert target.runs[0] is target.scored[0].maps["rcam"]
    assert open_target(str(plain)).runs[0].has_beta
    with pytest.raises(DataError, match="has no map rcam, only cam"):
        open_target(f"{plain}:rcam")


def test_a_background_score_instead_of_the_best(tmp_path) -> None:
    run = scored(tmp_path / "run", 1.2)
    masks, rng = np.random.default_rng(4), np.random.default_rng(7)  # those of `scored`, masks drawn by hand
    right = np.zeros((2, 3, 3), np.int64)  # [all or odd positions, truth, prediction]
    for index in range(len(IDS)):
        mask = masks.integers(0, 3, (5, 6))
        maps = np.stack([(mask == c + 1) * 0.6 for c in range(2)]) + 0.6 * rng.random((2, 5, 6))
        found = np.where(maps.clip(0, 1).max(0) > np.float32(0.37), maps.clip(0, 1).argmax(0) + 1, 0)
        for part in (0, 1) if index % 2 else (0,):
            np.add.at(right[part], (mask, found), 1)
    expected = [np.mean([one[c, c] / (one[c].sum() + one[:, c].sum() - one[c, c]) for c in range(3)]) for one in right]
    comparison = run_compare(CompareConfig(f"{run}:rcam", (f"{run}:rcam@0.37",), resamples=10))["comparisons"][0]
    assert comparison["best"]["second"]["value"] == pytest.approx(expected[0], abs=1e-12)
    assert comparison["halves"]["second"]["value"] == pytest.approx(expected[1], abs=1e-12)
    assert comparison["best"]["first"]["value"] >= expected[0]
    assert comparison["halves"]["betas"][1] == comparison["best"]["betas"][1] == (0.37,)
    found = run_compare(CompareConfig(f"{run}:cam@0.37,{run}@0.5", (str(run),), resamples=10))
    assert found["comparisons"][0]["best"]["betas"][0] == (0.37, 0.5)


@pytest.mark.parametrize(("named", "message"), [("@0.375", "0.375 is not one of"), ("@1.2", "1.2 is not one of")])
def test_background_scores_off_the_grid(tmp_path, named, message) -> None:
    run = scored(tmp_path / "run", 1.0)
    with pytest.raises(DataError, match=message):
        open_target(f"{run}{named}")


def test_masks_have_no_background_score(tmp_path) -> None:
    run = scored(tmp_path / "run", 1.0)
    counts = open_target(str(run)).scored[0]
    (tmp_path / "masks").mkdir()
    read = ScoredImages(counts.ids, counts.classes, {"masks": counts.maps["rcam"].at(0.4)})
    write_counts(tmp_path / "masks" / "counts.npz", read)
    with pytest.raises(DataError, match=r"leave @0\.4 out"):
        open_target(f"{tmp_path / 'masks'}@0.4")
    assert cpn(["compare", str(run), f"{run}@nonsense"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": (*IDS[:7], "other")}, "2 images are in one of them only, the first image7"),
        ({"ids": IDS[::-1]}, "their order differs"),
        ({"classes": ("cat", "cow")}, "classes cat, cow"),
    ],
)
def test_targets_that_do_not_go_together(tmp_path, changes, message, capsys) -> None:
    first, second = scored(tmp_path / "first", 1.0), scored(tmp_path / "second", 1.0, **changes)
    assert cpn(["compare", str(first), str(second)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_was_not_scored(tmp_path, capsys) -> None:
    first = scored(tmp_path / "first", 1.0)
    (tmp_path / "bare").mkdir()
    assert cpn(["compare", str(first), str(tmp_path / "bare")]) == 2
    assert "not found" in capsys.readouterr().err
