"""Training crops per second of one core, jittered whole and then cut, and by the operator that jitters what is shown:

    python -m benchmarks.loading --data voc:FOLDER --images 96

prints one JSON object. Both ways make every batch; nothing is printed where they differ in a bit. The first way gives
each crop of plain CAM a map of its one patch too, as the first version did. "packed" is what is left to the loading
processes with `--augment-on device`: the images are read, packed and collated, and no crop is made. Time is that of the
process, not of the clock, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance

from cpn_fast.cam.batches import BatchStream
from cpn_fast.config.training import DeviceOptions, LoopOptions, TrainConfig, replace_dotted
from cpn_fast.data.sources.open import open_source
from cpn_fast.data.types import Record, Source
from cpn_fast.device import tune_allocator
from cpn_kernels.ops.augmented_crop import Packed
from cpn_kernels.ops.jittered_crop import Place, Step

BATCH = 8
ROUNDS = 3
CHANGED = "cpn_fast.data.loading.augment.jittered_crop"
ENHANCERS: dict[str, Callable[[Image.Image], ImageEnhance._Enhance]] = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def whole_then_cut(image: np.ndarray, place: Place, steps: Sequence[Step], fill: tuple[int, int, int]) -> np.ndarray:
    """Pillow on the whole resized image, and the cut at the end."""
    height, width = place.scaled
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    resized = np.asarray(picture)
    picture = Image.fromarray(resized[:, ::-1] if place.flip else resized)
    for kind, amount in steps:
        if kind == "hue":
            hsv = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(round(amount * 256) % 256)
            picture = Image.fromarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))
        else:
            picture = ENHANCERS[kind](picture).enhance(amount)
    out = np.empty((*place.size, 3), np.uint8)
    out[:] = fill
    (top, left), (row, column), (rows, columns) = place.source, place.target, place.extent
    out[row : row + rows, column : column + columns] = np.asarray(picture)[top : top + rows, left : left + columns]
    return out


def no_crops(
    tensors: dict[str, torch.Tensor], side: int, fill: tuple[int, int, int], device: torch.device
) -> torch.Tensor:
    """In the place of `made_crops`: what is packed is let go."""
    numbers = [tensors.pop(name) for name in Packed._fields][2]
    return torch.empty(len(numbers), 0, dtype=torch.uint8)


def one_patch(side: int) -> torch.Tensor:
    """The patches of a crop that has one: 0 where it shows the image, -1 around it."""
    patches = np.full((side, side), -1, np.int32)
    patches[:] = 0
    return torch.from_numpy(patches)


def batches(
    source: Source, records: Sequence[Record], config: TrainConfig, first: bool = False
) -> tuple[list[torch.Tensor], float]:
    """The crops of one epoch, and the seconds of this process per image; with what the `first` version made as well."""
    side, extra = config.augment.crop, first and config.method == "cam"
    stream = iter(BatchStream(source, records, config, 0, len(records) // BATCH))
    crops = [next(stream).images]
    started = time.process_time()
    for batch in stream:
        crops.append(batch.images)
        if extra:
            torch.stack([one_patch(side) for _ in range(BATCH)])
    return crops, (time.process_time() - started) / (len(records) - BATCH)


def main() -> int:
    """Measure all of them, alternating."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--method", choices=["cam", "cpn"], default="cam")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()  # as a training does, whose workers are its children
    source = open_source(given.data)
    records = list(source.records(given.split))[: given.images // BATCH * BATCH]
    config = TrainConfig(
        given.data,
        Path("unused"),
        method=given.method,
        loop=LoopOptions(batch_size=BATCH),
        device=DeviceOptions(workers=0),
    )
    seconds: dict[str, list[float]] = {"before": [], "after": [], "packed": []}
    for _ in range(ROUNDS):
        with patch(CHANGED, whole_then_cut):
            expected, spent = batches(source, records, config, first=True)
            seconds["before"].append(spent)
        found, spent = batches(source, records, config)
        seconds["after"].append(spent)
        with patch("cpn_fast.cam.batches.made_crops", no_crops):
            seconds["packed"].append(batches(source, records, replace_dotted(config, {"augment_on": "device"}))[1])
        if not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
            print("the crops differ", file=sys.stderr)
            return 1
    rates = {name: round(1 / statistics.median(of_way), 1) for name, of_way in seconds.items()}
    print(json.dumps({"images": len(records), "images_per_second_of_a_core": rates}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
