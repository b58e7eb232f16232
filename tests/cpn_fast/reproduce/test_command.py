from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import kendalltau

from cpn_fast.cam.options import parse as parse_train
from cpn_fast.cli import main as cli
from cpn_fast.config.presets import PRESETS
from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.config.training import TrainConfig, replace_dotted
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.digest import weights_sha256
from cpn_fast.files.errors import DataError, NonFiniteError
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.build import refinement_of
from cpn_fast.reproduce import command, measure_time, runs
from cpn_fast.reproduce.command import run_reproduce, shortened, shortened_epochs
from cpn_fast.reproduce.options import ReproduceConfig, parse
from cpn_fast.reproduce.report import Report, csv_text, json_content, print_report
from cpn_fast.reproduce.runs import RunStore, Scoring, options_of
from cpn_fast.reproduce.summary import Measurement, cell_of, order_of
from cpn_fast.reproduce.tables import TABLES, Row, TableName
from cpn_fast.runs.folder import RunFolder
from cpn_fast.scoring.command import EvaluateConfig, run_evaluate
from cpn_fast.scoring.compare import run_compare
from cpn_fast.scoring.compare_options import CompareConfig
from cpn_fast.training.device_choice import settle_device

TINY = ("--crop", "64", "--augment.resize", "64", "96", "--batch-size", "4", "--workers", "0", "--eval-every", "0")
QUICK = ("--max-steps", "2", "--images", "3", "--scales", "1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(create_backbone("resnet38_tiny").state_dict(), path)
    return path


@pytest.fixture
def configured(small_demo: Path, weights: Path, tmp_path: Path) -> Callable[..., ReproduceConfig]:
    """`configured(table, *options, output="tables")`: a table of the small demo set, through the command line."""

    def make(table: str, *options: str, output: str = "tables") -> ReproduceConfig:
        where = ("--data", f"demo:{small_demo}", "--weights", str(weights), "--output", str(tmp_path / output))
        return parse([table, *where, *TINY, *QUICK, *options])

    return make


@pytest.fixture
def store(small_demo: Path, tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "tables", open_source(f"demo:{small_demo}"), Scoring("val", (1.0,), 3))


def reproduce(config: ReproduceConfig) -> Report:
    return run_reproduce(config)


def base_of(preset: str = "paper", **values: Any) -> TrainConfig:
    arguments = ["--data", "demo:", "--output", "o", "--preset", preset, "--backbone", "resnet38_tiny"]
    return replace_dotted(parse_train(arguments), values)


def row_named(table: TableName, name: str, base: TrainConfig) -> Row:
    return next(row for row in TABLES[table].rows(base) if row.name == name)


def digest(store: RunStore, table: TableName, name: str, base: TrainConfig) -> str:
    return store.settled(replace_dotted(base, dict(row_named(table, name, base).train))).output.name


PAPER = {
    "table1": {
        "baseline": [41.15, 48.29, 49.51, 47.44, 47.84],
        "SEAM": [49.35, 51.57, 52.25, 49.79, 55.41],
        "SEAM*": [49.64, 52.15, 53.14, 50.55, 55.71],
        "CPN": [48.91, 54.51, 55.44, 54.01, 57.43],
    },
    "table2": {
        "baseline": [47.84],
        "+ tcp + PCM": [51.08],
        "+ cpcr": [55.71],
        "+ OHEM": [56.58],
        "+ PRCM": [57.43],
    },
    "table3": {"baseline": [77.19, 46.38], "SEAM": [82.33, 54.06], "CPN": [83.44, 56.13]},
    "table4": {"p_h = 0.1": [55.52], "p_h = 0.2": [56.87], "p_h = 0.3": [56.29], "p_h = 0.4": [57.05],
               "p_h = 0.5": [57.43]},
    "table5": {"masks of CPN (train)": [57.43], "+ random walk (train)": [67.79], "segmentation network (val)": [66.8],
               "+ dense CRF (val)": [67.8]},
    "fig6": {"S_N = 200": [57.43], "S_N = 8000": [55.79]},
    "fig7": {"K_S = {4, 7}": [55.67], "K_S = {56, 112}": [57.07], "K_S = {224, 448}": [55.80]},
    "time": {"superpixels, native": [1.45], "superpixels, skimage": [1.45], "superpixels, fast-slic": [1.45],
             "grid": [0.006]},
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_figures_are_there(name: TableName) -> None:
    columns = TABLES[name].columns_at((0.5, 1.0, 1.5, 2.0))
    printed = {row.name: [row.paper[column] for column in columns] for row in TABLES[name].rows(base_of()) if row.paper}
    assert printed == PAPER[name]


def test_two_tables_are_without_the_papers_figures() -> None:
    assert {name for name in TABLES if name not in PAPER} == {"readings", "methods"}


def test_rows_of_the_ablation_switch_what_they_name() -> None:
    base = base_of()
    rows = [row for row in TABLES["table2"].rows(base) if row.refined == "trained"]
    configs = [replace_dotted(base, dict(row.train)) for row in rows]
    switches = [(c.method, refinement_of(c), c.options.tcp, c.options.cpcr, c.options.ohem) for c in configs[1:]]
    assert (configs[0].method, refinement_of(configs[0])) == ("cam", "none")
    assert switches == [
        ("cpn", "pcm", True, False, 1.0),
        ("cpn", "pcm", True, True, 1.0),
        ("cpn", "pcm", True, True, 0.2),
        ("cpn", "prcm", True, True, 0.2),
    ]


def test_prcm_takes_the_bases_form_and_softmax_where_it_has_none() -> None:
    forms = {}
    for preset in PRESETS:
        base = base_of(preset)
        forms[preset] = row_named("table1", "CPN", base).train["options.prcm"]
    assert forms == {"default": "softmax", "paper": "softmax", "released": "released"}


def test_superpixel_numbers_scale_with_the_bases() -> None:
    base = base_of(**{"patch.segments": 40})
    rows = TABLES["fig6"].rows(base)
    assert {row.position: row.train["patch.segments"] for row in rows} == {
        5: 1, 20: 4, 50: 10, 100: 20, 200: 40, 500: 100, 2000: 400, 8000: 1600
    }  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_reading_differs_from_the_base_in_one_option(preset: str) -> None:
    base = base_of(preset, momentum=0.9)
    plain = flat(config_to_dict(base))
    seen = []
    for row in TABLES["readings"].rows(base)[3:-3]:
        given = flat(config_to_dict(replace_dotted(base, dict(row.train))))
        (changed,) = [name for name in given if given[name] != plain[name]]
        seen.append((changed, given[changed]))
    assert len(set(seen)) == len(seen)
    named = {"map_norm", "cpcr_target", "ohem_pool", "refined_pair_gradient", "prcm", "tcp_target", "affinity"}
    assert named <= {name.removeprefix("options.") for name, _ in seen}
    assert "momentum" in dict(seen) and "options.warm_up" in dict(seen)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_row_is_that_preset_whatever_the_base(preset: str) -> None:
    wanted = dataclasses.replace(base_of(preset), preset="default")
    for other in PRESETS:
        base = dataclasses.replace(base_of(other, **{"patch.segments": 200}), preset="default")
        row = row_named("readings", f"preset {preset}", base)
        assert replace_dotted(base, dict(row.train)) == wanted


def test_the_same_training_has_one_folder_in_every_table(store: RunStore) -> None:
    base = base_of(**{"patch.segments": 40})
    full = {
        digest(store, table, name, base)
        for table, name in (
            ("table1", "CPN"), ("table2", "+ PRCM"), ("table3", "CPN"), ("table4", "p_h = 0.5"),
            ("fig6", "S_N = 200 (40 here)"),
        )
    }  # fmt: skip
    tables: tuple[TableName, ...] = ("table1", "table2", "table3")
    baseline = {digest(store, table, name, base) for table in tables for name in ("baseline", "CAM + PCM, untrained")}
    assert len(full) == len(baseline) == 1
    every = [digest(store, "table2", row.name, base) for row in TABLES["table2"].rows(base)]
    assert len(set(every)) == 5


def test_what_changes_no_result_changes_no_digest(store: RunStore, weights: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(base_of(), weights=weights)
    other_name = shutil.copy(weights, tmp_path / "other.safetensors")
    same = {
        store.digest(replace_dotted(config, values))
        for values in (
            {}, {"workers": 0}, {"eval_every": 0}, {"output": tmp_path}, {"preset": "default"}, {"weights": other_name},
        )
    }  # fmt: skip
    different = {
        store.digest(replace_dotted(config, values))
        for values in (
            {}, {"seed": 1}, {"epochs": 2}, {"max_steps": 2}, {"options.p_hidden": 0.4}, {"weights": None},
            {"split": "val"}, {"augment.crop": 96},
        )
    }  # fmt: skip
    assert len(same) == 1
    assert len(different) == 8


def test_other_labels_or_weights_under_the_same_path_are_another_run(
    store: RunStore, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "backbone.safetensors"
    shutil.copy(weights, path)
    config = dataclasses.replace(base_of(), weights=path)
    before = store.digest(config)
    path.write_bytes(b"others")
    weights_sha256.cache_clear()
    assert store.digest(config) != before
    shutil.copy(weights, path)
    weights_sha256.cache_clear()
    assert store.digest(config) == before
    records = [dataclasses.replace(record, labels=(0,)) for record in store.source.records("train")]
    monkeypatch.setattr(store.source, "records", lambda split: records)
    assert store.digest(config) != before


def test_budget_is_a_share_of_the_epochs() -> None:
    cases = {(8, 1.0): 8, (8, 0.25): 2, (14, 0.25): 4, (10, 0.25): 3, (20, 0.2): 4, (8, 0.01): 1, (16, 0.5): 8}
    assert {case: shortened_epochs(*case) for case in cases} == cases


def test_what_was_shortened_is_said() -> None:
    base = replace_dotted(base_of(), {"epochs": 2})
    assert shortened(base, 8, 100, 100) == "shortened: 2 of 8 epochs, 100 of 100 images scored"
    assert shortened(base, 2, 30, 100) == "shortened: 2 of 2 epochs, 30 of 100 images scored"
    stopped = replace_dotted(base, {"max_steps": 5})
    assert shortened(stopped, 2, 9, 9) == "shortened: 2 of 2 epochs, stopped after 5 steps, 9 of 9 images scored"
    assert shortened(base, 2, 100, 100) == ""


def test_budget_and_split_reach_the_base(configured: Callable[..., ReproduceConfig]) -> None:
    config = configured("table1", "--budget", "0.5", "--epochs", "6")
    base, recipe_epochs = command.settled_base(config, open_source(config.base.data))
    assert (base.loop.epochs, recipe_epochs, base.split) == (3, 6, "train")


def test_mean_and_sample_standard_deviation() -> None:
    values = [61.25, 62.5, 60.0, 61.75]
    cell = cell_of([*values, None])
    assert cell.mean == pytest.approx(statistics.mean(values))
    assert cell.spread == pytest.approx(statistics.stdev(values))
    assert cell.count == 4
    one = cell_of([61.25, None])
    assert one.mean == 61.25 and math.isnan(one.spread) and one.count == 1
    assert math.isnan(cell_of([None]).mean)


def test_order_against_kendalls_tau() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        ours, paper = rng.permutation(6).astype(float), rng.permutation(6).astype(float)
        names = "abcdef"
        order = order_of(dict(zip(names, ours, strict=True)), dict(zip(names, paper, strict=True)))
        tau = kendalltau(ours, paper).statistic
        assert (2 * order.agreeing - order.pairs) / order.pairs == pytest.approx(tau)


def test_order_by_hand() -> None:
    paper = {"a": 1.0, "b": 2.0, "c": 3.0, "tied with c": 3.0, "not ours": 9.0}
    ours = {"a": 20.0, "b": 30.0, "c": 29.0, "tied with c": 40.0, "not the paper's": 0.0}
    order = order_of(ours, paper)
    assert (order.pairs, order.agreeing, order.swapped) == (5, 4, (("c", "b", 1.0),))
    assert not order.same
    assert order_of(ours | {"c": 31.0}, paper).same
    assert order_of(ours | {"b": math.nan}, paper).pairs == 2


def made_report(seeds: tuple[int, ...] = (1, 2, 3)) -> Report:
    rows = (Row("one, with comma", {}, {"all": 50.0}), Row("two", {}, {"all": 60.0}))
    measurements = tuple(
        Measurement(
            row.name, seed, {"cam": {"all": 40.0 + seed}, "rcam": {"all": 50.0 + seed * (1 + index)}}, "rcam",
            {"options": {"method": "cpn", "options.ohem": 0.2}, "run": f"runs/{index}-{seed}"},
        )
        for seed in seeds for index, row in enumerate(rows)
    )  # fmt: skip
    table = dataclasses.replace(TABLES["table2"], rows=lambda base: rows)
    return Report("table2", table, rows, ("all",), seeds, measurements, {"epochs": 2}, "shortened: a", "here")


def test_csv_is_read_again() -> None:
    report = made_report()
    lines = list(csv.DictReader(io.StringIO(csv_text(report))))
    assert len(lines) == 2 * 3 * 2 + 2
    assert {line["shortened"] for line in lines} == {"shortened: a"}
    for name, factor, paper in (("one, with comma", 1, "50.0"), ("two", 2, "60.0")):
        of_row = [line for line in lines if line["row"] == name]
        seeds = [float(l["value"]) for l in of_row if l["seed"] != "mean" and l["default_map"] == "yes"]  # noqa: E741
        assert seeds == [50.0 + factor * seed for seed in (1, 2, 3)]
        (mean,) = [line for line in of_row if line["seed"] == "mean"]
        assert float(mean["value"]) == pytest.approx(np.mean(seeds))
        assert float(mean["spread"]) == pytest.approx(np.std(seeds, ddof=1))
        assert mean["paper"] == paper
    cams = [line for line in lines if line["map"] == "cam"]
    assert {line["default_map"] for line in cams} == {"no"} and {line["paper"] for line in cams} == {""}
    assert {line["options"] for line in lines if line["seed"] != "mean"} == {"method=cpn; options.ohem=0.2"}


def test_one_seed_says_so_and_shows_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    report = made_report((4,))
    print_report(Console(width=200), report)
    shown = capsys.readouterr().out
    assert "one seed (4)" in shown and "±" not in shown and "shortened: a" in shown
    assert "54.00 (50.00)" in shown and "58.00 (60.00)" in shown
    assert "as in the paper (1 of 1 pairs)" in shown
    means = [line for line in csv.DictReader(io.StringIO(csv_text(report))) if line["seed"] == "mean"]
    assert [line["spread"] for line in means] == ["", ""]
    assert json_content(report)["rows"][0]["spread"] == {"all": None}


def test_an_incomplete_table_says_so() -> None:
    report = made_report()
    part = dataclasses.replace(report, measurements=report.measurements[:4])
    assert "incomplete: 2 measurements to come" in part.heading()
    assert not json_content(part)["complete"] and json_content(report)["complete"]


@pytest.mark.parametrize("name", ["table2", "fig6", "fig7"])
def test_the_picture_shows_ours_and_the_papers(name: TableName, tmp_path: Path) -> None:
    from cpn_fast.reproduce.plot import draw

    table = TABLES[name]
    rows = table.rows(base_of())
    cells = {row.name: {"all": cell_of([40.0 + index, 41.0])} for index, row in enumerate(rows)}
    draw(tmp_path / "plot.png", table, rows, cells, ("all",), "a heading")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (127, 127, 127)):  # matplotlib's tab:blue and tab:gray
        assert (pixels == colour).all(axis=1).sum() > 20


def test_options_go_through_to_training(configured: Callable[..., ReproduceConfig]) -> None:
    config = configured("table1", "--seeds", "1", "2", "--lr", "0.5", "--options.map-norm", "minmax", "--patch", "grid")
    assert config.seeds == (1, 2)
    assert (config.base.optimizer.lr, config.base.options.map_norm, config.base.patch.kind) == (0.5, "minmax", "grid")
    assert config.base.options.cpcr_target == "dense"  # of --preset paper
    assert (config.base.loop.epochs, config.base.patch.segments, config.base.augment.crop) == (14, 40, 64)  # the demo's
    assert config.scales == (1.0,) and config.images == 3


def test_default_presets_and_the_papers_batch() -> None:
    here = ["--data", "voc:x", "--output", "o", "--backbone", "resnet38"]
    table, readings = parse(["table1", *here]).base, parse(["readings", *here]).base
    assert (table.preset, readings.preset) == ("paper", "default")
    assert (table.loop.batch_size, table.augment.crop, table.patch.segments) == (4, 448, 200)
    assert parse(["table1", *here, "--preset=released"]).base.options.prcm == "released"
    assert parse(["table1", *here, "--batch_size", "16"]).base.loop.batch_size == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds",), "--seeds : expected at least one"),
        (("--seeds", "1", "1"), "--seeds 1 1"),
        (("--budget", "0"), "--budget 0"),
        (("--budget", "1.5"), "--budget 1.5"),
        (("--images", "0"), "--images 0"),
        (("--devices", "2"), "--devices 1"),
        (("--eval-split", "nonsense"), "nonsense"),
    ],
)
def test_settings_that_do_not_fit(
    configured: Callable[..., ReproduceConfig], options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        reproduce(configured("table1", *options))


@pytest.mark.parametrize("option", [("--method", "cam"), ("--seed", "1"), ("--resume",)])
def test_options_that_the_rows_decide_are_refused(option: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=f"{option[0]}: the rows"):
        parse(["table1", "--data", "demo:", "--output", "o", *option])


@pytest.mark.parametrize(
    "arguments", [["table9", "--data", "demo:", "--output", "o"], ["table1", "--data", "d", "--output", "o", "--cropp"]]
)
def test_unknown_tables_and_options_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", *arguments])
    assert stopped.value.code == 2


def test_a_split_without_masks_is_refused_before_anything_is_trained(
    configured: Callable[..., ReproduceConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run_train", lambda config, progress: pytest.fail("trained"))
    with pytest.raises(DataError, match=r"'pretrain' has a mask.*--eval-split"):
        reproduce(configured("table1", "--eval-split", "pretrain"))


def test_every_way_to_make_patches_is_timed_on_every_image(
    configured: Callable[..., ReproduceConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that moves by one at every look, each way takes one second, whatever is not installed."""
    monkeypatch.setattr(measure_time.time, "perf_counter", itertools.count().__next__)
    report = reproduce(configured("time", "--seeds", "0", "1"))
    assert len(report.measurements) == 2 * len(report.rows)
    for found in report.measurements:
        assert ("failure" in found.about) != (found.value("seconds") == 1.0)
    figures = {row: cells["seconds"].mean for row, cells in report.cells.items()}
    assert figures["superpixels, skimage"] == figures["grid"] == 1.0


def test_a_loss_that_is_not_finite_fails_its_row_alone(
    configured: Callable[..., ReproduceConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: TrainConfig, progress: Any) -> RunFolder:
        if config.method == "seam":
            raise NonFiniteError("step 3: loss is NaN")
        return RunFolder(config.output)

    monkeypatch.setattr(runs, "run_train", train)
    scores = {"miou": 0.5, "background": 0.75, "foreground": 0.25}
    monkeypatch.setattr(
        RunStore, "scored", lambda *_: {"map": "cam", "results": {"cam": {"multi": scores, "1": scores}}}
    )
    report = reproduce(configured("table3"))
    assert report.cells["baseline"]["background"].mean == 75.0
    assert report.cells["CPN"]["foreground"].mean == 25.0
    assert math.isnan(report.cells["SEAM"]["background"].mean)
    notes = {line["note"] for line in csv.DictReader(io.StringIO(csv_text(report))) if line["row"] == "SEAM"}
    assert notes == {"step 3: loss is NaN", "0 seeds"}


def test_untrained_refinement_is_another_scoring_of_the_same_run(
    configured: Callable[..., ReproduceConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One training for both rows; the figures and the difference are those of `cpn evaluate` and `cpn compare`."""
    rows = tuple(row for row in TABLES["methods"].rows(base_of("default")) if row.train == {"method": "cam"})
    monkeypatch.setitem(TABLES, "methods", dataclasses.replace(TABLES["methods"], rows=lambda base: rows))
    trained: list[str] = []
    train = runs.run_train
    monkeypatch.setattr(runs, "run_train", lambda config, progress: trained.append(config.method) or train(config))
    config = configured("methods", "--images", "6")
    report = reproduce(config)
    assert trained == ["cam"] and [row.name for row in rows] == ["CAM", "CAM + PCM, untrained"]
    run = config.base.output / report.measurements[0].about["run"]
    by_hand = EvaluateConfig(
        target=run, data=config.base.data, split="val", output=tmp_path / "by_hand", scales=(1.0,),
        scales_of="training", refine="raw", refine_at="fused",
    )  # fmt: skip
    by_hand.output.mkdir()
    metrics = run_evaluate(by_hand)
    assert report.measurements[1].value("all") == pytest.approx(100 * metrics["results"]["rcam"]["multi"]["miou"])
    assert report.measurements[0].value("all") == pytest.approx(100 * metrics["results"]["cam"]["multi"]["miou"])
    (found,) = run_compare(CompareConfig(str(run), (str(by_hand.output),)))["comparisons"]
    (difference,) = report.differences
    assert dataclasses.asdict(difference.found) == found["halves"]
    assert str(difference).startswith("CAM + PCM, untrained against CAM: ")
    assert json_content(report)["differences"][0]["images"] == 3


@pytest.mark.slow
def test_a_table_that_was_killed_goes_on(
    configured: Callable[..., ReproduceConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed before SEAM is scored, then when CPN has just begun: the figures are those of a table made in one go."""
    whole = reproduce(configured("table3", output="whole"))
    trained: list[TrainConfig] = []
    train, evaluate = runs.run_train, runs.run_evaluate

    def counted(config: TrainConfig, progress: Any) -> RunFolder:
        trained.append(config)
        return train(config, progress)

    def killed_when_cpn_begins(config: TrainConfig, progress: Any) -> RunFolder:
        if config.method == "cpn":
            folder = RunFolder(config.output)
            folder.create(settle_device(config, folder)[0], whole_classes)
            raise KeyboardInterrupt
        return counted(config, progress)

    def killed_at_seam(config: Any, progress: Any) -> Any:
        if "seam" in config.target.name:
            raise KeyboardInterrupt
        return evaluate(config, progress)

    whole_classes = open_source(configured("table3").base.data).classes
    monkeypatch.setattr(runs, "run_train", killed_when_cpn_begins)
    monkeypatch.setattr(runs, "run_evaluate", killed_at_seam)
    with pytest.raises(KeyboardInterrupt):
        reproduce(configured("table3"))
    assert [config.method for config in trained] == ["cam", "seam"]
    stored = json.loads((tmp_path / "tables" / "table3.json").read_text(encoding="utf-8"))
    assert not stored["complete"] and len(stored["rows"][0]["seeds"]) == 1

    monkeypatch.setattr(runs, "run_evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        reproduce(configured("table3"))
    assert len(trained) == 2

    monkeypatch.setattr(runs, "run_train", counted)
    report = reproduce(configured("table3"))
    assert [(config.method, config.loop.resume) for config in trained[2:]] == [("cpn", True)]
    assert [found.figures for found in report.measurements] == [found.figures for found in whole.measurements]
    for suffix in ("csv", "json", "png"):
        assert (tmp_path / "tables" / f"table3.{suffix}").is_file()

    monkeypatch.setattr(runs, "run_evaluate", lambda config, progress: pytest.fail("scored again"))
    monkeypatch.setattr(runs, "run_train", lambda config, progress: pytest.fail("trained again"))
    assert reproduce(configured("table3")).measurements == report.measurements
    with pytest.raises(DataError, match=r"table3\.json: was made with other settings: .*epochs"):
        reproduce(configured("table3", "--epochs", "3"))
    _scores_belong_to_weights_and_settings(configured, monkeypatch, evaluate)
    _tampered_runs_are_refused(configured, report, tmp_path)


def _scores_belong_to_weights_and_settings(
    configured: Callable[..., ReproduceConfig], monkeypatch: pytest.MonkeyPatch, evaluate: Callable[[Any], Any]
) -> None:
    """Other evaluation settings or weights score a run again; the same do not."""
    scored: list[Any] = []
    monkeypatch.setattr(
        runs, "run_evaluate", lambda config, progress: scored.append(config) or evaluate(config, progress)
    )
    store_of = configured("table3")
    source = open_source(store_of.base.data)
    base = command.settled_base(store_of, source)[0]
    ways = (Scoring("val", (1.0,), 2), Scoring("val", (1.0,), 3), Scoring("val", (1.0,), 3, max_side=40))
    for times, scoring in enumerate(ways, start=1):
        store = RunStore(store_of.base.output, source, scoring)
        config = store.settled(replace_dotted(base, {"method": "cam"}))
        for _ in range(2):
            metrics = store.scored(RunFolder(config.output), config)
            assert metrics["images"] == scoring.images
        assert len(scored) == times
    weights = load_file(config.output / "model.safetensors")
    save_file(weights | {"classifier.weight": -weights["classifier.weight"]}, config.output / "model.safetensors")
    store.scored(RunFolder(config.output), config)
    assert [evaluation.max_side for evaluation in scored] == [1024, 1024, 40, 40]


def _tampered_runs_are_refused(configured: Callable[..., ReproduceConfig], report: Report, root: Path) -> None:
    path = root / "tables" / report.measurements[0].about["run"] / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["config"]["lr"] = 0.123
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot resume with other settings: lr"):
        reproduce(configured("table3"))


def test_the_options_of_a_row_are_said_in_full(store: RunStore) -> None:
    base = base_of()
    config = store.settled(replace_dotted(base, dict(row_named("table2", "+ cpcr", base).train)))
    options = options_of(config)
    assert options["method"] == "cpn" and options["options.ohem"] == 1.0 and options["options.prcm"] == "none"
    assert (options["momentum"], options["lr"], options["epochs"]) == (0.9, 0.01, 20)
    assert {f"options.{field.name}" for field in dataclasses.fields(base.options)} <= set(options)
