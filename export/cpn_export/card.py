"""The model card: what an exported model says of itself, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cpn_export.metadata import ModelInfo
from cpn_export.runtime import OnnxLabeller


def model_card(path: Path) -> Iterator[str]:
    """Lines `name: value` of a model's card.

    Raises:
        DataError: if there is no such file, or it is no model that `cpn export` wrote.
    """
    info = OnnxLabeller(path).info
    size = path.stat().st_size / 2**20
    yield f"{path}: {info.kind} network, {info.precision}, {size:.1f} MiB"
    for name, value in card_rows(info).items():
        yield f"{name}: {value}"


def card_rows(info: ModelInfo) -> dict[str, str]:
    """The card of a model, name -> value in words."""
    unit = "of the image" if info.scale_side is None else f"of {info.scale_side} pixels"
    scales = ", ".join(f"{scale:g}" for scale in info.scales)
    rows = {
        "classes": f"{len(info.classes)}: {', '.join(info.classes)}",
        "method": f"{info.method} on {info.backbone}, run {info.run}",
        "trained on": "not known" if info.crop is None else f"crops of {info.crop} pixels",
        "scales": f"{scales} {unit}{', each also mirrored' if info.flip else ''}",
        "longest side": f"{info.max_side} pixels, longer images are reduced first",
    }
    if info.kind == "cam":
        rows["refinement"] = f"{info.refine}, at {info.refine_at}"
        rows["masks"] = f"background score {info.beta:g}; a class stands in above {info.threshold:g}"
    measured = "not measured when it was exported" if info.miou is None else f"{100 * info.miou:.1f}% on {info.miou_of}"
    return rows | {
        "mIoU": measured,
        "licence": info.licence or "not stated; ask who made it",
        "made by": f"cpn-fast {info.cpn_fast_version or 'of an unknown version'}",
    }
