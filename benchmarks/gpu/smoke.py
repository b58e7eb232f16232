"""Each operator's kernels once, at the size of a training, against its reference: what a new GPU is asked first.

    python -m benchmarks.gpu.smoke FIGURES.json [--time] [--interpreted] [--only OPERATOR]

writes each operator's figures as it is done; fails where one errs by more than its tolerance or raises. With `--time`
also the time on the device, without the host's launches. `--interpreted` runs the same kernels in Triton's interpreter
on the CPU, on sizes that it can do in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OPERATORS = ("cp_triplet", "patch_crop", "pixel_correlation", "cp_loss", "random_walk", "dense_crf", "augmented_crop")


@dataclass(frozen=True)
class Sizes:
    """What the operators are given.

    Attributes:
        batch: crops.
        crop: side of a crop in pixels.
        grid: side of the CAM grid.
        classes: K.
        image: height and width of an image that is refined.
    """

    batch: int
    crop: int
    grid: int
    classes: int
    image: tuple[int, int]


TRAINING = Sizes(16, 448, 56, 20, (375, 500))
TINY = Sizes(2, 40, 6, 3, (12, 14))
"""For the interpreter."""


@dataclass(frozen=True)
class Probe:
    """One operator on its inputs.

    Attributes:
        call: gives what is compared; what a GPU is timed with.
        expected: the same from the reference, in float64 where it computes in floating point.
        tolerance: of a tensor's difference, its norm relative to that of what is expected.
        waits: its host waits for the device, or sends it something, so that no graph can be made of it.
    """

    call: Callable[[], list[Tensor]]
    expected: Callable[[], list[Tensor]]
    tolerance: float
    waits: bool = False


def probes(device: str, sizes: Sizes) -> dict[str, Callable[[], Probe]]:
    """By operator, what makes its inputs; they differ from call to call in nothing."""
    import torch
    from torch.nn import functional as F

    from cpn_kernels.ops.augmented_crop import augmented_crop, pack
    from cpn_kernels.ops.augmented_crop import reference as augmented_reference
    from cpn_kernels.ops.cp_loss import cp_loss
    from cpn_kernels.ops.cp_loss import reference as loss_reference
    from cpn_kernels.ops.cp_loss.options import CpLossOptions
    from cpn_kernels.ops.cp_triplet import cp_triplet
    from cpn_kernels.ops.cp_triplet import reference as triplet_reference
    from cpn_kernels.ops.dense_crf import dense_crf
    from cpn_kernels.ops.dense_crf import reference as crf_reference
    from cpn_kernels.ops.jittered_crop import Place, Step
    from cpn_kernels.ops.patch_crop import patch_crop
    from cpn_kernels.ops.patch_crop import reference as crop_reference
    from cpn_kernels.ops.pixel_correlation import pixel_correlation
    from cpn_kernels.ops.pixel_correlation import reference as correlation_reference
    from cpn_kernels.ops.random_walk import random_walk
    from cpn_kernels.ops.random_walk import reference as walk_reference

    def draw(seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)

    def whole(seed: int, low: int, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(low, high, shape, generator=generator, dtype=dtype).to(device)

    batch, side, grid, classes = sizes.batch, sizes.crop, sizes.grid, sizes.classes

    def triplet() -> Probe:
        images = whole(0, 0, 256, batch, side, side, 3, dtype=torch.uint8)
        patches = whole(1, -1, 300, batch, side, side, dtype=torch.int32)
        keys = torch.arange(batch).to(device) - 2
        return Probe(
            lambda: list(cp_triplet(images, patches, keys, 0.5)),
            lambda: list(triplet_reference.cp_triplet(images.cpu(), patches.cpu(), keys.cpu(), 0.5)),
            1e-6,
        )

    def crops() -> Probe:
        height, width = sizes.image
        maps = whole(2, 0, 200, batch * height * width, dtype=torch.int16)
        row = [height, width, side, side, 1, 0, 0, 0, 0, side - 1, side]
        rows = torch.tensor([[at * height * width, *row] for at in range(batch)], device=device)
        return Probe(
            lambda: [patch_crop(maps, rows, side)], lambda: [crop_reference.patch_crop(maps.cpu(), rows.cpu(), side)], 0
        )

    def correlation() -> Probe:
        pixels, views = grid * grid, 3 * (batch // 4 or 1)
        embedding, maps = draw(3, views, 192, pixels), draw(4, views, classes + 1, pixels).relu()

        def of(form: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
            leaf = embedding.to(dtype).requires_grad_()
            found = form(leaf, maps.to(dtype))
            return [found.detach(), torch.autograd.grad(found.square().sum(), leaf)[0]]

        exact = correlation_reference.pixel_correlation_blocked
        return Probe(lambda: of(pixel_correlation, torch.float32), lambda: of(exact, torch.float64), 1e-3)

    def losses() -> Probe:
        images = batch // 4 or 1
        cam, rcam = (draw(seed, 3 * images, classes, grid, grid) for seed in (5, 6))
        labels = torch.zeros(images, classes, device=device)
        labels[:, :2] = 1
        visible = torch.full((images,), 0.4, device=device)

        def of(form: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
            leaves = [maps.to(dtype).requires_grad_() for maps in (cam, rcam)]
            tcp, cpcr = form(*leaves, labels, visible.to(dtype))
            return [tcp.detach(), cpcr.detach(), *torch.autograd.grad(tcp + cpcr, leaves)]

        def exact(*given: Tensor) -> tuple[Tensor, Tensor]:
            return loss_reference.cp_loss(*given, CpLossOptions(), None)

        return Probe(lambda: of(cp_loss, torch.float32), lambda: of(exact, torch.float64), 1e-2)

    def walk() -> Probe:
        height, width = (max(4, side // 8) for side in sizes.image)
        affinity = draw(7, 2, 34, height, width).sigmoid()
        maps = draw(8, 2, classes + 1, height, width).sigmoid()
        steps = 64 if sizes is TRAINING else 2

        def exact() -> list[Tensor]:
            return [walk_reference.random_walk(walk_reference.raised(affinity.double(), 8), maps.double(), steps)]

        return Probe(lambda: [random_walk(affinity, maps, steps)], exact, 1e-5)

    def crf() -> Probe:
        height, width = sizes.image
        smooth = F.interpolate(draw(9, 2, 3, 8, 8), (height, width), mode="bicubic")
        images = (120 + 60 * smooth).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        logits = F.interpolate(2 * draw(10, 2, classes + 1, 8, 8), (height, width), mode="bilinear")
        probabilities, numbers = logits.softmax(1), (3, (3.0, 3.0), (80.0, 80.0, 13.0, 13.0, 13.0), 3.0, 10.0)

        def exact() -> list[Tensor]:
            return [crf_reference.dense_crf(images, probabilities.double().clamp(1e-5, 1).log(), *numbers)]

        return Probe(lambda: [dense_crf(images, probabilities, 3)], exact, 1e-4, waits=True)

    def augmented() -> Probe:
        scaled = (side - 5, side + 20)
        place = Place(scaled, True, (side, side), (0, 11), (3, 0), (side - 5, side))
        steps = (Step("saturation", 1.2), Step("contrast", 0.8), Step("hue", 0.07), Step("brightness", 1.1))
        images = whole(11, 0, 256, batch, *sizes.image, 3, dtype=torch.uint8).cpu().numpy()
        packed = [pack(image, place, steps[number % 4 :]) for number, image in enumerate(images)]
        pixels, weights = (torch.cat([torch.from_numpy(crop[part]) for crop in packed]) for part in (0, 1))
        numbers, amounts = (torch.stack([torch.from_numpy(crop[part]) for crop in packed]) for part in (2, 3))
        there = (pixels.to(device), weights.to(device), numbers, amounts.to(device), side, (124, 116, 104))
        here = (pixels, weights, numbers, amounts, *there[4:])
        return Probe(
            lambda: [augmented_crop(*there)], lambda: [augmented_reference.augmented_crop(*here)], 0, waits=True
        )

    made = (triplet, crops, correlation, losses, walk, crf, augmented)
    return dict(zip(OPERATORS, made, strict=True))


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest of the tensors' differences, each by its norm relative to that of what is expected; NaN where one is.

    By the norm: where rounding swaps two elements at OHEM's threshold, each has another gradient altogether.
    """
    import torch

    errors = []
    for ours, theirs in zip(found, expected, strict=True):
        law = theirs.double().cpu()
        errors.append((ours.double().cpu() - law).norm() / law.norm().clamp(min=1e-12))
    return float(torch.stack(errors).max())


