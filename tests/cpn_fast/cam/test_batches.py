"""Batches: the same for any number of workers and processes, from any step, and nothing random outside of them."""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpn_fast.cam import batches as batches_module
from cpn_fast.cam.batches import BatchStream, mean_colour, needs_superpixels
from cpn_fast.config.training import (
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    PatchOptions,
    TrainConfig,
    replace_dotted,
)
from cpn_fast.data.loading.random import key64
from cpn_fast.data.loading.steps import steps_per_epoch
from cpn_fast.data.superpixels.cache import SuperpixelCache
from cpn_fast.data.types import Batch, Record, Sample
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import read_image
from cpn_kernels import native_library
from cpn_kernels.ops.superpixels import is_available, superpixels


class Pictures:
    """Eleven smooth random pictures of several sizes with up to two of three labels."""

    classes = ("a", "b", "c")
    spec = "pictures"

    def __init__(self, folder: Path, count: int = 11) -> None:
        numbers = np.random.default_rng(0)
        self.all = []
        for index in range(count):
            small = numbers.integers(0, 256, (4, 5, 3)).astype(np.uint8)
            size = (40 + 3 * index, 50 - index)
            Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
            labels = tuple(sorted({index % 3, (index // 2) % 3}))
            self.all.append(Record(f"img {index}", folder / f"{index}.png", labels))

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def records(self, split: str) -> list[Record]:
        return self.all

    def read(self, record: Record, with_mask: bool = False) -> Sample:
        labels = np.zeros(3, np.float32)
        labels[list(record.labels or ())] = 1.0
        return Sample(record, read_image(record.image_path), labels)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return TrainConfig(
        data="pictures",
        output=Path("unused"),
        loop=LoopOptions(batch_size=4),
        device=DeviceOptions(workers=0),
        augment=AugmentOptions(crop=32),
        patch=PatchOptions(segments=12, cache_dir=tmp_path_factory.mktemp("cache")),
    )


def run(source, config, start=0, stop=7, rank=0, world=1, records=None) -> list[Batch]:
    records = source.records("train") if records is None else records
    return list(BatchStream(source, records, config, start, stop, rank, world))


def digest(batches: list[Batch]) -> str:
    total = hashlib.sha256()
    for batch in batches:
        total.update("|".join(batch.ids).encode())
        for tensor in (batch.images, batch.patches, batch.keys, batch.labels):
            total.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return total.hexdigest()


def test_shapes_types_and_values(source, config):
    batches = run(source, config)
    assert len(batches) == len(BatchStream(source, source.records("train"), config, 0, 7)) == 7
    for batch in batches:
        assert batch.images.shape == (4, 32, 32, 3)
        assert batch.patches.shape == (4, 32, 32)
        assert batch.labels.shape == (4, 3)
        assert [t.dtype for t in (batch.images, batch.patches, batch.keys, batch.labels)] == [
            torch.uint8,
            torch.int32,
            torch.int64,
            torch.float32,
        ]
        assert int(batch.patches.max()) >= 6
        for name, labels in zip(batch.ids, batch.labels, strict=True):
            record = next(record for record in source.all if record.id == name)
            assert tuple(torch.nonzero(labels)[:, 0].tolist()) == record.labels


def test_any_number_of_workers_gives_the_same_batches(source, config):
    alone = digest(run(source, config))
    assert [digest(run(source, replace_dotted(config, {"workers": workers}))) for workers in (1, 3)] == [alone, alone]


def test_a_signal_to_the_whole_group_leaves_the_workers_running(source, config):
    """Ctrl-C and SIGTERM are the parent's to handle: it finishes its step, and the workers serve it until then."""
    whole = run(source, config)
    others = set(multiprocessing.active_children())  # of a stream that another test has begun
    stream = iter(BatchStream(source, source.all, replace_dotted(config, {"workers": 2}), 0, 7))
    batches = [next(stream)]
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGTERM):
        for worker in workers:
            os.kill(worker.pid, number)
    batches += stream
    assert digest(batches) == digest(whole)
    assert not workers & set(multiprocessing.active_children())


@pytest.mark.parametrize("workers", [0, 2])
def test_any_start_step_continues_the_same_stream(source, config, workers):
    whole = run(source, config)
    for start in (1, 2, 5, 7):
        assert digest(run(source, replace_dotted(config, {"workers": workers}), start)) == digest(whole[start:])


def test_ranks_share_the_global_batch_in_order(source, config):
    whole = run(source, config)
    for world in (2, 4):
        parts = [run(source, config, rank=rank, world=world) for rank in range(world)]
        for step, batch in enumerate(whole):
            shares = [part[step] for part in parts]
            assert batch.ids == tuple(name for share in shares for name in share.ids)
            for field in ("images", "patches", "keys", "labels"):
                assert torch.equal(getattr(batch, field), torch.cat([getattr(share, field) for share in shares]))


def test_an_epoch_shows_no_image_twice_and_the_next_one_differs(source, config):
    assert steps_per_epoch(11, 4) == 2
    batches = run(source, config, stop=40)
    orders = [batches[2 * epoch].ids + batches[2 * epoch + 1].ids for epoch in range(20)]
    assert all(len(set(order)) == 8 for order in orders)
    assert len(set(orders)) == 20
    assert {name for order in orders for name in order} == {record.id for record in source.all}


def test_keys_are_those_of_seed_epoch_and_id(source, config):
    for step, batch in enumerate(run(source, config)):
        expected = [key64(0, step // 2, name, "hide") for name in batch.ids]
        assert batch.keys.tolist() == expected


def test_crops_change_with_epoch_and_seed_only(source, config):
    def crops(batches):
        return {
            (step // 2, name): image.numpy().tobytes()
            for step, batch in enumerate(batches)
            for name, image in zip(batch.ids, batch.images, strict=True)
        }

    first, other = crops(run(source, config, stop=8)), crops(run(source, replace_dotted(config, {"seed": 1}), stop=8))
    assert len(set(first.values())) == len(first)
    assert all(first[key] != other[key] for key in first.keys() & other.keys())
    # The crop belongs to (seed, epoch, id), wherever in the epoch the image is shown.
    larger = crops(run(source, replace_dotted(config, {"batch_size": 8}), stop=1))
    shared = {key for key in larger if key in first}
    assert len(shared) >= 4
    assert all(larger[key] == first[key] for key in shared)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_global_numbers_are_left_alone(source, config, workers):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(source, replace_dotted(config, {"workers": workers}), stop=2)
    assert torch.equal(before, torch.get_rng_state())


def test_fewer_images_than_a_batch_are_repeated_with_other_numbers(source, config):
    assert steps_per_epoch(3, 8) == 1
    batches = run(source, replace_dotted(config, {"batch_size": 8}), stop=3, records=source.all[:3])
    for batch in batches:
        assert sorted(batch.ids.count(record.id) for record in source.all[:3]) == [2, 3, 3]
        assert len({image.numpy().tobytes() for image in batch.images}) == 8
        assert len(set(batch.keys.tolist())) == 8


def test_grid_patches_need_no_cache(source, config, tmp_path):
    nowhere = PatchOptions(kind="grid", grid_sides=(112, 224), cache_dir=tmp_path / "unused")
    grid = replace(config, patch=nowhere)
    assert not needs_superpixels(grid)
    sides = set()
    for batch in run(source, grid):
        for patches in batch.patches:
            shown = patches[patches >= 0]
            assert len(shown) > 0
            sides.add(int((patches == int(shown[0])).sum(1).max()))
    assert {8, 16} <= sides
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_maps_on_a_device_give_the_same_batches(source, config, workers):
    kept_there = BatchStream(
        source, source.all, replace_dotted(config, {"workers": workers}), 0, 7, map_device=torch.device("cpu")
    )
    assert digest(list(kept_there)) == digest(run(source, config))


@pytest.mark.parametrize("backend", ["skimage", "auto"])
def test_online_superpixels_are_of_the_crop_and_need_no_cache(source, config, tmp_path, backend):
    patch = PatchOptions(segments=12, superpixels="online", backend=backend, cache_dir=tmp_path / "unused")
    given = replace(config, patch=patch, augment=AugmentOptions(crop=32, resize=(24, 48)))
    assert not needs_superpixels(given)
    batches = run(source, given)
    padded = 0
    for batch in batches:
        for image, patches in zip(batch.images, batch.patches, strict=True):
            shown = torch.nonzero(patches >= 0)
            (top, left), (bottom, right) = shown.min(0).values.tolist(), (shown.max(0).values + 1).tolist()
            part = image[top:bottom, left:right][None]
            assert torch.equal(patches[top:bottom, left:right], superpixels(part, 12, 10.0, backend)[0])
            padded += bool((patches < 0).any())
    assert padded > 0
    assert not (tmp_path / "unused").exists()
    assert digest(run(source, replace_dotted(given, {"workers": 2}))) == digest(batches)


def online(config, backend="native", workers=0):
    patch = PatchOptions(segments=12, superpixels="online", backend=backend)
    device = DeviceOptions(workers=workers)
    return replace(config, patch=patch, augment=AugmentOptions(crop=32, resize=(24, 48)), device=device)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("backend", ["native", "skimage"])
def test_online_superpixels_made_on_a_device_are_those_of_the_host(source, config, monkeypatch, backend, workers):
    if backend == "native" and not native_library.available():
        pytest.skip(native_library.load()[1])
    asked = []
    plain = batches_module.online_patches_of_batch
    monkeypatch.setattr(
        batches_module, "online_patches_of_batch", lambda *given: asked.append(given[0].shape) or plain(*given)
    )
    given = online(config, backend, workers)
    there = list(BatchStream(source, source.all, given, 0, 7, map_device=torch.device("cpu")))
    assert asked == ([(4, 32, 32, 3)] * 7 if backend == "native" else [])
    expected = run(source, given)
    assert any((batch.patches < 0).any() for batch in expected)
    assert digest(there) == digest(expected)


def test_missing_maps_are_made_on_the_device_where_the_backend_runs_there(source, config, tmp_path, monkeypatch):
    devices = []

    def prepare(cache: SuperpixelCache, progress: bool = True, device: torch.device | None = None) -> None:
        devices.append(device)
        plain(cache, progress=False)

    plain = SuperpixelCache.prepare
    monkeypatch.setattr(SuperpixelCache, "prepare", prepare)
    there = torch.device("cpu")
    for backend in ("skimage", "native") if native_library.available() else ("skimage",):
        patch = PatchOptions(segments=12, backend=backend, cache_dir=tmp_path)
        for map_device in (there, None):
            BatchStream(source, source.all, replace(config, patch=patch), 0, 1, map_device=map_device)
    assert devices == [None, None, there, None][: len(devices)]


def test_where_superpixels_run(monkeypatch):
    cpu, gpu, other = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
    assert not any(is_available(device, "skimage") for device in (cpu, gpu, other))
    for there, cuda in ((False, False), (True, False), (True, True)):
        monkeypatch.setattr(native_library, "available", lambda there=there: there)
        monkeypatch.setattr(native_library, "has_cuda", lambda cuda=cuda: cuda)
        assert [is_available(device, "native") for device in (cpu, gpu, other)] == [there, there and cuda, False]
        assert is_available(cpu, "auto") == there


@pytest.mark.gpu
@pytest.mark.skipif(not native_library.has_cuda(), reason="the native library has no CUDA half")
@pytest.mark.parametrize("kind", ["cached", "online"])
def test_a_gpu_gives_the_batches_of_the_host_without_waiting(source, config, kind):
    patch = replace(config.patch, backend="native")
    given = online(config) if kind == "online" else replace(config, patch=patch)
    expected = run(source, given)
    stream = BatchStream(source, source.all, given, 0, 7, map_device=torch.device("cuda"))
    batches = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches.extend(batch.to("cuda") for batch in stream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(batch.patches.is_cuda for batch in batches)
    on_host = [batch.to("cpu") for batch in batches]
    torch.cuda.synchronize()  # Batch.to waits for nothing
    assert digest(on_host) == digest(expected)


def test_methods_without_pairs_get_no_patches(source, config, tmp_path):
    for method in ("cam", "seam", "seam_prcm"):
        patch = PatchOptions(cache_dir=tmp_path / "unused")
        batch = run(source, replace(config, method=method, patch=patch), stop=1)[0]
        assert torch.equal(batch.patches, torch.zeros(4, 1, 1, dtype=torch.int32))
    assert not (tmp_path / "unused").exists()


def test_padding_shows_the_fill(source, config):
    small = replace(config, augment=AugmentOptions(crop=64, resize=(20, 30)))
    stream = BatchStream(source, source.all, small, 0, 2, fill=(1, 2, 3))
    for batch in stream:
        padding = batch.patches < 0
        assert padding.any()
        assert (batch.images[padding] == torch.tensor([1, 2, 3], dtype=torch.uint8)).all()


def test_mean_colour_is_the_mean_over_all_pixels(source):
    pixels = np.concatenate([np.asarray(Image.open(r.image_path)).reshape(-1, 3) for r in source.all])
    assert mean_colour(source, source.all) == pytest.approx((pixels / 255.0).mean(0), abs=1e-12)


def test_errors_say_what_to_do(source, config):
    with pytest.raises(DataError, match="no images"):
        BatchStream(source, [], config, 0, 1)
    with pytest.raises(DataError, match="multiple of 3"):
        BatchStream(source, source.all, config, 0, 1, 0, 3)
    if importlib.util.find_spec("fast_slic") is None:
        absent = replace(config, patch=replace(config.patch, backend="fast-slic"))
        with pytest.raises(DataError, match=r"--patch\.backend fast-slic: .*pip install"):
            BatchStream(source, source.all, absent, 0, 1)
    bare = replace(source.all[0], labels=None)
    with pytest.raises(DataError, match=r"0\.png.*1 of 11"):
        BatchStream(source, [bare, *source.all[1:]], config, 0, 1)
    missing = replace(source.all[0], image_path=Path("/nowhere/x.png"))
    with pytest.raises(DataError, match=r"nowhere"):
        list(BatchStream(source, [missing], replace(config, method="cam"), 0, 1))
