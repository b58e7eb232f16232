"""`--augment-on device`: batches, and a training's losses and weights, are those of the host to the bit."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cpn_fast.affinity.batches import AffinityStream
from cpn_fast.cam.batches import BatchStream
from cpn_fast.cam.pixel_masks import open_pixel_masks
from cpn_fast.cam.task import run_train
from cpn_fast.config.training import (
    AffinityConfig,
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    PatchOptions,
    SegmentAugment,
    SegmentConfig,
    SegmentLoop,
    TrainConfig,
    replace_dotted,
)
from cpn_fast.data.loading import crops
from cpn_fast.data.loading.augment import augment
from cpn_fast.data.loading.random import generator
from cpn_fast.data.loading.steps import Span
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.files.soft_maps import SoftMaps
from cpn_fast.runs.checkpoint import load_checkpoint, state_sha256
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.batches import SegmentStream
from cpn_fast.segment.masks import open_masks

AUGMENT = AugmentOptions(crop=64, resize=(48, 140))
FILL = (1, 2, 3)


def digest(batches: Any) -> list[str]:
    found = []
    for batch in batches:
        total = hashlib.sha256("|".join(batch.ids).encode())
        for field in fields(batch)[1:]:
            if (value := getattr(batch, field.name)) is not None:
                assert value.device.type == "cpu"
                total.update(f"{field.name} {value.dtype} {tuple(value.shape)}".encode())
                total.update(np.ascontiguousarray(value.numpy()).tobytes())
        found.append(total.hexdigest())
    return found


@pytest.fixture
def config(small_demo: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=f"demo:{small_demo}",
        output=tmp_path / "run",
        backbone="resnet38_tiny",
        loop=LoopOptions(epochs=2, max_steps=4, batch_size=4, eval_every=0),
        device=DeviceOptions(accelerator="cpu", workers=0),
        augment=AUGMENT,
        patch=PatchOptions(segments=20, cache_dir=tmp_path / "cache"),
        options=MethodOptions(warm_up=0.0),
    )


def on_device(config: Any) -> Any:
    return replace_dotted(config, {"augment_on": "device"})


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "cam"},
        {"patch.kind": "grid"},
        {},
        {"workers": 2},
        {"patch.superpixels": "online", "patch.backend": "skimage"},
        {"patch.superpixels": "online", "workers": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "cached",
)
@pytest.mark.parametrize("there", [None, "cpu"])
def test_batches_of_cpn_train(config: TrainConfig, changes: dict[str, Any], there: str | None) -> None:
    config = replace_dotted(config, changes)
    source = open_source(config.data)
    records = source.records("train")
    device = None if there is None else torch.device(there)
    expected = digest(BatchStream(source, records, config, 0, 3, fill=FILL))
    assert len(set(expected)) == 3
    assert digest(BatchStream(source, records, on_device(config), 0, 3, fill=FILL, map_device=device)) == expected


def test_the_loading_processes_make_no_crop(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = crops.augmented_crop
    monkeypatch.setattr(crops, "augmented_crop", lambda **given: made.append(len(given["numbers"])) or plain(**given))
    monkeypatch.delattr("cpn_fast.data.loading.augment.jittered_crop")
    source = open_source(config.data)
    stream = BatchStream(source, source.records("train"), on_device(config), 0, 3)
    assert [batch.images.shape for batch in stream] == [(4, 64, 64, 3)] * 3
    assert made == [4, 4, 4]


def test_pixel_masks_follow(config: TrainConfig, small_demo: Path) -> None:
    source = open_source(config.data)
    records = source.records("train")
    masks = open_pixel_masks(small_demo / "SegmentationClass", source.classes, records)
    both = [BatchStream(source, records, given, 0, 2, masks=masks) for given in (config, on_device(config))]
    assert digest(both[0]) == digest(both[1])


def test_batches_of_segment_train(small_demo: Path, tmp_path: Path) -> None:
    config = SegmentConfig(
        data=f"demo:{small_demo}", output=tmp_path, masks="truth", loop=SegmentLoop(batch_size=4),
        device=DeviceOptions(workers=0), augment=SegmentAugment(crop=64),
    )  # fmt: skip
    source = open_source(config.data)
    masks, records = open_masks("truth", source), source.records("train")
    host, device = (
        digest(SegmentStream(masks, records, given, Span(0, 3), FILL)) for given in (config, on_device(config))
    )
    assert host == device and len(set(host)) == 3


def test_batches_of_train_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    images = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (40 + number, 56, 3)).astype(np.uint8)).save(path)
        images.append({"id": str(number), "image": str(path)})
    scores = SoftMaps(np.array([0, 1], np.uint8), random.random((2, 10, 14)).astype(np.float32), (40, 56))

    class Store:
        def scores(self, image_id: str) -> tuple[SoftMaps, SoftMaps]:
            return scores, scores

    monkeypatch.setattr("cpn_fast.affinity.batches.read_soft_maps", lambda stored: stored)
    config = AffinityConfig(
        masks=tmp_path, output=tmp_path, loop=LoopOptions(batch_size=2), device=DeviceOptions(workers=0),
        augment=AugmentOptions(crop=32, resize=(24, 60)),
    )  # fmt: skip
    streams = [AffinityStream(images, {}, Store(), given, 8, Span(0, 3)) for given in (config, on_device(config))]  # type: ignore[arg-type]
    assert digest(streams[0]) == digest(streams[1])


def ended(run: RunFolder) -> tuple[str, list[float]]:
    weights = state_sha256(load_checkpoint(run.checkpoint_path)["model"])
    return weights, [record["loss"] for record in run.records("step")]


@pytest.mark.slow
def test_a_training_ends_with_the_same_bits_and_may_change_sides(config: TrainConfig, tmp_path: Path) -> None:
    host = run_train(config)
    device = run_train(replace(on_device(config), output=tmp_path / "device"))
    assert ended(device) == ended(host)
    begun = replace_dotted(replace(config, output=tmp_path / "changed"), {"max_steps": 2})
    run_train(begun)
    changed = run_train(replace_dotted(on_device(begun), {"max_steps": 4, "resume": True}))
    assert ended(changed) == ended(host)


def test_an_image_beyond_32_bits_is_told() -> None:
    flat = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (30000, 30000, 3))
    with pytest.raises(DataError, match=r"30000 x 30000 pixels, .*; use --augment-on host"):
        crops.crop_tensors(flat, AUGMENT, generator(0, 0, "a", "augment"), FILL, packed=True)


def test_unpacked_crops_are_those_of_augment() -> None:
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    tensors, geometry = crops.crop_tensors(image, AUGMENT, generator(0, 0, "a", "augment"), FILL, packed=False)
    expected, place = augment(image, AUGMENT, generator(0, 0, "a", "augment"), FILL)
    assert np.array_equal(tensors["images"].numpy(), expected) and geometry == place
