"""What an exported model says about itself, kept in the ONNX file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from cpn_fast.files.errors import DataError

FORMAT = "cpn-fast labeller"
FORMAT_VERSION = 1
PREFIX = "cpn_fast."

Kind = Literal["cam", "segmentation"]
"""What the network gives: class activation maps, or class probabilities of every pixel, background among them."""

Precision = Literal["float32", "float16", "int8"]
"""The number format of the network in the graph."""

FORMER = {"precision": "variant"}
"""Fields by the names that files of earlier versions have for them."""


@dataclass(frozen=True)
class ModelInfo:
    """What is needed beside the graph to label images.

    Attributes:
        classes: the K foreground class names; mask value c + 1 is `classes[c]`, 0 is background.
        palette: 256 RGB colours of the mask values, each 0..255.
        beta: background score of the mask in the graph, in [0, 1]; None for a segmentation network, which has a
            background of its own.
        threshold: class probability above which a class stands in where an image has no labels; None for a segmentation
            network, which needs no labels.
        max_side: images with a longer side, in pixels, are reduced to it first.
        scales: scale factors in the graph, of the image's size or of `scale_side`.
        flip: the graph also runs the mirrored image.
        map_norm: normalisation of the maps ("minmax" or "max"); None for a segmentation network.
        run: name of the run that was exported.
        method: method of that run.
        backbone: backbone of that run.
        format_version: version of this layout.
        cpn_fast_version: version of cpn-fast that exported the model.
        kind: what the network gives.
        precision: number format of the network.
        scale_side: long side in pixels that scale 1 brings an image to; None = the image's own.
        refine: how RCAM is made: "raw", "learnt", "pixels", "pixels-raw" or "none"; None for a segmentation network.
        refine_at: "fused" or "scale"; None for a segmentation network.
        affinity_power: exponent of the affinities; None for a segmentation network.
        pairs: complementary pairs at every scale.
        crop: side in pixels of the crops that the run was trained on; None = not known.
        miou: mean IoU of the run's masks in 0..1, as `cpn evaluate` last measured it; None = it was not.
        miou_of: the data and split that this was measured on.
        licence: under which terms the weights may be used, as told at the export; "" = nothing was told.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    beta: float | None
    threshold: float | None
    max_side: int
    scales: tuple[float, ...]
    flip: bool
    map_norm: str | None
    run: str
    method: str
    backbone: str
    format_version: int = FORMAT_VERSION
    cpn_fast_version: str = ""
    kind: Kind = "cam"
    precision: Precision = "float32"
    scale_side: int | None = None
    refine: str | None = "learnt"
    refine_at: str | None = "scale"
    affinity_power: float | None = 1.0
    pairs: int = 0
    crop: int | None = None
    miou: float | None = None
    miou_of: str = ""
    licence: str = ""

    def to_metadata(self) -> dict[str, str]:
        """The flat string map that ONNX keeps: every field as JSON under a common prefix."""
        entries = {PREFIX + name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}
        return {PREFIX + "format": FORMAT, **entries}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> ModelInfo:
        """Read the map back.

        Args:
            metadata: the ONNX file's metadata.
            source: the file's name, for errors.

        Raises:
            DataError: if the file is not an exported labeller, of another format version, or lacks a key that has no
                default.
        """
        if metadata.get(PREFIX + "format") != FORMAT:
            raise DataError(
                f"{source}: metadata has no {PREFIX}format = {FORMAT!r}; expected a model from `cpn export`"
            )
        version = metadata.get(PREFIX + "format_version")
        if version != str(FORMAT_VERSION):
            raise DataError(
                f"{source}: metadata key {PREFIX}format_version is {version}, expected {FORMAT_VERSION}; "
                "export the run again with this version of cpn-fast"
            )
        values: dict[str, Any] = {}
        for field in fields(cls):
            key = PREFIX + field.name
            if key not in metadata:
                key = PREFIX + FORMER.get(field.name, field.name)
            if key not in metadata and field.default is not MISSING:
                continue  # a file from before there were others
            try:
                values[field.name] = json.loads(metadata[key])
            except (KeyError, ValueError, RecursionError) as error:
                found = metadata.get(key)
                raise DataError(
                    f"{source}: metadata key {PREFIX}{field.name} is {found!r}, expected JSON; export the run again"
                ) from error
        if values.get("kind", cls.kind) not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise DataError(
                f"{source}: metadata key {PREFIX}kind is {values['kind']!r}, expected one of {known}; "
                "label with the version of cpn-fast that exported it"
            )
        values["classes"] = tuple(values["classes"])
        values["scales"] = tuple(values["scales"])
        values["palette"] = tuple((int(r), int(g), int(b)) for r, g, b in values["palette"])
        return cls(**values)
