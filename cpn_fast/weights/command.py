"""`cpn weights check FILE`: layout, the backbone that it fits, classes, what is missing, and the checksum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import Tensor

from cpn_fast.files.digest import weights_sha256
from cpn_fast.models.weights.layouts import Fit, best_fit, is_head, layout_of
from cpn_fast.models.weights.pretrained import check_finite, read_weights
from cpn_fast.weights.options import CheckWeightsConfig

LAYOUTS = {
    "resnet38": "ResNet38 (MXNet's ilsvrc-cls_rna-a, psa's and SEAM's resnet38d)",
    "resnet50": "ResNet-50 in torchvision's keys",
    "mobilenet_v2": "MobileNetV2 1.0 in torchvision's keys",
    "efficientnet_lite2": "EfficientNet-Lite2 in timm's keys (tf_efficientnet_lite2)",
    "vit_small_patch16": "ViT-S/16 in timm's keys (augreg; DeiT's and DINO's go with deit_small_patch16)",
    "vit_small_patch14_reg4_dinov2": "DINOv2's ViT-S/14 with registers, in timm's keys or DINOv2's own",
    "resnet38_tiny": "ResNet38 at an eighth of its width, of this package",
}
"""Backbone -> what its weights are known as."""

SHOWN = 5


@dataclass(frozen=True)
class WeightsReport:
    """What a file of weights is.

    Attributes:
        path: the file.
        sha256: of its bytes, hexadecimal.
        tensors: how many it holds.
        parameters: numbers in all of them together, batch counters left out.
        fit: the backbone that they fit, or most resemble; None where no key is any backbone's.
        classes: rows of its classifier; None without one.
        seam: it has the heads of the SEAM and psa family.
    """

    path: Path
    sha256: str
    tensors: int
    parameters: int
    fit: Fit | None
    classes: int | None
    seam: bool


def check_weights(path: str | Path) -> WeightsReport:
    """Look into a file of weights.

    Args:
        path: see `cpn_fast.models.weights.pretrained.read_weights`.

    Raises:
        DataError: if it cannot be read, or holds NaN or infinity.
    """
    path = Path(path)
    state = read_weights(path)
    check_finite(state, path)
    return WeightsReport(
        path=path,
        sha256=weights_sha256(path),
        tensors=len(state),
        parameters=sum(value.numel() for key, value in state.items() if not key.endswith("num_batches_tracked")),
        fit=best_fit(state),
        classes=_classes(state),
        seam=any(_bare(key) == "fc8" for key in state),
    )


def _bare(key: str) -> str:
    return key.removeprefix("module.").removesuffix(".weight")


def _classes(state: Mapping[str, Tensor]) -> int | None:
    """Rows of the classifier's weight: the last tensor of two or four dimensions under a classifier's name."""
    found = [
        value.shape[0]
        for key, value in state.items()
        if value.ndim in (2, 4) and (is_head(key.removeprefix("module.")) or _bare(key) in ("fc8", "head.fc", "head"))
    ]
    return found[-1] if found else None


def run_check_weights(config: CheckWeightsConfig) -> WeightsReport:
    """Print what a file of weights is.

    Raises:
        DataError: as `check_weights` does.
    """
    report = check_weights(config.file)
    console = Console()
    for line in _lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return report


def _lines(report: WeightsReport) -> list[str]:
    fit = report.fit
    size = report.path.stat().st_size / 2**20
    lines = [
        f"{report.path}: {size:.1f} MiB, {report.tensors} tensors, {report.parameters:,} parameters",
        f"sha256      {report.sha256}",
    ]
    if fit is None:
        lines.append("layout      of no backbone of this package; weights of timm go with --backbone timm:NAME")
    else:
        known = LAYOUTS[fit.backbone] if fit.exact or _mostly(fit) else f"some keys of {fit.backbone} only"
        lines.append(f"layout      {known}")
        if fit.prefix:
            lines.append(f"prefix      {fit.prefix} (taken off by itself)")
    lines.append(f"classes     {'no classifier' if report.classes is None else report.classes}")
    if report.seam:
        lines.append("heads       of the SEAM and psa family (fc8, f8_3, f8_4, f9)")
    for name in ("missing", "misshapen", "unexpected"):
        if fit is not None and (keys := getattr(fit, name)):
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            lines.append(f"{name:<12}{len(keys)}: {', '.join(keys[:SHOWN])}{more}")
    if fit is not None and fit.exact:
        lines.append(f"use         --backbone {' or '.join(fit.names)} --weights {report.path}")
    return lines


def _mostly(fit: Fit) -> bool:
    return fit.matched >= len(layout_of(fit.backbone)) / 2
