"""The paper's tables as data: rows of switches, and the figures that the paper prints (VOC 2012, mIoU in %)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from cpn_fast.config.presets import PRESETS
from cpn_fast.config.refine import ScalesOf
from cpn_fast.config.training import MethodOptions, TrainConfig, setting
from cpn_fast.metrics.maps import scale_name

if TYPE_CHECKING:
    from cpn_kernels.ops.superpixels import Backend

TableName = Literal["table1", "table2", "table3", "table4", "table5", "fig6", "fig7", "readings", "methods", "time"]
Refined = Literal["trained", "raw"]
"""Maps of every scale as the trained heads make them, CAM where there are none; or refined raw, once, after fusion."""
ALL = "all"
"""The column of the maps summed over all scales."""
PAPER_SEGMENTS = 200
"""S_N of the paper's recipe."""
SEGMENTS = (5, 20, 50, 100, 200, 500, 2000, 8000)
GRID_SIDES = ((4, 7), (7, 14), (14, 28), (28, 56), (56, 112), (112, 224), (224, 448))
HIDING = {0.1: 55.52, 0.2: 56.87, 0.3: 56.29, 0.4: 57.05, 0.5: 57.43}
SLIC_BACKENDS: tuple[Backend, ...] = ("native", "skimage", "fast-slic")
GRID = "grid"
CACHE_MADE = "cached superpixels, made once per image"
CAM_MASKS, WALKED = "masks of CPN (train)", "+ random walk (train)"
SEGMENTED, SEGMENTED_CRF = "segmentation network (val)", "+ dense CRF (val)"
CACHE_READ = "cached superpixels, taken for each crop"
READINGS = (
    *("options.map_norm", "options.pair_norm", "options.tcp_target", "options.cpcr_target", "options.ohem_pool"),
    *("options.refined_pair_gradient", "options.affinity", "options.prcm", "options.loss_resolution"),
)
"""Options that take one of a few values: every value but the base's is a row of `readings`."""
READING_PAIRS: dict[str, tuple[float, float]] = {
    "options.warm_up": (0.0, 0.5),
    "options.min_pool_weight": (0.0, 1.0),
    "momentum": (0.9, 5e-4),
    "refine_lr_factor": (1.0, 10.0),
}
"""Numbers of which two values are in use: the one that the base has not is a row of `readings`."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: as printed.
        train: dotted options of `TrainConfig` that this row sets on top of the base.
        paper: column -> the paper's figure in the table's unit; columns that it does not give are left out.
        position: place on the x axis of a figure.
        refined: which maps of the run are scored.
    """

    name: str
    train: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    position: float | None = None
    refined: Refined = "trained"


CAM_PCM = Row("CAM + PCM, untrained", {"method": "cam"}, refined="raw")
"""Plain CAM whose maps PCM refines by the backbone's own features: the gain that needs no training."""

Rows = Callable[[TrainConfig], tuple[Row, ...]]


@dataclass(frozen=True)
class Table:
    """One table or figure of the paper.

    Attributes:
        title: what it compares.
        rows: its rows on top of a base.
        columns: its columns; `scales` stands for every single scale.
        measured: how a row becomes figures: "trained" (trained, then scored), "pipeline" (stages of `cpn run`) or
            "time".
        unit: of the figures.
        axis: name of the x axis of a figure; "" for a table, which is drawn as bars.
        log_axis: the x axis is logarithmic.
        preset: of the base where the command line names none.
        scales_of: what the scales of scoring are factors of where the command line does not say.
        notes: what a reader has to know beside the figures.
    """

    title: str
    rows: Rows
    columns: tuple[str, ...] = (ALL,)
    measured: Literal["trained", "pipeline", "time"] = "trained"
    unit: str = "mIoU in %"
    axis: str = ""
    log_axis: bool = False
    preset: Literal["default", "paper"] = "paper"
    scales_of: ScalesOf = "image"
    notes: tuple[str, ...] = ()

    def columns_at(self, scales: Sequence[float]) -> tuple[str, ...]:
        """The columns where runs are scored at `scales`."""
        single = [scale_name(scale) for scale in scales]
        return tuple(name for column in self.columns for name in (single if column == "scales" else [column]))


