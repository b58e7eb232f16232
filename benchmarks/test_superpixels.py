"""Native SLIC against the published ones, and the patches of a cached image, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.measuring import device_ms
from cpn_fast.config.training import AugmentOptions
from cpn_fast.data.loading.augment import Geometry, draw_geometry
from cpn_fast.data.loading.random import generator
from cpn_fast.data.superpixels.device_maps import DeviceMaps, geometry_numbers
from cpn_kernels import native_library
from cpn_kernels.ops.superpixels import superpixels

SIDE, SEGMENTS = 448, 200

GPU_BATCH = 16

pytestmark = pytest.mark.skipif(not native_library.available(), reason=native_library.load()[1] or "there")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene(number: int = 0) -> np.ndarray:
    """A generated scene at SIDE x SIDE with sensor noise, so that segments are neither given nor hopeless."""
    from cpn_fast.data.sources.demo_scenes import paint_scene

    painted = Image.fromarray(paint_scene(generator(number, 0, "benchmark", "scene")).image)
    pixels = np.array(painted.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
    noise = np.random.default_rng(number).normal(scale=5, size=pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def colour_spread(image: np.ndarray, labels: np.ndarray) -> float:
    """Root mean square distance of the pixels' RGB from their segment's mean."""
    flat = labels.ravel()
    counts = np.bincount(flat)
    total = 0.0
    for channel in image.reshape(-1, 3).T.astype(np.float64):
        mean = np.bincount(flat, channel) / np.maximum(counts, 1)
        total += float(((channel - mean[flat]) ** 2).mean())
    return float(np.sqrt(total))


def check_as_good(image: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> None:
    """About the asked number of segments, and colours within them no further apart than the peer's, to 5%."""
    assert abs(int(ours.max()) + 1 - SEGMENTS) <= SEGMENTS // 10
    assert colour_spread(image, ours) <= 1.05 * colour_spread(image, theirs)


def native(image: np.ndarray) -> np.ndarray:
    return superpixels(torch.from_numpy(image)[None], SEGMENTS, 10.0, "native")[0].numpy()


def test_native_against_skimage(against: Callable[..., float]) -> None:
    from skimage.segmentation import slic

    image = scene()

    def peer() -> np.ndarray:
        # Asked for 200 it gives 150 to 190; the request is what the reference backend asks for 200.
        return slic(image, n_segments=254, compactness=10.0, start_label=0)

    against(
        candidate=lambda: native(image), peer=peer, agree=lambda: check_as_good(image, native(image), peer()), items=1
    )


def test_native_against_fast_slic(against: Callable[..., float]) -> None:
    fast_slic = pytest.importorskip("fast_slic", reason="fast-slic is optional")
    image = scene()

    def peer() -> np.ndarray:
        return fast_slic.Slic(num_components=SEGMENTS, compactness=10.0, num_threads=1).iterate(image).astype(np.int64)

    against(
        candidate=lambda: native(image), peer=peer, agree=lambda: check_as_good(image, native(image), peer()), items=1
    )


def test_patches_of_a_cached_image_against_skimage_and_a_loop(against: Callable[..., float], tmp_path: Path) -> None:
    """A crop's patches from the map on disk, against SLIC of the crop and a mask filled pixel by pixel."""
    from skimage.segmentation import slic

    image = scene()
    np.savez_compressed(tmp_path / "maps.npz", level0=native(image).astype(np.uint16))
    geometry = draw_geometry(SIDE, SIDE, AugmentOptions(crop=SIDE), np.random.default_rng(3))

    def by_loop() -> np.ndarray:
        crop = geometry.cut(geometry.resize(image))
        labels = slic(crop, n_segments=254, compactness=10.0, start_label=0)
        hidden = np.random.default_rng(0).random(int(labels.max()) + 1) < 0.5
        mask = np.zeros(labels.shape, np.float32)
        for row in range(labels.shape[0]):
            for column in range(labels.shape[1]):
                mask[row, column] = 0.0 if hidden[labels[row, column]] else 1.0
        return mask

    def from_cache() -> np.ndarray:
        with np.load(tmp_path / "maps.npz", allow_pickle=False) as stored:
            return geometry.apply_map(stored["level0"])

    def agree() -> None:
        patches, mask = from_cache(), by_loop()
        assert patches.shape == mask.shape
        seen = len(np.unique(patches[patches >= 0]))
        assert 0.3 * SEGMENTS <= seen <= SEGMENTS and 0.3 < mask.mean() < 0.7

    against(candidate=from_cache, peer=by_loop, agree=agree, items=1)


@pytest.mark.gpu
def test_batch_on_the_gpu_against_one_thread(against: Callable[..., float], keep: Callable[..., None]) -> None:
    """Connectivity included; the labels are the CPU's bit for bit."""
    if not native_library.has_cuda():
        pytest.skip("the native library was built without a CUDA compiler")
    there = torch.stack([torch.from_numpy(scene(number)) for number in range(GPU_BATCH)])
    images = there.cuda()

    def on_gpu() -> torch.Tensor:
        return superpixels(images, SEGMENTS, 10.0, "native")

    def on_cpu() -> torch.Tensor:
        return superpixels(there, SEGMENTS, 10.0, "native")

    def agree() -> None:
        assert torch.equal(on_gpu().cpu(), on_cpu())

    against(candidate=on_gpu, peer=on_cpu, agree=agree, items=GPU_BATCH)
    keep(device_ms_per_image=device_ms(on_gpu) / GPU_BATCH)


class _Prepared:
    """Maps of GPU_BATCH images as the cache hands them over, three densities each."""

    def __init__(self) -> None:
        self.maps = [native(scene(number)).astype(np.uint16) for number in range(GPU_BATCH)]

    def levels(self, record: int) -> list[np.ndarray]:
        return [self.maps[record]] * 3

    def map_size(self, record: int) -> tuple[int, int]:
        return SIDE, SIDE

    def segment_counts(self, record: int) -> tuple[int, ...]:
        return (SEGMENTS,) * 3


def crops_of(maps: list[np.ndarray]) -> tuple[list[Geometry], torch.Tensor]:
    """A drawn crop of every map: the geometries, and their numbers for the device."""
    options, rng = AugmentOptions(crop=SIDE), np.random.default_rng(0)
    geometries = [draw_geometry(SIDE, SIDE, options, rng) for _ in maps]
    numbers = [geometry_numbers(geometry, place, 0) for place, geometry in enumerate(geometries)]
    return geometries, torch.from_numpy(np.stack(numbers))


@pytest.mark.gpu
def test_patches_from_device_memory_against_the_host(against: Callable[..., float]) -> None:
    """A step's patches: gathered on the device from maps that lie there, or on the host and copied over."""
    prepared = _Prepared()
    on_device = DeviceMaps(prepared, range(GPU_BATCH), torch.device("cuda"))  # type: ignore[arg-type]
    geometries, numbers = crops_of(prepared.maps)

    def host() -> torch.Tensor:
        crops = [geometry.apply_map(labels) for geometry, labels in zip(geometries, prepared.maps, strict=True)]
        return torch.from_numpy(np.stack(crops)).cuda()

    def gathered() -> torch.Tensor:
        return on_device.crops(numbers, SIDE)

    def agree() -> None:
        assert torch.equal(gathered(), host())

    against(candidate=gathered, peer=host, agree=agree, items=GPU_BATCH)
