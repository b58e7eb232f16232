"""`cpn report`: one self-contained HTML page about a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cpn_fast.cam.map_options import MapOptions, ResolvedMaps
from cpn_fast.config.serialise import config_to_dict, flat
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.sources.spread import spread
from cpn_fast.files.atomic import atomic_write_text
from cpn_fast.files.errors import DataError
from cpn_fast.files.json_file import read_json
from cpn_fast.report import page
from cpn_fast.report.charts import Series, bar_chart, line_chart
from cpn_fast.report.options import ReportConfig
from cpn_fast.report.pictures import Row, RowOptions, make_rows
from cpn_fast.runs.folder import RunFolder
from cpn_fast.runs.metrics_log import LOSSES

if TYPE_CHECKING:
    from markupsafe import Markup

log = logging.getLogger(__name__)

SPLIT_CURVES = ("background", "foreground")
MAX_BARS = 40
"""Classes in the bar chart; of more, the worst and the best are shown."""


def run_report(config: ReportConfig) -> Path:
    """Write the page.

    Args:
        config: the settings.

    Returns:
        The page's path.

    Raises:
        DataError: if there is no run, or a file of it is damaged. A run without weights, scores or masks, or whose data
            has moved, still gives a page, which says what is missing.
    """
    run = RunFolder(config.run)
    scores = read_scores(run.scores_path)
    steps, evals = run.records("step"), run.records("eval")
    settings = flat(config_to_dict(run.config))
    sections = [page.tiles(_key_figures(run, scores, steps, evals)), _pictures(run, config)]
    sections += [
        _scores(scores, run.classes),
        _learning(evals, run.config.method != "cam" and run.config.options.pcm),
        _training(steps, run.records("maps")),
        page.settings("Settings", settings),
    ]
    subtitle = f"{run.config.method} on {run.config.data}, backbone {run.config.backbone}, seed {run.config.loop.seed}"
    output = config.output or run.path / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(output, page.page(f"Run {run.path.resolve().name}", subtitle, sections))
    log.info("report: %s", output)
    return output


def read_scores(path: Path) -> dict[str, Any]:
    """What `cpn evaluate` wrote, empty where it never ran. Raises DataError for a file that is not its JSON."""
    if not path.is_file():
        return {}
    scores = read_json(path, "what `cpn evaluate` wrote", "run it again")
    if not isinstance(scores, dict):
        raise DataError(f"{path}: found a {type(scores).__name__}, expected an object; run `cpn evaluate` again")
    return scores


def _key_figures(
    run: RunFolder, scores: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    figures = {}
    for key, label in (("miou", "mIoU %"), ("background", "background IoU %"), ("foreground", "foreground IoU %")):
        if scores.get(key) is not None:
            figures[label] = f"{100 * scores[key]:.1f}"
    if scores.get("beta") is not None:
        figures["best beta"] = f"{scores['beta']:.2f}"
    if evals and evals[-1].get("map") is not None:
        figures["classifier mAP %"] = f"{100 * evals[-1]['map']:.1f}"
    if steps:
        seconds = sum(record["seconds"] for record in steps)
        figures["steps"] = str(steps[-1]["step"])
        figures["training time"] = f"{seconds / 60:.1f} min"
        figures["images/s"] = f"{np.median([record['images_per_second'] for record in steps]):.1f}"
        figures["peak memory"] = f"{max(record['peak_memory_mib'] for record in steps) / 1024:.1f} GiB"
    figures["classes"] = str(len(run.classes))
    return figures


def _pictures(run: RunFolder, config: ReportConfig) -> Markup:
    try:
        rows = _rows(run, config)
    except DataError as error:
        return page.note(f"No pictures: {error}")
    except ModuleNotFoundError as error:
        return page.note(f"No pictures: they need {error.name}, which comes with pip install 'cpn-fast[train]'.")
    if not rows:
        return page.note("No pictures: no image of the split could be read.")
    how = _maps(run, config)
    beta = run.background_score(None, how.refine.refine)
    explanation = (
        "CAM and RCAM: each pixel's best class in its colour, as strong as its score. "
        f"Mask: background score {beta:.2f}. Maps: {how}."
    )
    if not any("ground truth" in row.pictures for row in rows):
        explanation += " The data has no ground truth."
    return page.picture_rows(rows, run.classes, explanation)


def _rows(run: RunFolder, config: ReportConfig) -> list[Row]:
    source = open_source(config.data or run.config.data)
    split = config.split or ("val" if "val" in source.splits() else run.config.split)
    records = source.records(split)
    masks = config.masks
    if masks is not None and (masks / "SegmentationClass").is_dir():
        masks = masks / "SegmentationClass"
    options = RowOptions(_maps(run, config), config.max_side, config.device, masks)
    return make_rows(run, source, spread(records, config.images), options)


def _maps(run: RunFolder, config: ReportConfig) -> ResolvedMaps:
    options = MapOptions.of(config)
    return options.resolved(run)


def _scores(scores: Mapping[str, Any], classes: Sequence[str]) -> Markup:
    if not scores:
        return page.note("No scores: there is no metrics.json; `cpn evaluate` writes it where the data has masks.")
    multi = {name.upper(): scales["multi"] for name, scales in scores.get("results", {}).items()}
    curves = [
        Series(name, values["sweep"]["beta"], _percent(values["sweep"]["miou"])) for name, values in multi.items()
    ]
    if len(multi) == 1 and scores.get("sweep"):
        curves += [Series(kind, scores["sweep"]["beta"], _percent(scores["sweep"][kind])) for kind in SPLIT_CURVES]
    best = None if scores.get("beta") is None else (float(scores["beta"]), f"best {scores['beta']:.2f}")
    per_class = {name: values["per_class"] for name, values in multi.items()} or {"masks": scores["per_class"]}
    names = _shown(scores["per_class"], ["background", *classes])
    bars = {legend: _percent([values.get(name) for name in names]) for legend, values in per_class.items()}
    scales = [name for name in next(iter(scores.get("results", {}).values()), {})]
    per_scale = {
        name.upper(): _percent([values[scale]["miou"] if scale in values else None for scale in scales])
        for name, values in scores.get("results", {}).items()
    }
    labels = ["all scales" if scale == "multi" else f"scale {scale}" for scale in scales]
    drawn = {
        "mIoU over the background score beta": line_chart(curves, "beta", "mIoU %", 0.0, best),
        "mIoU per scale, each at its best beta": bar_chart(labels, per_scale),
        "IoU per class" + ("" if len(names) > len(classes) else ", worst and best"): bar_chart(names, bars),
    }
    where = (
        f"{scores.get('images', '?')} images of split {scores.get('split', '?')} of {scores.get('data', '?')}, in %."
    )
    return page.charts("Scores", drawn, where)


def _percent(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else 100 * value for value in values]


def _shown(per_class: Mapping[str, float | None], names: list[str]) -> list[str]:
    """All classes in their order; of more than `MAX_BARS` the worst and the best, worst first."""
    if len(names) <= MAX_BARS:
        return names
    scored = [(value, name) for name in names if (value := per_class.get(name)) is not None]
    ranked = [name for _, name in sorted(scored)]
    return ranked if len(ranked) <= MAX_BARS else ranked[: MAX_BARS // 2] + ranked[-MAX_BARS // 2 :]


def _learning(evals: Sequence[Mapping[str, Any]], refined: bool) -> Markup:
    epochs = [float(record["epoch"]) for record in evals]

    def curve(name: str, key: str, factor: float = 1.0) -> Series:
        values = [record.get(key) for record in evals]
        return Series(name, epochs, [math.nan if value is None else factor * value for value in values])

    maps = [curve("CAM", "cam_miou", 100)]
    if refined:
        maps.append(curve("RCAM", "rcam_miou", 100))
    drawn = {
        "mIoU of the maps": line_chart(maps, "epoch", "mIoU %"),
        "Classifier": line_chart([curve("mAP", "map", 100), curve("F1", "f1", 100)], "epoch", "%"),
    }
    return page.charts("Learning curves", drawn, "On a fixed subset of the validation images, at a single scale.")


def _training(steps: Sequence[Mapping[str, Any]], maps: Sequence[Mapping[str, Any]]) -> Markup:
    if not steps:
        return page.note("No training records: metrics.jsonl is missing or empty.")
    at = [float(record["step"]) for record in steps]

    def curve(key: str) -> Series:
        return Series(key, at, [record.get(key, math.nan) for record in steps])

    drawn = {
        "Losses": line_chart([curve(key) for key in LOSSES if key in steps[-1]], "step", "loss", 0.0),
        "Share of the image above 0.5 in the maps of present classes": line_chart(
            [
                Series(kind.upper(), [float(record["step"]) for record in maps], [_mean_area(r, kind) for r in maps])
                for kind in ("cam", "rcam")
            ],
            "step",
            "share",
            0.0,
        ),
        "Learning rate": line_chart([curve("lr")], "step", "learning rate", 0.0),
    }
    return page.charts("Training", drawn)


def _mean_area(record: Mapping[str, Any], kind: str) -> float:
    """Mean over the classes that were seen; NaN where none was, or the run has no such maps."""
    seen = [area for area in record.get(kind, {}).get("area", ()) if area is not None]
    return sum(seen) / len(seen) if seen else math.nan
