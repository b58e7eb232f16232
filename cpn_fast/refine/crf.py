"""Dense CRF as a step from class scores to class scores, and what stands against class maps in them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpn_fast.device import ready_device
from cpn_fast.files.errors import DataError
from cpn_fast.files.max_side import enlarge
from cpn_fast.models.affinity_labels import with_background_exponent
from cpn_fast.refine.gathering import Gathering
from cpn_fast.refine.options import BackgroundRule
from cpn_kernels.backend import triton_ready
from cpn_kernels.ops.dense_crf import Settings, dense_crf
from cpn_kernels.ops.dense_crf.limits import is_supported

log = logging.getLogger(__name__)

CPU = torch.device("cpu")

TOGETHER = 8
"""Images of one size and number of classes that the GPU refines in one call, where so many wait for it."""

Given = tuple[Tensor, Tensor, Settings, torch.device]
"""uint8 [1, H, W, 3] and float32 [1, C, H, W] on the CPU, the CRF's numbers, and the GPU."""


@dataclass(frozen=True)
class Background:
    """What stands against the class maps.

    Attributes:
        rule: "constant": the score `value` everywhere, as in the mask's argmax; "power": (1 - max) ** `value`, which
            grows where no class is seen.
        value: the score beta or the exponent alpha.
    """

    rule: BackgroundRule
    value: float


def background_scores(maps: NDArray[np.float32], background: Background) -> Tensor:
    """Class maps with the background before them.

    Their argmax is the mask before any refinement: with `constant` that of the labelling at the same beta, with
    `power` too where alpha is log(beta) / log(1 - beta).

    Args:
        maps: float32 [P, h, w] in 0..1.
        background: its rule and number.

    Returns:
        float32 [1, P + 1, h, w] in 0..1, background first; all 1 for P = 0.
    """
    foreground = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None]
    if not len(maps):
        return torch.ones((1, 1, *maps.shape[1:]))
    if background.rule == "power":
        return with_background_exponent(foreground, background.value)
    constant = torch.full_like(foreground[:, :1], background.value)
    return torch.cat([constant, foreground], dim=1)


def as_probabilities(scores: Tensor) -> Tensor:
    """Scores [1, C, h, w] >= 0 scaled to sum to 1 over the classes.

    Mean field sees log-probabilities only up to a constant per pixel, so the scaling decides nothing but what falls
    under the operator's clip.
    """
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)


def crf_device(device: torch.device) -> torch.device:
    """Where the CRF runs for a network on `device`: there, where its kernels run on that GPU, else on the CPU."""
    return device if device.type == "cuda" and triton_ready() else CPU


def crf_probabilities(
    image_id: str, image: NDArray[np.uint8], probabilities: Tensor, crf: Settings, device: torch.device = CPU
) -> Tensor:
    """Dense CRF on one image.

    Args:
        image_id: for the error.
        image: uint8 [H, W, 3].
        probabilities: float32 [1, C, H, W], on the CPU.
        crf: its numbers.
        device: where it runs, of `crf_device`; an image that is too large for it runs on the CPU.

    Returns:
        float32 [1, C, H, W], on the CPU; probabilities of a single class as they are: there is nothing to decide.

    Raises:
        DataError: where the numbers do not fit an image of this size.
    """
    if probabilities.shape[1] == 1:
        return probabilities
    pixels, numbers = torch.from_numpy(image)[None], asdict(crf)
    try:
        if device != CPU and is_supported(probabilities):
            try:
                return _on_gpu((probabilities.shape, crf, device), (pixels, probabilities, crf, device))
            except torch.OutOfMemoryError:
                log.warning("%s: too large for the dense CRF in the GPU's memory; it runs on the CPU", image_id)
        return dense_crf(pixels, probabilities, **numbers)
    except ValueError as error:
        raise DataError(
            f"{image_id}: {error}; give larger --gaussian-sxy, --bilateral-sxy or --bilateral-srgb"
        ) from error


def _together(given: Sequence[Given]) -> Sequence[Tensor]:
    """Dense CRF of images alike on a GPU; each float32 [1, C, H, W] on the CPU, as if it were alone."""
    _, _, crf, device = given[0]
    images = torch.cat([image for image, _, _, _ in given]).to(device)
    probabilities = torch.cat([each for _, each, _, _ in given]).to(device)
    return dense_crf(images, probabilities, **asdict(crf)).cpu().split(1)


_on_gpu: Gathering[Given, Tensor] = Gathering(_together, TOGETHER)
"""One call at a time: threads that wait hold none of the GPU's memory."""


@dataclass(frozen=True)
class CrfStep:
    """Dense CRF at the size of the image (a `RefinementStep`).

    Attributes:
        crf: its numbers.
        device: where it runs, of `crf_device`; it decides no more than the last bits.
    """

    crf: Settings
    device: torch.device = CPU

    def settings(self) -> dict[str, Any]:
        """What decides its result beside its input, JSON-able."""
        return asdict(self.crf)

    def on(self, device: str) -> CrfStep:
        """The same there, where its kernels run on that GPU."""
        return replace(self, device=crf_device(torch.device(ready_device(device))))

    def __call__(self, image_id: str, image: NDArray[np.uint8], scores: Tensor) -> Tensor:
        """Refine the scores float32 [1, C, h, w] >= 0 of one image uint8 [H, W, 3], which they are enlarged to.

        Returns:
            float32 [1, C, H, W].

        Raises:
            DataError: where the numbers do not fit the image.
        """
        full = torch.from_numpy(np.ascontiguousarray(enlarge(scores.numpy(), *image.shape[:2])))
        return crf_probabilities(image_id, image, as_probabilities(full), self.crf, self.device)
