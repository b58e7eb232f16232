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
    import torch
    from torch import Tensor


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


@dataclass(frozen=True)
class Inputs:
    """Makes what the operators are given; it differs from call to call in nothing.

    Attributes:
        device: where the tensors are.
        sizes: how large they are.
    """

    device: str
    sizes: Sizes

    def normal(self, seed: int, *shape: int) -> Tensor:
        """float32, standard normal."""
        import torch

        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def whole(self, seed: int, low: int, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        """Whole numbers, low <= x < high."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        return torch.randint(low, high, shape, generator=generator, dtype=dtype).to(self.device)


def triplet(inputs: Inputs) -> Probe:
    """Masked and normalised views of crops."""
    import torch

    from cpn_kernels.ops.cp_triplet import cp_triplet, reference

    batch, side = inputs.sizes.batch, inputs.sizes.crop
    images = inputs.whole(0, 0, 256, batch, side, side, 3, dtype=torch.uint8)
    patches = inputs.whole(1, -1, 300, batch, side, side, dtype=torch.int32)
    keys = torch.arange(batch).to(inputs.device) - 2
    return Probe(
        lambda: list(cp_triplet(images, patches, keys, 0.5)),
        lambda: list(reference.cp_triplet(images.cpu(), patches.cpu(), keys.cpu(), 0.5)),
        1e-6,
    )


def crops(inputs: Inputs) -> Probe:
    """Patches of crops from maps of superpixels."""
    import torch

    from cpn_kernels.ops.patch_crop import patch_crop, reference

    batch, side, (height, width) = inputs.sizes.batch, inputs.sizes.crop, inputs.sizes.image
    maps = inputs.whole(2, 0, 200, batch * height * width, dtype=torch.int16)
    row = [height, width, side, side, 1, 0, 0, 0, 0, side - 1, side]
    rows = torch.tensor([[at * height * width, *row] for at in range(batch)], device=inputs.device)
    return Probe(
        lambda: [patch_crop(maps, rows, side)], lambda: [reference.patch_crop(maps.cpu(), rows.cpu(), side)], 0
    )


def correlation(inputs: Inputs) -> Probe:
    """Maps spread over pixels that look alike, and the gradient."""
    import torch

    from cpn_kernels.ops.pixel_correlation import pixel_correlation, reference

    pixels, views = inputs.sizes.grid**2, 3 * (inputs.sizes.batch // 4 or 1)
    embedding = inputs.normal(3, views, 192, pixels)
    maps = inputs.normal(4, views, inputs.sizes.classes + 1, pixels).relu()

    def of(form: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaf = embedding.to(dtype).requires_grad_()
        found = form(leaf, maps.to(dtype))
        return [found.detach(), torch.autograd.grad(found.square().sum(), leaf)[0]]

    exact = reference.pixel_correlation_blocked
    return Probe(lambda: of(pixel_correlation, torch.float32), lambda: of(exact, torch.float64), 1e-3)


def losses(inputs: Inputs) -> Probe:
    """L_tcp and L_cpcr, and their gradients."""
    import torch

    from cpn_kernels.ops.cp_loss import cp_loss, reference
    from cpn_kernels.ops.cp_loss.options import CpLossOptions

    images, classes, grid = inputs.sizes.batch // 4 or 1, inputs.sizes.classes, inputs.sizes.grid
    cam, rcam = (inputs.normal(seed, 3 * images, classes, grid, grid) for seed in (5, 6))
    labels = torch.zeros(images, classes, device=inputs.device)
    labels[:, :2] = 1
    visible = torch.full((images,), 0.4, device=inputs.device)

    def of(form: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
        leaves = [maps.to(dtype).requires_grad_() for maps in (cam, rcam)]
        tcp, cpcr = form(*leaves, labels, visible.to(dtype))
        return [tcp.detach(), cpcr.detach(), *torch.autograd.grad(tcp + cpcr, leaves)]

    def exact(*given: Tensor) -> tuple[Tensor, Tensor]:
        return reference.cp_loss(*given, CpLossOptions(), None)

    return Probe(lambda: of(cp_loss, torch.float32), lambda: of(exact, torch.float64), 1e-2)


def walk(inputs: Inputs) -> Probe:
    """Random walk over affinities."""
    from cpn_kernels.ops.random_walk import random_walk, reference

    height, width = (max(4, side // 8) for side in inputs.sizes.image)
    affinity = inputs.normal(7, 2, 34, height, width).sigmoid()
    maps = inputs.normal(8, 2, inputs.sizes.classes + 1, height, width).sigmoid()
    steps = 64 if inputs.sizes is TRAINING else 2

    def exact() -> list[Tensor]:
        return [reference.random_walk(reference.raised(affinity.double(), 8), maps.double(), steps)]

    return Probe(lambda: [random_walk(affinity, maps, steps)], exact, 1e-5)


def crf(inputs: Inputs) -> Probe:
    """Dense CRF, three iterations."""
    import torch
    from torch.nn import functional as F

    from cpn_kernels.ops.dense_crf import dense_crf, reference

    size, classes = inputs.sizes.image, inputs.sizes.classes
    smooth = F.interpolate(inputs.normal(9, 2, 3, 8, 8), size, mode="bicubic")
    images = (120 + 60 * smooth).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    logits = F.interpolate(2 * inputs.normal(10, 2, classes + 1, 8, 8), size, mode="bilinear")
    probabilities, numbers = logits.softmax(1), (3, (3.0, 3.0), (80.0, 80.0, 13.0, 13.0, 13.0), 3.0, 10.0)

    def exact() -> list[Tensor]:
        return [reference.dense_crf(images, probabilities.double().clamp(1e-5, 1).log(), *numbers)]

    return Probe(lambda: [dense_crf(images, probabilities, 3)], exact, 1e-4, waits=True)


def augmented(inputs: Inputs) -> Probe:
    """Crops of images, with all changes of colour."""
    import torch

    from cpn_kernels.ops.augmented_crop import augmented_crop, pack, reference
    from cpn_kernels.ops.jittered_crop import Place, Step

    batch, side = inputs.sizes.batch, inputs.sizes.crop
    place = Place((side - 5, side + 20), True, (side, side), (0, 11), (3, 0), (side - 5, side))
    steps = (Step("saturation", 1.2), Step("contrast", 0.8), Step("hue", 0.07), Step("brightness", 1.1))
    images = inputs.whole(11, 0, 256, batch, *inputs.sizes.image, 3, dtype=torch.uint8).cpu().numpy()
    packed = [pack(image, place, steps[number % 4 :]) for number, image in enumerate(images)]
    pixels, weights = (torch.cat([torch.from_numpy(crop[part]) for crop in packed]) for part in (0, 1))
    numbers, amounts = (torch.stack([torch.from_numpy(crop[part]) for crop in packed]) for part in (2, 3))
    rest = (side, (124, 116, 104))
    there = (pixels.to(inputs.device), weights.to(inputs.device), numbers, amounts.to(inputs.device))
    return Probe(
        lambda: [augmented_crop(*there, *rest)],
        lambda: [reference.augmented_crop(pixels, weights, numbers, amounts, *rest)],
        0,
        waits=True,
    )


PROBES: dict[str, Callable[[Inputs], Probe]] = {
    "cp_triplet": triplet,
    "patch_crop": crops,
    "pixel_correlation": correlation,
    "cp_loss": losses,
    "random_walk": walk,
    "dense_crf": crf,
    "augmented_crop": augmented,
}
"""Operator -> what probes it."""


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


def probed(probe: Probe, timed: bool) -> dict[str, Any]:
    """Run one operator: error, seconds of the first call (compilation among them), and its time if asked for."""
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

    for name in PROBES:
        vars(importlib.import_module(f"cpn_kernels.ops.{name}"))["use_triton"] = lambda *_: True


def main(argv: list[str] | None = None) -> int:
    """Probe every operator; 0 if all are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--interpreted", action="store_true")
    parser.add_argument("--only", choices=PROBES)
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
    inputs = Inputs("cpu", TINY) if given.interpreted else Inputs("cuda", TRAINING)
    for name, make in PROBES.items():
        if given.only not in (None, name):
            continue
        try:
            record[name] = probed(make(inputs), given.time and not given.interpreted)
        except Exception as error:  # the next operator may well run
            record[name] = {"passed": False, "error": f"{type(error).__name__}: {str(error)[:500]}"}
        print(name, record[name], flush=True)
        given.figures.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if all(entry["passed"] for entry in record.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
