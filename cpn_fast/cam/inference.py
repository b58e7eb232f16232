"""Images through the network, one pass for every map: what labelling, scoring and the report have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cpn_fast.cam.map_options import MapOptions, ResolvedMaps
from cpn_fast.data.types import Record, Sample, Source
from cpn_fast.device import ready_device
from cpn_fast.files.background_score import check_score
from cpn_fast.files.errors import DataError
from cpn_fast.files.max_side import enlarge
from cpn_fast.inference.class_mapping import ClassMapping
from cpn_fast.inference.reader import Failure, InferenceOptions, Reduced, not_finite, samples
from cpn_fast.metrics.beta_sweep import best_foreground
from cpn_fast.metrics.maps import MULTI, MapName, scale_name
from cpn_fast.models.labeller import Labeller, added, normalised, present_channels
from cpn_fast.models.labeller import Maps as LabellerMaps
from cpn_fast.runs.folder import RunFolder


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    Attributes:
        record: which image.
        image: uint8 [H, W, 3].
        mask: ground truth uint8 [H, W] in the network's classes, None without.
        labels: bool [K], the active classes.
        given: bool [K], the image's own labels; None where the network's scores stood in.
        scores: float32 [K], class probabilities.
        classes: int [P], the foreground classes 0..K-1 that the maps hold, ascending: the active ones.
        maps: (map, scale name) -> float32 [P, h, w] normalised to 0..1, at the size the network saw; a class that is
            not in `classes` is zero everywhere.
    """

    record: Record
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    labels: NDArray[np.bool_]
    given: NDArray[np.bool_] | None
    scores: NDArray[np.float32]
    classes: NDArray[np.intp]
    maps: Mapping[tuple[MapName, str], NDArray[np.float32]]

    def at_image_size(self, name: MapName, scale: str = MULTI) -> NDArray[np.float32]:
        """The maps of the active classes, float32 [P, H, W]."""
        return enlarge(self.maps[name, scale], *self.image.shape[:2])

    def best(self, name: MapName, scale: str = MULTI) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """The winning foreground class [H, W] in 0..K-1 and its score float32 [H, W], at image size."""
        height, width = self.image.shape[:2]
        maps = self.maps[name, scale]
        if len(maps) == 0:
            return np.zeros((height, width), np.intp), np.zeros((height, width), np.float32)
        winner, score = best_foreground(maps)
        return enlarge(self.classes[winner], height, width), enlarge(score, height, width)


