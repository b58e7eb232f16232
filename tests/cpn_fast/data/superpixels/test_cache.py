"""The superpixel cache: densities, reuse, damage, and the same maps in one process or several."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpn_fast.config.training import AugmentOptions, PatchOptions
from cpn_fast.data.loading.augment import draw_geometry
from cpn_fast.data.loading.random import generator
from cpn_fast.data.sources.demo_scenes import paint_scene
from cpn_fast.data.superpixels import cache as superpixel_cache
from cpn_fast.data.superpixels import maps as superpixel_maps
from cpn_fast.data.superpixels.cache import SuperpixelCache
from cpn_fast.data.superpixels.maps import DEVICE_BATCH, level_shares
from cpn_fast.data.types import Record, Sample
from cpn_fast.files.errors import DataError
from cpn_fast.files.images import read_image
from cpn_kernels import native_library
from cpn_kernels.ops.superpixels import superpixels

AUGMENT = AugmentOptions(crop=64, resize=(64, 110))


class Pictures:
    """A source of a few PNG files."""

    classes = ("thing",)
    spec = "pictures"

    def __init__(self, folder: Path, images: list[np.ndarray]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number}.png")
        self.count = len(images)

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def records(self, split: str) -> list[Record]:
        return [Record(str(number), self.folder / f"{number}.png", (0,)) for number in range(self.count)]

    def read(self, record: Record, with_mask: bool = False) -> Sample:
        return Sample(record, read_image(record.image_path), np.ones(1, np.float32))


def scenes(count: int) -> list[np.ndarray]:
    return [paint_scene(generator(5, 0, str(number), "scene")).image[:100, :90] for number in range(count)]


@pytest.fixture
def source(tmp_path):
    return Pictures(tmp_path / "images", scenes(4))


def make_cache(
    source: Pictures, folder: Path, segments: int = 50, augment: AugmentOptions = AUGMENT, backend: str = "auto"
):
    options = PatchOptions(segments=segments, cache_dir=folder, backend=backend)
    return SuperpixelCache(source, source.records("train"), options, augment)


def test_level_shares_by_hand():
    wide = level_shares(100, 200, AugmentOptions(crop=100, resize=(100, 400)))
    # Long side 100, 200, 400: the crop sees all of 50x100, 100x100 of 100x200, 100x100 of 200x400.
    assert wide == (1.0, 0.5, 0.125)
    assert level_shares(80, 80, AugmentOptions(crop=100, resize=(50, 50))) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("backend", ["auto", "skimage"])
def test_levels_are_slic_of_the_image_at_the_asked_number(source, tmp_path, backend):
    cache = make_cache(source, tmp_path / "cache", backend=backend)
    summary = cache.prepare(progress=False)
    assert (summary.computed, summary.reused) == (4, 0)
    record = source.records("train")[1]
    image = source.read(record).image
    shares = level_shares(*image.shape[:2], AUGMENT)
    counts = cache.segment_counts(record)
    for level, share in enumerate(shares):
        stored = cache.get(record, share)
        assert stored.dtype == np.uint16
        assert stored.shape == image.shape[:2]
        assert np.array_equal(np.unique(stored), np.arange(counts[level]))
        asked = round(50 / share)
        assert np.array_equal(stored, superpixels(torch.from_numpy(image)[None], asked, 10.0, backend)[0])
        assert 0.8 * asked <= counts[level] <= 1.2 * asked
    assert summary.asked[0] == 50.0
    assert summary.actual_range[2][0] <= counts[2] <= summary.actual_range[2][1]


def test_crops_of_every_scale_see_about_the_asked_number(source, tmp_path):
    cache = make_cache(source, tmp_path / "cache", segments=60)
    cache.prepare(progress=False)
    for long_side in (64, 80, 95, 110):
        seen = []
        for record in source.records("train"):
            size = source.read(record).image.shape[:2]
            for number in range(4):
                options = AugmentOptions(crop=64, resize=(long_side, long_side))
                geometry = draw_geometry(*size, options, generator(0, number, record.id, "crop"))
                patches = geometry.apply_map(cache.get(record, geometry.share_seen))
                # Segments cut by the crop's edge count by their visible half.
                edge = np.unique(np.concatenate([patches[0], patches[-1], patches[:, 0], patches[:, -1]]))
                whole = geometry.share_seen == 1.0
                seen.append(len(np.unique(patches)) - (0 if whole else len(edge) / 2))
        # Between two levels the nearest one is off by up to a quarter; SLIC itself by a tenth.
        assert 0.65 * 60 <= np.mean(seen) <= 1.35 * 60, long_side


def test_second_run_computes_nothing_and_moved_files_count(source, tmp_path):
    first = make_cache(source, tmp_path / "cache")
    first.prepare(progress=False)
    moved = Pictures(tmp_path / "elsewhere", [])
    for path in source.folder.iterdir():
        shutil.copy(path, moved.folder)
    moved.count = source.count
    second = make_cache(moved, tmp_path / "cache")
    summary = second.prepare(progress=False)
    assert (summary.computed, summary.reused) == (0, 4)
    for a, b in zip(source.records("train"), moved.records("train"), strict=True):
        assert np.array_equal(first.get(a, 0.5), second.get(b, 0.5))


@pytest.mark.parametrize("change", ["segments", "compactness", "crop", "resize", "backend"])
def test_any_other_parameter_is_another_map(source, tmp_path, change):
    make_cache(source, tmp_path / "cache").prepare(progress=False)
    patch, augment = PatchOptions(segments=50, cache_dir=tmp_path / "cache"), AUGMENT
    if change == "segments":
        patch = replace(patch, segments=51)
    elif change == "compactness":
        patch = replace(patch, compactness=20.0)
    elif change == "backend":
        if not native_library.available():
            pytest.skip(native_library.load()[1])
        patch = replace(patch, backend="skimage")
    elif change == "crop":
        augment = replace(augment, crop=60)
    else:
        augment = replace(augment, resize=(64, 120))
    cache = SuperpixelCache(source, source.records("train")[:1], patch, augment)
    assert cache.prepare(progress=False).computed == 1


@pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")
def test_native_maps_are_cached_under_the_name_that_auto_means(tmp_path):
    source = Pictures(tmp_path / "images", [image[:40, :40] for image in scenes(20)])
    patch = PatchOptions(segments=20, backend="native", cache_dir=tmp_path / "cache")
    cache = SuperpixelCache(source, source.records("train"), patch, AUGMENT)
    assert cache.prepare(progress=False, processes=2).computed == 20  # in forked helpers
    record = source.records("train")[3]
    image = torch.from_numpy(source.read(record).image)[None]
    share = level_shares(40, 40, AUGMENT)[0]
    assert np.array_equal(cache.get(record, share), superpixels(image, round(20 / share), 10.0, "native")[0])
    auto = SuperpixelCache(source, source.records("train"), replace(patch, backend="auto"), AUGMENT)
    assert auto.prepare(progress=False).reused == 20


def various_pictures(folder: Path) -> Pictures:
    """Two sizes, more of one than a device takes at once, two of the same bytes, and two that ask for other numbers
    of segments once they are reduced to one size."""
    images = [image[:40, :40] for image in scenes(DEVICE_BATCH + 3)]
    large = scenes(1)[0].repeat(3, axis=0).repeat(3, axis=1)[:220]
    images += [image[:30, :50] for image in scenes(3)] + [large[:, :167], large[:, :169], images[0]]
    return Pictures(folder, images)


def assert_same_files(one: Path, two: Path, count: int) -> None:
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*.npz")) for folder in (one, two)]
    assert names[0] == names[1] and len(names[0]) == count
    for name in names[0]:
        with np.load(one / name) as first, np.load(two / name) as second:
            assert list(first) == list(second)
            for key in first:
                assert first[key].dtype == second[key].dtype and np.array_equal(first[key], second[key])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("backend", ["auto", "skimage"])
def test_a_device_gives_the_files_of_the_processes(tmp_path, monkeypatch, backend, processes):
    monkeypatch.setattr(superpixel_cache, "CHUNK", 19)  # several rounds of reading ahead
    source = various_pictures(tmp_path / "images")
    host = make_cache(source, tmp_path / "host", 20, backend=backend)
    device = make_cache(source, tmp_path / "device", 20, backend=backend)
    expected = host.prepare(progress=False, processes=1)
    batches = []
    plain = superpixel_maps.make_maps
    monkeypatch.setattr(
        superpixel_maps, "make_maps", lambda p, *rest: batches.append([x.image.shape for x in p]) or plain(p, *rest)
    )
    found = device.prepare(progress=False, processes=processes, device=torch.device("cpu"))
    # The second of two equal files comes in the second round, when the first one's maps are there.
    assert sum(map(len, batches)) == found.computed == source.count - 1
    assert max(map(len, batches)) == DEVICE_BATCH
    assert all(len(set(shapes)) == 1 for shapes in batches)
    assert (found.asked, found.actual, found.actual_range) == (expected.asked, expected.actual, expected.actual_range)
    assert_same_files(tmp_path / "host", tmp_path / "device", source.count - 1)
    for record in source.records("train"):
        assert np.array_equal(host.get(record, 0.5), device.get(record, 0.5))

    batches.clear()
    next((tmp_path / "device").rglob("*.npz")).unlink()
    again = make_cache(source, tmp_path / "device", 20, backend=backend)
    summary = again.prepare(progress=False, processes=processes, device=torch.device("cpu"))
    assert summary.computed in (1, 2) and sum(map(len, batches)) == summary.computed
    assert summary.computed + summary.reused == source.count


def test_errors_where_a_device_computes_name_the_file(tmp_path):
    source = various_pictures(tmp_path / "images")
    (tmp_path / "full").mkdir()
    for name in range(256):
        (tmp_path / "full" / f"{name:02x}").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"full.*\.npz: cannot write cached superpixels"):
        make_cache(source, tmp_path / "full", 20).prepare(progress=False, device=torch.device("cpu"))
    source.records("train")[20].image_path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"20\.png"):
        make_cache(source, tmp_path / "cache", 20).prepare(progress=False, device=torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not native_library.has_cuda(), reason="the native library has no CUDA half")
def test_a_gpu_gives_the_files_of_the_processes(tmp_path):
    source = various_pictures(tmp_path / "images")
    host, device = (make_cache(source, tmp_path / name, 20, backend="native") for name in ("host", "device"))
    host.prepare(progress=False)
    assert device.prepare(progress=False, device=torch.device("cuda")).computed >= source.count - 1
    assert_same_files(tmp_path / "host", tmp_path / "device", source.count - 1)


def test_a_missing_backend_is_named(source, tmp_path):
    patch = PatchOptions(segments=50, backend="fast-slic", cache_dir=tmp_path / "cache")
    if importlib.util.find_spec("fast_slic") is not None:
        pytest.skip("fast-slic is installed")
    with pytest.raises(ImportError, match="fast-slic"):
        SuperpixelCache(source, source.records("train"), patch, AUGMENT).prepare(progress=False)


def test_changed_image_is_computed_again_and_others_are_kept(source, tmp_path):
    make_cache(source, tmp_path / "cache").prepare(progress=False)
    Image.fromarray(scenes(5)[4]).save(source.folder / "2.png")
    summary = make_cache(source, tmp_path / "cache").prepare(progress=False)
    assert (summary.computed, summary.reused) == (1, 3)


def test_damaged_and_torn_files_are_computed_again(source, tmp_path):
    cache = make_cache(source, tmp_path / "cache")
    cache.prepare(progress=False)
    good = [cache.get(record, 1.0) for record in source.records("train")]
    files = sorted((tmp_path / "cache").rglob("*.npz"))
    assert len(files) == 4
    files[0].write_bytes(files[0].read_bytes()[:200])
    files[1].write_bytes(b"")
    again = make_cache(source, tmp_path / "cache")
    summary = again.prepare(progress=False)
    assert (summary.computed, summary.reused) == (2, 2)
    assert all(np.array_equal(a, again.get(r, 1.0)) for a, r in zip(good, source.records("train"), strict=True))


def test_processes_give_the_maps_of_one_process(tmp_path):
    source = Pictures(tmp_path / "images", [image[:40, :40] for image in scenes(20)])
    one, two = make_cache(source, tmp_path / "one", 20), make_cache(source, tmp_path / "two", 20)
    one.prepare(progress=False, processes=1)
    assert two.prepare(progress=False, processes=2).computed == 20
    for record in source.records("train"):
        assert np.array_equal(one.get(record, 0.4), two.get(record, 0.4))
    names = [sorted(p.name for p in (tmp_path / folder).rglob("*.npz")) for folder in ("one", "two")]
    assert names[0] == names[1]


def test_large_images_are_kept_at_the_size_that_training_shows(tmp_path):
    source = Pictures(tmp_path / "images", [np.zeros((30, 400, 3), np.uint8)])
    cache = make_cache(source, tmp_path / "cache", 10)
    cache.prepare(progress=False)
    assert cache.get(source.records("train")[0], 1.0).shape == (8, 110)


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (3, 2)])
def test_tiny_images_work(tmp_path, size):
    source = Pictures(tmp_path / "images", [np.full((*size, 3), 90, np.uint8)])
    cache = make_cache(source, tmp_path / "cache", 5000)
    cache.prepare(progress=False)
    assert cache.get(source.records("train")[0], 1.0).shape == size


def test_errors_name_the_file(source, tmp_path):
    cache = make_cache(source, tmp_path / "cache")
    record = source.records("train")[0]
    with pytest.raises(DataError, match=r"0\.png.*prepare"):
        cache.get(record, 1.0)
    cache.prepare(progress=False)
    for path in (tmp_path / "cache").rglob("*.npz"):
        path.unlink()
    with pytest.raises(DataError, match=r"\.npz.*delete the file"):
        cache.get(record, 1.0)
    record.image_path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"0\.png"):
        make_cache(source, tmp_path / "cache").prepare(progress=False)
    record.image_path.unlink()
    with pytest.raises(DataError, match=r"0\.png"):
        make_cache(source, tmp_path / "cache").prepare(progress=False)


def test_maps_are_compact_on_disk(source, tmp_path):
    make_cache(source, tmp_path / "cache").prepare(progress=False)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.npz")]
    # Three maps of 100 x 90: a byte per pixel and map at most.
    assert max(sizes) < 3 * 100 * 90
