"""Dense CRF: mean field with Gaussian kernels of position and colour (Kraehenbuehl and Koltun 2011)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cpn_kernels import native_library
from cpn_kernels.backend import use_triton
from cpn_kernels.ops.dense_crf import native, reference
from cpn_kernels.ops.dense_crf.limits import is_supported
from cpn_kernels.ops.dense_crf.op import dense_crf_op

__all__ = [
    "AFFINITY_LABELS",
    "GT_PROB",
    "SEGMENTATION",
    "Backend",
    "Settings",
    "dense_crf",
    "probabilities_from_labels",
]

Backend = Literal["auto", "triton", "native", "reference"]

GT_PROB = 0.7
"""How sure hard labels are taken to be."""


@dataclass(frozen=True)
class Settings:
    """Arguments of `dense_crf`, under its names: `dense_crf(images, probabilities, **asdict(SEGMENTATION))`."""

    iterations: int = 10
    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0


AFFINITY_LABELS = Settings()
"""For the labels that AffinityNet learns from."""

SEGMENTATION = Settings(bilateral_sxy=32.0)
"""For the segmentation network's predictions."""


def _deviations(name: str, value: float | Sequence[float], count: int) -> list[float]:
    values = [float(value)] * count if isinstance(value, int | float) else [float(each) for each in value]
    if len(values) != count or not all(math.isfinite(each) and each > 0 for each in values):
        raise ValueError(f"{name} is {value}; expected a positive number, or {count} of them")
    return values


def _check(images: Tensor, probabilities: Tensor, iterations: int, compats: dict[str, float], clip: float) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 [B, H, W, 3]")
    batch, height, width, _ = images.shape
    shape = tuple(probabilities.shape)
    if len(shape) != 4 or shape[0] != batch or shape[1] < 1 or shape[2:] != (height, width):
        raise ValueError(f"probabilities are {shape}; expected [{batch}, at least 1, {height}, {width}] as the images")
    if not probabilities.is_floating_point():
        raise ValueError(f"probabilities are {probabilities.dtype}; expected floating point")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations is {iterations!r}; expected an integer from 0 on")
    for name, compat in compats.items():
        if not (math.isfinite(compat) and compat >= 0):
            raise ValueError(f"{name} is {compat}; expected a number from 0 on")
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip}; expected a number between 0 and 1")


def _resolve(backend: Backend, probabilities: Tensor) -> Literal["triton", "native", "reference"]:
    classes = probabilities.shape[1]
    on_gpu = use_triton(probabilities) and is_supported(probabilities)
    if backend == "auto":
        if on_gpu:
            return "triton"
        on_cpu = not probabilities.is_cuda and probabilities.dtype != torch.float64 and classes <= native.MAX_CLASSES
        return "native" if on_cpu and native_library.available() else "reference"
    if backend not in ("triton", "native", "reference"):
        raise ValueError(f"backend is {backend!r}; expected 'auto', 'triton', 'native' or 'reference'")
    if backend != "reference" and classes > native.MAX_CLASSES:
        raise ValueError(f"{classes} classes; the {backend} backend takes up to {native.MAX_CLASSES}")
    if backend == "triton" and probabilities.numel() and not on_gpu:
        found = f"{probabilities.dtype} {tuple(probabilities.shape)} on {probabilities.device}"
        raise ValueError(
            f"probabilities are {found}; the triton backend takes float32 or half precision, of images whose corners "
            "are counted in 32 bits, on CUDA devices of capability 8.0 or newer, with Triton installed"
        )
    return backend