def probed(make: Callable[[], Probe], timed: bool) -> dict[str, Any]:
    """Run one operator: error, seconds of the first call (compilation among them), and its time if asked for."""
    probe = make()
    started = time.perf_counter()
    found = probe.call()
    figures: dict[str, Any] = {"largest_error": worst(found, probe.expected())}
    figures |= {"tolerance": probe.tolerance, "first_call_seconds": round(time.perf_counter() - started, 2)}
    figures["passed"] = figures["largest_error"] <= probe.tolerance  # False for a NaN
    if timed:
        from benchmarks.measuring import device_ms, seconds

        if probe.waits:
            figures["wall_ms"] = 1e3 * min(seconds(probe.call, "cuda") for _ in range(3))
        else:
            figures["device_ms"] = device_ms(probe.call, 5)
    return figures


def interpreted() -> None:
    """Let the public functions take the kernels for CPU tensors; the interpreter was asked for before Triton loads."""
    import importlib

    for name in OPERATORS:
        vars(importlib.import_module(f"cpn_kernels.ops.{name}"))["use_triton"] = lambda *_: True


def main(argv: list[str] | None = None) -> int:
    """Probe every operator; 0 if all are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--interpreted", action="store_true")
    parser.add_argument("--only", choices=OPERATORS)
    given = parser.parse_args(argv)
    if given.interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
        interpreted()
    else:
        from cpn_kernels.backend import triton_ready

        if not triton_ready():  # the reference would be compared with itself
            print("smoke: no kernel runs here: Triton or a GPU of capability 8.0 is missing", file=sys.stderr)
            return 1
    record: dict[str, dict[str, Any]] = {}
    device, sizes = ("cpu", TINY) if given.interpreted else ("cuda", TRAINING)
    for name, make in probes(device, sizes).items():
        if given.only not in (None, name):
            continue
        try:
            record[name] = probed(make, given.time and not given.interpreted)
        except Exception as error:  # the next operator may well run
            record[name] = {"passed": False, "error": f"{type(error).__name__}: {str(error)[:500]}"}
        print(name, record[name], flush=True)
        given.figures.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if all(entry["passed"] for entry in record.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