def open_labeller(
    run: RunFolder,
    options: MapOptions | ResolvedMaps,
    device: str,
    beta: float,
    threshold: float = 0.5,
    compiled: bool = False,
) -> Labeller:
    """The run's network, ready to label on a device.

    Args:
        run: with weights.
        options: how its maps are made.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        beta: background score of the mask, 0..1.
        threshold: class probability above which a class counts as present where labels are missing.
        compiled: torch.compile the network, once for all image sizes.

    Raises:
        DataError: for a device that is not there, an option that is out of range or does not fit the run, or a run
            without weights.
    """
    beta, threshold = check_score(beta, "--beta"), check_score(threshold, "--threshold")
    how = options.resolved(run) if isinstance(options, MapOptions) else options
    device = ready_device(device)
    net = run.load_model(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        compile_net(net)
    settings = run.config.options
    return Labeller(
        net, how.scales, how.flip, beta, threshold, settings.map_norm, settings.scale_resize, how.refine, how.side,
        how.pairs,
    ).to(device)  # fmt: skip


def compile_net(net: nn.Module) -> None:
    """Compile a network in place, once for all image sizes."""
    net.compile(dynamic=True)


def default_map(labeller: Labeller, wanted: Literal["auto", "rcam", "cam"] = "auto") -> MapName:
    """The map that masks are made of: RCAM where there is refinement, else CAM.

    Raises:
        DataError: if RCAM is wanted without refinement.
    """
    if wanted == "rcam" and not labeller.refined:
        raise DataError("--maps rcam: there is no RCAM without refinement; use --refine raw, or --maps cam")
    return ("rcam" if labeller.refined else "cam") if wanted == "auto" else wanted


def predictions(
    labeller: Labeller,
    source: Source,
    records: Sequence[Record],
    mapping: ClassMapping,
    options: InferenceOptions,
    only: MapName | None = None,
) -> Iterator[Prediction | Failure[Record]]:
    """Run the network over `records`: images are read in threads ahead of it and go through in batches of equal size.

    Args:
        labeller: on the device to run on.
        source: reads the records.
        records: the images; the order of the results may differ where sizes do and `batch_size` is above 1.
        mapping: the source's classes in the network's order.
        options: see there.
        only: give this map alone, which saves making the other; None = both where there is refinement.

    Yields:
        a Prediction per image, a Failure for one that could not be read or whose maps or scores are not finite.
    """
    for item in samples(source, records, options):
        if isinstance(item, Failure):
            yield item
        else:
            for prediction in _run(labeller, item, mapping, options, only):
                finite = _is_finite(prediction)
                yield prediction if finite else not_finite(prediction.record, "class maps or scores")


def _is_finite(prediction: Prediction) -> bool:
    # The sum of numbers in 0..1 is finite exactly if they all are, and found without an array of their size.
    sums = (values.sum() for values in (prediction.scores, *prediction.maps.values()))
    return all(bool(np.isfinite(total)) for total in sums)


@torch.inference_mode()
def _run(
    labeller: Labeller,
    batch: Sequence[Reduced],
    mapping: ClassMapping,
    options: InferenceOptions,
    only: MapName | None,
) -> list[Prediction]:
    """One batch of equal size through the network."""
    device = next(labeller.parameters()).device
    given = [_given(sample, mapping, options) for sample, _ in batch]
    unknown = np.full(mapping.num_classes, -1, dtype=np.float32)
    rows = np.stack([unknown if row is None else row.astype(np.float32) for row in given])
    images = torch.from_numpy(np.stack([small for _, small in batch])).to(device)
    found = labeller.scale_maps(images, torch.from_numpy(rows).to(device), present_only=True, with_cam=only != "rcam")
    labels = found.in_force.cpu().numpy() > 0
    channels = present_channels(found.in_force)
    maps = _normalised_maps(labeller, found, found.in_force[:, channels], options.per_scale, only)
    held = [torch.from_numpy(row[channels.cpu().numpy()]) for row in labels]
    return [
        Prediction(
            record=sample.record,
            image=sample.image,
            mask=None if sample.mask is None else mapping.mask(sample.mask),
            labels=labels[i],
            given=given[i],
            scores=found.scores[i].float().cpu().numpy(),
            classes=np.flatnonzero(labels[i]),
            maps={key: value[i][held[i].to(device)].cpu().numpy() for key, value in maps.items()},
        )
        for i, (sample, _) in enumerate(batch)
    ]


def _given(sample: Sample, mapping: ClassMapping, options: InferenceOptions) -> NDArray[np.bool_] | None:
    labels = sample.record.labels
    return mapping.vector(labels) if labels is not None and options.use_labels else None


def _normalised_maps(
    labeller: Labeller, found: LabellerMaps, in_force: torch.Tensor, keep_scales: bool, only: MapName | None
) -> dict[tuple[MapName, str], torch.Tensor]:
    """Normalised maps [B, P, h, w] of all scales together and, if asked for, of each; `rcam` only with refinement."""
    names: tuple[MapName, ...] = ("cam", "rcam") if labeller.refined else ("cam",)
    names = names if only is None else (only,)
    sums: dict[MapName, torch.Tensor | None] = dict.fromkeys(names)
    maps: dict[tuple[MapName, str], torch.Tensor] = {}
    for scale, item in zip(labeller.scales, found.scales, strict=True):
        for name in names:
            raw: torch.Tensor | None = getattr(item, name)
            sums[name] = added(sums[name], raw)
            if keep_scales and raw is not None:
                maps[name, scale_name(scale)] = normalised(raw, in_force, labeller.map_norm)
    for name, total in sums.items():
        if total is not None:
            maps[name, MULTI] = normalised(total, in_force, labeller.map_norm)
    if found.fused is not None and "rcam" in names:
        maps["rcam", MULTI] = found.fused()
    return maps