def cpn(base: TrainConfig) -> dict[str, Any]:
    """The paper's CPN: both losses, OHEM, PCM and PRCM, the latter in the base's form ("softmax" where it has none)."""
    form = "softmax" if base.options.prcm == "none" else base.options.prcm
    return {"method": "cpn", "options.tcp": True, "options.cpcr": True, "options.pcm": True, "options.prcm": form}


def _table1(base: TrainConfig) -> tuple[Row, ...]:
    columns = ("0.5", "1", "1.5", "2", ALL)

    def row(name: str, train: Mapping[str, Any], *figures: float) -> Row:
        return Row(name, train, dict(zip(columns, figures, strict=True)))

    return (
        row("baseline", {"method": "cam"}, 41.15, 48.29, 49.51, 47.44, 47.84),
        CAM_PCM,
        row("SEAM", {"method": "seam"}, 49.35, 51.57, 52.25, 49.79, 55.41),
        row("SEAM*", {"method": "seam_prcm"}, 49.64, 52.15, 53.14, 50.55, 55.71),
        row("CPN", cpn(base), 48.91, 54.51, 55.44, 54.01, 57.43),
    )


def _table2(base: TrainConfig) -> tuple[Row, ...]:
    with_ohem = cpn(base) | {"options.prcm": "none"}
    with_cpcr = with_ohem | {"options.ohem": 1.0}
    with_tcp = with_cpcr | {"options.cpcr": False}
    return (
        Row("baseline", {"method": "cam"}, {ALL: 47.84}),
        CAM_PCM,
        Row("+ tcp + PCM", with_tcp, {ALL: 51.08}),
        Row("+ cpcr", with_cpcr, {ALL: 55.71}),
        Row("+ OHEM", with_ohem, {ALL: 56.58}),
        Row("+ PRCM", cpn(base), {ALL: 57.43}),
    )


def _table3(base: TrainConfig) -> tuple[Row, ...]:
    return (
        Row("baseline", {"method": "cam"}, {"background": 77.19, "foreground": 46.38}),
        CAM_PCM,
        Row("SEAM", {"method": "seam"}, {"background": 82.33, "foreground": 54.06}),
        Row("CPN", cpn(base), {"background": 83.44, "foreground": 56.13}),
    )


def _table4(base: TrainConfig) -> tuple[Row, ...]:
    return tuple(
        Row(f"p_h = {share:g}", cpn(base) | {"options.p_hidden": share}, {ALL: figure}, share)
        for share, figure in HIDING.items()
    )


def _table5(base: TrainConfig) -> tuple[Row, ...]:
    del base
    figures = {CAM_MASKS: 57.43, WALKED: 67.79, SEGMENTED: 66.8, SEGMENTED_CRF: 67.8}
    return tuple(Row(name, {}, {ALL: figure}) for name, figure in figures.items())


def _fig6(base: TrainConfig) -> tuple[Row, ...]:
    figures = {200: 57.43, 8000: 55.79}
    rows = []
    for segments in SEGMENTS:
        ours = max(1, round(segments * base.patch.segments / PAPER_SEGMENTS))
        name = f"S_N = {segments}" + (f" ({ours} here)" if ours != segments else "")
        train = cpn(base) | {"patch.kind": "superpixel", "patch.segments": ours}
        rows.append(Row(name, train, {ALL: figures[segments]} if segments in figures else {}, segments))
    return tuple(rows)


def _fig7(base: TrainConfig) -> tuple[Row, ...]:
    figures = {(4, 7): 55.67, (56, 112): 57.07, (224, 448): 55.80}
    return tuple(
        Row(
            "K_S = {" + ", ".join(map(str, sides)) + "}",
            cpn(base) | {"patch.kind": "grid", "patch.grid_sides": sides},
            {ALL: figures[sides]} if sides in figures else {},
            index,
        )
        for index, sides in enumerate(GRID_SIDES)
    )


