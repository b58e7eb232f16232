"""Images through a segmentation network: what predicting and scoring have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpn_fast.data.types import Record, Source
from cpn_fast.device import ready_device
from cpn_fast.files.max_side import enlarge
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.options import check_scales
from cpn_fast.inference.reader import Failure, InferenceOptions, Reduced, not_finite, samples
from cpn_fast.metrics.confidence import probability_confidence
from cpn_fast.models.segmenter import Segmenter
from cpn_fast.refine.crf import crf_device, crf_probabilities
from cpn_fast.runs.folder import RunFolder
from cpn_kernels.ops.dense_crf import Settings

_GRID = 256
"""Positions along the long side from which the confidence is counted."""


@dataclass(frozen=True)
class Segmentation:
    """What the network says of one image.

    Attributes:
        record: which image.
        image: uint8 [h, w, 3] as the network saw it: reduced where it is larger than `max_side`.
        size: height and width of the image itself.
        truth: ground truth uint8 [H, W] in the network's classes, None without.
        allowed: bool [K], the classes to which the image's labels limit the mask; None = all.
        masks: uint8 [h, w] by the name of the inference that made it.
        confidence: 0..1, how far the best class leads the second, over all pixels, by the last of these.
        probabilities: float32 [K + 1, h, w] of the last of these, background first; None where they were not asked for.
        device: the network's, where the CRF runs too if it can.
    """

    record: Record
    image: NDArray[np.uint8]
    size: tuple[int, int]
    truth: NDArray[np.uint8] | None
    allowed: NDArray[np.bool_] | None
    masks: Mapping[str, NDArray[np.uint8]]
    confidence: float
    probabilities: Tensor | None
    device: torch.device

    def mask(self, name: str) -> NDArray[np.uint8]:
        """A mask at image size, uint8 [H, W]."""
        return enlarge(self.masks[name], *self.size)

    def crf_mask(self, crf: Settings) -> NDArray[np.uint8]:
        """The mask uint8 [H, W] after a dense CRF over background and the allowed classes (method section 9).

        Raises:
            DataError: where the CRF's numbers do not fit the image.
        """
        assert self.probabilities is not None
        values = np.arange(len(self.probabilities), dtype=np.uint8)
        probabilities = self.probabilities
        if self.allowed is not None:
            values = values[np.concatenate([[True], self.allowed])]
            probabilities = probabilities[torch.from_numpy(values.astype(np.int64))]
            probabilities = probabilities / probabilities.sum(dim=0).clamp(min=1e-12)
        refined = crf_probabilities(self.record.id, self.image, probabilities[None], crf, crf_device(self.device))
        return enlarge(values[refined[0].argmax(dim=0).numpy()], *self.size)


def open_segmenters(
    run: RunFolder, inferences: Mapping[str, tuple[Sequence[float], bool]], device: str
) -> dict[str, Segmenter]:
    """A run's network, ready to segment on a device.

    Args:
        run: of kind "segment", with weights.
        inferences: name -> scale factors, above 0 and at most 4, and whether to run the mirrored image too.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        DataError: for a device that is not there, scales out of range, or a run of another kind or without weights.
    """
    for scales, _ in inferences.values():
        check_scales(scales)
    device = ready_device(device)
    net = run.load_deeplab(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {name: Segmenter(net, scales, flip) for name, (scales, flip) in inferences.items()}


def segmentations(
    segmenters: Mapping[str, Segmenter],
    source: Source,
    records: Sequence[Record],
    mapping: ClassMapping,
    options: InferenceOptions,
    keep_probabilities: bool,
) -> Iterator[Segmentation | Failure[Record]]:
    """Run the network over `records`, images being read in threads ahead of it.

    Args:
        segmenters: of one network, on the device to run on.
        source: reads the records.
        records: the images; the order of the results may differ where sizes do and `batch_size` is above 1.
        mapping: the source's classes in the network's order.
        options: see there; with `use_labels` a mask holds background and the image's own classes only.
        keep_probabilities: give those of the last segmenter.

    Yields:
        a Segmentation per image, a Failure for one that could not be read or whose probabilities are not finite.
    """
    for item in samples(source, records, options):
        if isinstance(item, Failure):
            yield item
        else:
            yield from _run(segmenters, item, mapping, options, keep_probabilities)


def _confidence(probabilities: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> float:
    """Of background and the allowed classes alone, as the mask is. Probabilities are float32 [K + 1, h, w]."""
    if allowed is None:
        return probability_confidence(probabilities)
    among = probabilities[np.concatenate([[True], allowed])]
    return probability_confidence(among / np.maximum(among.sum(axis=0), 1e-12))


@torch.inference_mode()
def _run(
    segmenters: Mapping[str, Segmenter],
    batch: Sequence[Reduced],
    mapping: ClassMapping,
    options: InferenceOptions,
    keep_probabilities: bool,
) -> list[Segmentation | Failure]:
    """One batch of equal size through the network."""
    *_, last = segmenters.values()
    device = next(last.parameters()).device
    given = [
        mapping.vector(sample.record.labels) if options.use_labels and sample.record.labels is not None else None
        for sample, _ in batch
    ]
    unknown = np.full(mapping.num_classes, -1, dtype=np.float32)
    rows = torch.from_numpy(np.stack([unknown if row is None else row.astype(np.float32) for row in given])).to(device)
    images = np.stack([small for _, small in batch])
    on_device = torch.from_numpy(images).to(device)
    found = {name: segmenter(on_device, rows) for name, segmenter in segmenters.items()}
    masks = {name: out.mask.cpu().numpy() for name, out in found.items()}
    sums = torch.stack([out.probabilities.flatten(1).sum(dim=1) for out in found.values()])
    finite = torch.isfinite(sums).all(dim=0).tolist()
    *_, main = found.values()
    probabilities = main.probabilities.float().cpu() if keep_probabilities else None
    step = -(-max(images.shape[1:3]) // _GRID)
    coarse = main.probabilities[:, :, ::step, ::step].float().cpu().numpy()
    return [
        not_finite(sample.record, "probabilities")
        if not finite[i]
        else Segmentation(
            record=sample.record,
            image=images[i],
            size=(sample.image.shape[0], sample.image.shape[1]),
            truth=None if sample.mask is None else mapping.mask(sample.mask),
            allowed=given[i],
            masks={name: mask[i] for name, mask in masks.items()},
            confidence=_confidence(coarse[i], given[i]),
            probabilities=None if probabilities is None else probabilities[i],
            device=device,
        )
        for i, (sample, _) in enumerate(batch)
    ]
