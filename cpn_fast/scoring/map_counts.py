"""What `cpn evaluate` counts of a run's maps: image by image, and in all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cpn_fast.cam.inference import Prediction, predictions
from cpn_fast.data.places import Places
from cpn_fast.data.types import Record
from cpn_fast.device import ready_device
from cpn_fast.files.jobs import Entry, error_entry
from cpn_fast.inference.reader import Failure
from cpn_fast.inference.record_work import NetworkWork
from cpn_fast.metrics.beta_sweep import BetaSweep, Bins, image_bins
from cpn_fast.metrics.classification import classifier_scores
from cpn_fast.metrics.image_counts import ImageCounts, ScoredImages
from cpn_fast.metrics.maps import MULTI, MapName, scale_name
from cpn_fast.models.labeller import Labeller

SweepKey = tuple[MapName, str]
"""A map and a scale, or all of them."""


def sweep_keys(labeller: Labeller) -> list[SweepKey]:
    """Every map at each scale and multi-scale that a labeller gives."""
    single = [scale_name(scale) for scale in labeller.scales]
    of: dict[MapName, list[str]] = {"cam": [*single, MULTI]}
    if labeller.refined:
        of["rcam"] = [MULTI] if labeller.refined_once else [*single, MULTI]
    return [(name, scale) for name, scales in of.items() for scale in scales]


@dataclass(frozen=True, kw_only=True)
class MapCounts(NetworkWork[Prediction | Failure[Record]]):
    """Images through the CAM network, and their maps to counts.

    An entry holds `given` and `scores` as a `Prediction` does, and `bins`: what each sweep gets, None without ground
    truth.

    Attributes:
        labeller: the network.
    """

    verb: ClassVar[str] = "evaluate"

    labeller: Labeller
    workers: int = 1  # counting takes less than the network

    def on_worker(self) -> Self:
        """With the network on the device there."""
        return dataclasses.replace(self, labeller=self.labeller.to(ready_device(self.device)))

    def ready(self, todo: Sequence[Record]) -> Iterator[Prediction | Failure[Record]]:
        """What the network says of each image."""
        return predictions(self.labeller, self.source, todo, self.mapping, self.options)

    def work(self, item: Prediction | Failure[Record]) -> Entry:
        """Count one image. Raises DataError for a mask that does not fit its image."""
        record = item.record
        if isinstance(item, Failure):
            return error_entry(record.id, record.image_path, item.error)
        bins: dict[SweepKey, Bins] | None = None
        if item.mask is not None:
            where, classes = str(record.mask_path or record.image_path), self.mapping.num_classes
            keys = sweep_keys(self.labeller)
            bins = {key: image_bins(*item.best(*key), item.mask, classes, where) for key in keys}
        return {"id": record.id, "status": "ok", "given": item.given, "scores": item.scores, "bins": bins}


@dataclass
class Tally:
    """Everything counted in the one pass over the data.

    Attributes:
        sweeps: a beta sweep for each map at each scale and multi-scale.
        without_mask: images without ground truth.
        from_scores: scored images without labels, for which the network's own scores stood in.
        ids: the scored images, as they came.
        scores: class probabilities [K] of the images that have labels, by id.
        truth: their labels, bool [K].
    """

    sweeps: dict[SweepKey, BetaSweep]
    without_mask: int = 0
    from_scores: int = 0
    ids: list[str] = field(default_factory=list)
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    truth: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    @classmethod
    def of(cls, labeller: Labeller, num_classes: int) -> Tally:
        """An empty tally for the maps and scales that a labeller gives."""
        keys = sweep_keys(labeller)
        return cls({(name, scale): BetaSweep(num_classes, keep_images=scale == MULTI) for name, scale in keys})

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add what `MapCounts` counted of an image."""
        name = entry["id"]
        if entry["given"] is not None:
            self.scores[name] = entry["scores"]
            self.truth[name] = entry["given"]
        if entry["bins"] is None:
            self.without_mask += 1
            return
        self.from_scores += entry["given"] is None
        self.ids.append(name)
        for key, sweep in self.sweeps.items():
            sweep.add(entry["bins"][key])

    def scored_images(self, records: Sequence[Record], classes: Sequence[str]) -> ScoredImages:
        """What was counted of each image, all scales together, in the order of the split."""
        places = Places(records)
        order = sorted(range(len(self.ids)), key=lambda index: places.of(self.ids[index]))
        maps: dict[str, ImageCounts] = {
            name: ImageCounts.of([sweep.per_image[index] for index in order], len(classes))
            for (name, scale), sweep in self.sweeps.items()
            if scale == MULTI
        }
        return ScoredImages(tuple(self.ids[index] for index in order), tuple(classes), maps)

    def classifier(self) -> dict[str, float | None]:
        """`map` and `f1` of the classifier where images have labels of their own."""
        if not self.scores:
            return {"map": None, "f1": None}
        names = sorted(self.scores)  # so that no last bit depends on which image came first
        return classifier_scores(
            np.stack([self.scores[name] for name in names]), np.stack([self.truth[name] for name in names])
        )