def dense_crf(
    images: Tensor,  # [B, H, W, 3]
    probabilities: Tensor,  # [B, C, H, W]
    iterations: int = 10,
    *,
    gaussian_sxy: float | Sequence[float] = 3.0,
    gaussian_compat: float = 3.0,
    bilateral_sxy: float | Sequence[float] = 80.0,
    bilateral_srgb: float | Sequence[float] = 13.0,
    bilateral_compat: float = 10.0,
    clip: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """Refine class probabilities along the edges of the image (Kraehenbuehl and Koltun 2011, algorithm 1).

    Unary energy is -log of the probability. Pairwise energies are Potts, with one Gaussian kernel of the position and
    one of position and colour; each is filtered on the permutohedral lattice and normalised symmetrically. That is what
    pydensecrf does by default: `unary_from_softmax`, `addPairwiseGaussian(sxy, compat)` and
    `addPairwiseBilateral(sxy, srgb, image, compat)`, then `inference(iterations)`. No gradient flows through it.

    Args:
        images: uint8 [B, H, W, 3], RGB.
        probabilities: floating point [B, C, H, W], in [0, 1]. They are not scaled to sum to 1. A NaN stays visible: it
            makes its pixel NaN, and spreads as far as the kernels reach.
        iterations: of mean field, >= 0; with 0, the clipped probabilities scaled to sum to 1.
        gaussian_sxy: standard deviation of the position kernel in pixels, one number or (x, y).
        gaussian_compat: its weight, >= 0; 0 = without it.
        bilateral_sxy: standard deviation of position in the other kernel, in pixels, one number or (x, y).
        bilateral_srgb: standard deviation of colour, in 8-bit steps, one number or (red, green, blue).
        bilateral_compat: weight of that kernel, >= 0; 0 = without it.
        clip: probabilities below are taken for this much.
        backend: "triton" (on a GPU, in float32, up to 256 classes; the same bits in every call; builds each image's
            lattice there, for which it waits for the device), "native" (C++ on the CPU, likewise in float32 and up to
            256 classes; the same bits for any number of threads; takes CUDA tensors through the host), "reference"
            (plain torch on the tensors' device; float64 stays float64); "auto" = triton for CUDA tensors that it takes,
            native for others where the library is there, and the reference for what neither takes, such as float64.

    Returns:
        Probabilities [B, C, H, W] in the given dtype, on the given probabilities' device. They sum to 1 over C.

    Raises:
        ValueError: for another shape or dtype, an argument out of range, tensors that the named backend does not take,
            or standard deviations so small that an image of this size has more lattice points than can be numbered.
        ImportError: for backend "native" without the library.
    """
    compats = {"gaussian_compat": gaussian_compat, "bilateral_compat": bilateral_compat}
    _check(images, probabilities, iterations, compats, clip)
    gaussian = _deviations("gaussian_sxy", gaussian_sxy, 2)
    bilateral = _deviations("bilateral_sxy", bilateral_sxy, 2) + _deviations("bilateral_srgb", bilateral_srgb, 3)
    resolved = _resolve(backend, probabilities)
    if probabilities.numel() == 0:
        return torch.empty_like(probabilities)
    working = torch.float64 if probabilities.dtype == torch.float64 and resolved == "reference" else torch.float32
    log_probabilities = probabilities.detach().to(working).clamp(clip, 1).log()
    options = (iterations, gaussian, bilateral, float(gaussian_compat), float(bilateral_compat))
    if resolved == "triton":
        refined = dense_crf_op(images.to(log_probabilities.device), log_probabilities, *options)
    elif resolved == "native":
        refined = native.dense_crf(images.cpu(), log_probabilities.cpu(), *options)
    else:
        refined = reference.dense_crf(images.to(log_probabilities.device), log_probabilities, *options)
    return refined.to(device=probabilities.device, dtype=probabilities.dtype)


def probabilities_from_labels(
    labels: Tensor,  # [B, H, W]
    classes: int,
    gt_prob: float = GT_PROB,
    *,
    zero_unsure: bool = False,
    void: int | None = 255,
) -> Tensor:
    """Probabilities of hard labels: `gt_prob` for the label, the rest shared by the others (pydensecrf's convention).

    Args:
        labels: integer [B, H, W].
        classes: C, >= 1; without the label 0 where that means "unsure".
        gt_prob: label confidence, in (0, 1). With one class, its probability.
        zero_unsure: whether 0 means "unsure", with 1..C for the classes (pydensecrf's default); else they are 0..C-1.
        void: another label that means "unsure"; None = there is none.

    Returns:
        float32 [B, C, H, W]; 1 / C each where a pixel is unsure.

    Raises:
        ValueError: for another shape or dtype, a label out of range, or a `gt_prob` outside (0, 1).
    """
    if labels.ndim != 3 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; expected integers [B, H, W]")
    if classes < 1 or not 0 < gt_prob < 1:
        raise ValueError(f"{classes} classes and gt_prob {gt_prob}; expected at least 1, and a number between 0 and 1")
    index = labels.long() - int(zero_unsure)
    unsure = (labels == 0) & zero_unsure
    if void is not None:
        unsure = unsure | (labels == void)
    wrong = labels[~unsure & ((index < 0) | (index >= classes))]
    if len(wrong):
        known = f"{int(zero_unsure)}..{classes - 1 + zero_unsure}"
        raise ValueError(f"labels hold {int(wrong[0])}; expected {known}" + (f" or {void}" if void is not None else ""))
    others = (1 - gt_prob) / max(classes - 1, 1)
    shape = (len(labels), classes, *labels.shape[1:])
    filled = torch.full(shape, others, dtype=torch.float32, device=labels.device)
    filled.scatter_(1, index.masked_fill(unsure, 0)[:, None], gt_prob)
    return filled.masked_fill_(unsure[:, None], 1 / classes)