def _readings(base: TrainConfig) -> tuple[Row, ...]:
    rows = [Row("plain CAM", {"method": "cam"}), CAM_PCM, Row("base", {"method": "cpn"})]
    hints = get_type_hints(MethodOptions)
    for dotted in READINGS:
        name = dotted.removeprefix("options.")
        now = getattr(base.options, name)
        for value in get_args(hints[name]) or (False, True):
            if value != now:
                rows.append(Row(f"{name} = {value}", {"method": "cpn", dotted: value}))
    for dotted, values in READING_PAIRS.items():
        name = dotted.removeprefix("options.")
        now = setting(base, dotted)
        rows += [Row(f"{name} = {value:g}", {"method": "cpn", dotted: value}) for value in values if value != now][:1]
    return (*rows, *(Row(f"preset {preset}", preset_row(base, preset)) for preset in PRESETS))


def _methods(base: TrainConfig) -> tuple[Row, ...]:
    released, default = preset_row(base, "released"), preset_row(base, "default")
    return (
        Row("CAM", {"method": "cam"}),
        CAM_PCM,
        Row("SEAM", {"method": "seam"}),
        Row("CPN, released", released),
        Row("CPN, released, raw refinement", released, refined="raw"),
        Row("CPN, learnt refinement", default),
        Row("CPN", default, refined="raw"),
    )


def preset_row(base: TrainConfig, preset: str) -> dict[str, Any]:
    """The options of a whole preset: what other presets set goes back to its default, S_N scales with the base's."""
    blank = TrainConfig(data=base.data, output=base.output)
    names = {dotted for values in PRESETS.values() for dotted in values}
    train: dict[str, Any] = {"method": "cpn"}
    for dotted in sorted(names):
        train[dotted] = setting(blank, dotted)
    train |= PRESETS[preset]
    train["patch.segments"] = round(train["patch.segments"] * base.patch.segments / PAPER_SEGMENTS)
    return train


def slic_row(backend: str) -> str:
    """The name of a superpixel backend's row in `time`."""
    return f"superpixels, {backend}"


def _time(base: TrainConfig) -> tuple[Row, ...]:
    del base
    superpixel, grid = {"seconds": 1.45}, {"seconds": 0.006}
    return (
        *(Row(slic_row(backend), {"patch.backend": backend}, superpixel) for backend in SLIC_BACKENDS),
        Row(GRID, {"patch.kind": "grid"}, grid),
        Row(CACHE_MADE, {"patch.superpixels": "cached"}),
        Row(CACHE_READ, {"patch.superpixels": "cached"}),
    )


TABLES: dict[TableName, Table] = {
    "table1": Table("Table 1: methods and scales", _table1, ("scales", ALL)),
    "table2": Table("Table 2: ablation", _table2),
    "table3": Table(
        "Table 3: background and foreground", _table3, ("background", "foreground"), unit="IoU in %, all scales"
    ),
    "table4": Table("Table 4: probability of hiding a patch", _table4, axis="p_h"),
    "table5": Table(
        "Table 5: from masks to a segmentation network",
        _table5,
        measured="pipeline",
        notes=("on VOC's test split the paper has 67.6, with dense CRF 68.5",),
    ),
    "fig6": Table(
        "Figure 6: number of superpixels",
        _fig6,
        axis="S_N (of the paper's crop)",
        log_axis=True,
        notes=(
            "of the paper's curve the text gives two points; S_N scales with the base's, 200 being the base itself",
            "in the paper superpixels beat grids by 0.43 on average",
        ),
    ),
    "fig7": Table(
        "Figure 7: sides of grid patches",
        _fig7,
        axis="K_S (pixels of a 448 crop)",
        notes=("of the paper's curve the text gives three points",),
    ),
    "readings": Table("Open readings, each changed alone", _readings, preset="default"),
    "methods": Table(
        "Methods, with their own and with raw refinement", _methods, preset="default", scales_of="training"
    ),
    "time": Table("Patch generation", _time, ("seconds",), measured="time", unit="seconds per image"),
}
"""Each command-line name with its table; one more table is one more entry."""
