"""The random walk of `cpn refine`: against dense matrices in float64, on toy images, and what can go wrong."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from cpn_fast.config.training import AffinityConfig
from cpn_fast.console.terminal import TerminalProgress
from cpn_fast.files.errors import DataError
from cpn_fast.files.masks import read_mask
from cpn_fast.files.soft_maps import SoftMaps, read_soft_maps, write_soft_maps
from cpn_fast.models import create_affinity_net
from cpn_fast.models.affinity_labels import alpha_of_beta
from cpn_fast.models.affinity_net import pair_affinity
from cpn_fast.refine import random_walk
from cpn_fast.refine.command import RefineConfig, run_refine
from cpn_fast.refine.random_walk import WalkStep
from cpn_fast.runs.folder import RunFolder
from cpn_kernels.ops.cp_triplet import normalise_images
from cpn_kernels.ops.dense_crf import SEGMENTATION, dense_crf

CLASSES = ("red", "green", "unseen")


def make_affinity_run(path: Path, seed: int = 0) -> RunFolder:
    config = AffinityConfig(masks=path.parent / "masks", output=path, backbone="resnet38_tiny")
    run = RunFolder(path)
    run.create(config, CLASSES)
    torch.manual_seed(seed)
    net = create_affinity_net(config)
    with torch.no_grad():
        net.mix.weight /= 8  # untrained embeddings lie so far apart that all affinities would be 0
    run.save_model(net, 0)
    return run


@pytest.fixture(scope="module")
def affinity_run(tmp_path_factory):
    return make_affinity_run(tmp_path_factory.mktemp("runs") / "aff")


@pytest.fixture(scope="module")
def toys(make_labelling, tmp_path_factory):
    """Four labelled images; do not change it."""
    return make_labelling(tmp_path_factory.mktemp("labelled") / "masks", classes=CLASSES)


@pytest.fixture
def masks(toys, tmp_path):
    """The same, to change."""
    return shutil.copytree(toys, tmp_path / "masks")


def config(masks: Path, run: RunFolder | Path, output: Path, **more) -> RefineConfig:
    walk = getattr(run, "path", run)
    return RefineConfig(masks, output, **({"random_walk": walk, "workers": 2, "device": "cpu"} | more))


def lines(folder: Path) -> dict:
    return {e["id"]: e for e in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())}


def found(folder: Path) -> dict:
    return {path.stem: read_mask(path) for path in (folder / "SegmentationClass").glob("*.png")}


def enlarged(maps: np.ndarray, factor: int, size: tuple[int, int]) -> np.ndarray:
    """Bilinear by hand, samples at the cells' centres, edges repeated; cut to `size`."""
    for axis, length in ((1, size[0]), (2, size[1])):
        place = (np.arange(length) + 0.5) / factor - 0.5
        low = np.clip(np.floor(place).astype(int), 0, maps.shape[axis] - 1)
        high = np.minimum(low + 1, maps.shape[axis] - 1)
        share = np.clip(place - low, 0, 1)
        share = share[:, None] if axis == 1 else share
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


@pytest.mark.parametrize(("height", "width"), [(37, 50), (8, 41), (5, 3)])
def test_walk_equals_dense_matrices(affinity_run, height, width):
    """Affinity, transition matrix, its power, pooling and enlarging in float64, with cells cut by the border."""
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    scores = rng.random((3, height, width), dtype=np.float32)
    net, steps, power = affinity_run.load_affinity_net(), 5, 3
    result = WalkStep(net, "", steps, power, 1.0)("x", image, torch.from_numpy(scores)[None])

    with torch.no_grad():
        embedding = net.embed(normalise_images(torch.from_numpy(image)[None]))[0].double().numpy()
    h, w = math.ceil(height / 8), math.ceil(width / 8)
    assert embedding.shape[1:] == (h, w)
    cells = [(y, x) for y in range(h) for x in range(w)]
    dense = np.array(
        [
            [
                np.exp(-np.abs(embedding[:, a, b] - embedding[:, c, d]).mean()) if math.hypot(a - c, b - d) < 5 else 0
                for c, d in cells
            ]
            for a, b in cells
        ]
    )
    transition = dense**power / (dense**power).sum(0)
    assert h * w == 1 or 0.01 < transition[0, 0] < 0.99
    pooled = np.array(
        [[plane[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean() for y, x in cells] for plane in scores.astype(np.float64)]
    )
    walked = (pooled @ np.linalg.matrix_power(transition, steps)).reshape(3, h, w)
    expected = enlarged(walked, 8, (height, width))
    assert result.shape == (1, 3, height, width)
    assert np.abs(result[0].numpy() - expected).max() < 1e-5


class ColourNet(nn.Module):
    """Affinities by the mean colour of 8 x 8 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_final = nn.Conv2d(3, 1, 1)
        self.backbone = SimpleNamespace(strides=(8, 8, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return pair_affinity(F.avg_pool2d(images, 8, ceil_mode=True))


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
def test_a_seed_spreads_over_its_region_and_not_over_the_edge(scale):
    image = np.zeros((96, 128, 3), np.uint8)
    image[:, :64] = (220, 30, 30)
    image[:, 64:] = (20, 40, 210)
    foreground = torch.zeros(1, 1, 96, 128)
    foreground[..., 32:48, 16:32] = 1  # a seed in the red half
    scores = torch.cat([torch.full_like(foreground, 0.02), foreground], dim=1)
    assert (scores[0, 1] > scores[0, 0]).float().mean() < 0.03
    mask = WalkStep(ColourNet(), "", 256, 8, scale)("x", image, scores)[0].argmax(0)
    edge = round(8 / scale)  # a cell: what lies on the edge is blurred by as much
    assert mask[:, : 64 - edge].float().mean() == 1 and mask[:, 64 + edge :].sum() == 0


def test_steps_and_power_of_nothing(affinity_run):
    image, scores = np.zeros((16, 24, 3), np.uint8), torch.rand(1, 2, 2, 3)
    blocks = scores.repeat_interleave(8, 2).repeat_interleave(8, 3)
    still = WalkStep(affinity_run.load_affinity_net(), "", 0, 8, 1.0)("x", image, blocks)
    expected = enlarged(scores[0].numpy(), 8, (16, 24))
    assert np.abs(still[0].numpy() - expected).max() < 1e-6


class Elsewhere(nn.Module):
    """`ColourNet` on a device that is not plain CPU, which stands for a GPU of a memory of `most` images.

    Attributes:
        calls: images of each call.
        hold: what the first call does before it goes on.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.backbone, self.device = SimpleNamespace(strides=(8, 8, 8)), torch.device("cpu", 0)
        self.most, self.calls, self.hold = most, [], lambda: None

    @property
    def embed_final(self) -> SimpleNamespace:
        return SimpleNamespace(weight=SimpleNamespace(device=self.device))

    def cpu(self) -> Elsewhere:
        self.device = torch.device("cpu")
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(images))
        if len(self.calls) == 1:
            self.hold()
        if self.device.index is not None and len(images) > self.most:
            raise torch.OutOfMemoryError
        return ColourNet.forward(self, images)


@pytest.mark.parametrize("most", [8, 1])
def test_images_that_wait_for_the_gpu_walk_together_and_as_if_alone(most):
    """Where they do not fit into its memory together, they go one by one."""
    rng = np.random.default_rng(5)
    sizes = [(16, 24)] * 4 + [(24, 16)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    scores = [torch.from_numpy(rng.random((1, 3, *size), dtype=np.float32)) for size in sizes]
    expected = [WalkStep(ColourNet(), "", 4, 2, 1.0)("x", *pair) for pair in zip(images, scores, strict=True)]
    net, held, free = Elsewhere(most), threading.Event(), threading.Event()
    net.hold = lambda: (held.set(), free.wait(20))
    step = WalkStep(net, "", 4, 2, 1.0)
    with ThreadPoolExecutor(5) as pool:
        found = [pool.submit(step, "x", images[0], scores[0])]
        assert held.wait(20)
        found += [pool.submit(step, "x", *pair) for pair in zip(images[1:], scores[1:], strict=True)]
        while len(random_walk._on_gpu._waiting) < 4:
            time.sleep(0.01)
        free.set()
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one.result(20), other, rtol=0, atol=1e-6)
    assert net.calls[0] == 1 and 3 in net.calls and sum(net.calls) == (5 if most == 8 else 10)


def test_what_does_not_fit_into_the_memory_of_the_gpu_walks_on_the_cpu(caplog):
    image = np.random.default_rng(2).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    scores = torch.rand(1, 2, 16, 24, generator=torch.Generator().manual_seed(2))
    net = Elsewhere(0)
    found = WalkStep(net, "", 4, 2, 1.0)("photo", image, scores)
    assert torch.equal(found, WalkStep(ColourNet(), "", 4, 2, 1.0)("x", image, scores))
    assert "photo: too large for the random walk" in caplog.text
    assert net.device.index == 0  # where it was, for the next image


def test_masks_are_those_of_the_walk_from_the_power_of_beta(toys, affinity_run, tmp_path, capsys):
    summary = run_refine(config(toys, affinity_run, tmp_path / "out", steps=8, beta=0.3), TerminalProgress())
    assert (summary.written, summary.failed) == (4, 0)
    alpha, net = alpha_of_beta(0.3), affinity_run.load_affinity_net()
    masks = found(tmp_path / "out")
    for name, entry in lines(toys).items():
        image = np.asarray(Image.open(entry["image"]))
        soft = read_soft_maps(toys / "SoftMaps" / f"{name}.npz")
        scores = torch.from_numpy(np.concatenate([(1 - soft.maps) ** alpha, soft.maps]))[None]
        walked = WalkStep(net, "", 8, 16, 1.0)(name, image, scores.float())[0].argmax(0).numpy()
        assert np.mean(masks[name] == np.array([0, soft.classes[0]])[walked]) > 0.999
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["background"], settings["value"]) == ("power", pytest.approx(alpha))
    assert (settings["walk_steps"], settings["walk_power"], settings["walk_scale"]) == (8, 16, 1.0)
    assert "walk_steps 8" in capsys.readouterr().out


def test_the_crf_after_the_walk_begins_with_its_scores(toys, affinity_run, tmp_path):
    walk = {"steps": 8, "power": 8, "alpha": 2.0}
    run_refine(config(toys, affinity_run, tmp_path / "both", crf=True, iterations=3, **walk))
    name, entry = next(iter(lines(toys).items()))
    image = np.asarray(Image.open(entry["image"])).copy()
    soft = read_soft_maps(toys / "SoftMaps" / f"{name}.npz")
    scores = torch.from_numpy(np.concatenate([(1 - soft.maps) ** 2, soft.maps]))[None]
    walked = WalkStep(affinity_run.load_affinity_net(), "", 8, 8, 1.0)(name, image, scores)
    crf = asdict(SEGMENTATION) | {"iterations": 3}
    refined = dense_crf(torch.from_numpy(image)[None], walked / walked.sum(1, keepdim=True), **crf)[0].argmax(0).numpy()
    assert np.mean(found(tmp_path / "both")[name] == np.array([0, soft.classes[0]])[refined]) > 0.999


def test_soft_maps_give_the_mask_at_the_stated_beta_and_can_be_refined_further(toys, affinity_run, tmp_path):
    out = tmp_path / "walked"
    run_refine(config(toys, affinity_run, out, steps=8, soft_maps=True))
    beta = json.loads((out / "settings.json").read_text())["beta"]
    for name, mask in found(out).items():
        soft = read_soft_maps(out / "SoftMaps" / f"{name}.npz")
        decided = np.abs(soft.maps[0] - beta) > 1 / 255  # stored to 1/255
        assert np.array_equal((soft.maps[0] > beta)[decided], (mask > 0)[decided]) and decided.mean() > 0.9
    further = config(out, affinity_run, tmp_path / "further", random_walk=None, crf=True, iterations=0)
    run_refine(further)
    assert min(np.mean(m == found(out)[n]) for n, m in found(tmp_path / "further").items()) > 0.97
    (out / "SoftMaps" / "1.npz").unlink()
    again = run_refine(config(toys, affinity_run, out, steps=8, soft_maps=True))
    assert (again.written, again.skipped) == (1, 3)


def test_class_order_is_the_labelling_s_not_the_run_s(make_labelling, affinity_run, toys, tmp_path):
    other = make_labelling(tmp_path / "other", classes=("unseen", "green", "extra", "red"))
    run_refine(config(toys, affinity_run, tmp_path / "a", steps=8))
    run_refine(config(other, affinity_run, tmp_path / "b", steps=8))
    table = np.array([0, 4, 2, 1])  # red, green, unseen in the other order
    first, second = found(tmp_path / "a"), found(tmp_path / "b")
    assert all(np.array_equal(table[mask], second[name]) for name, mask in first.items())
    assert {2, 4} <= set(np.unique(list(second.values())))


def test_maps_of_a_reduced_image_walk_at_their_size(masks, affinity_run, tmp_path):
    path = masks / "SoftMaps" / "0.npz"
    soft = read_soft_maps(path)
    write_soft_maps(path, SoftMaps(soft.classes, soft.maps[:, ::2, ::2], soft.size))
    run_refine(config(masks, affinity_run, tmp_path / "out", steps=8, crf=True, iterations=1))
    assert found(tmp_path / "out")["0"].shape == (40, 56)


def test_workers_change_nothing_and_a_second_call_does_what_is_missing(toys, affinity_run, tmp_path):
    for workers in (1, 3):
        run_refine(config(toys, affinity_run, tmp_path / str(workers), workers=workers))
    first, second = found(tmp_path / "1"), found(tmp_path / "3")
    assert all(np.array_equal(mask, second[name]) for name, mask in first.items())
    (tmp_path / "1" / "SegmentationClass" / "2.png").unlink()
    summary = run_refine(config(toys, affinity_run, tmp_path / "1"))
    assert (summary.written, summary.skipped) == (1, 3)


def test_an_image_that_is_gone_is_recorded_and_the_rest_goes_on(masks, affinity_run, tmp_path):
    text = (masks / "manifest.jsonl").read_text()
    (masks / "manifest.jsonl").write_text(text.replace("images/1.png", "images/gone.png"))
    summary = run_refine(config(masks, affinity_run, tmp_path / "out"))
    assert (summary.written, summary.failed) == (3, 1)
    assert "gone.png" in lines(tmp_path / "out")["1"]["error"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 9}, "walk_steps"),
        ({"power": 2}, "walk_power"),
        ({"scale": 2.0}, "walk_scale"),
        ({"alpha": 3.0}, "value"),
        ({"background": "constant"}, "background"),
        ({"crf": True}, "bilateral_sxy"),
        ({"random_walk": "other"}, "walk_weights_sha256"),
    ],
)
def test_other_settings_are_refused(toys, affinity_run, tmp_path, change, named):
    if "random_walk" in change:
        change = {"random_walk": make_affinity_run(tmp_path / "aff", seed=1).path}
    run_refine(config(toys, affinity_run, tmp_path / "out"))
    with pytest.raises(DataError, match=rf"refined with other settings: .*{named} \(there"):
        run_refine(config(toys, affinity_run, tmp_path / "out", **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"random_walk": None}, "--random-walk RUN"),
        ({"steps": -1}, "--steps -1"),
        ({"power": 0}, "--power 0"),
        ({"scale": 0.0}, "--scale 0.0"),
        ({"scale": 5.0}, "--scale 5.0"),
        ({"alpha": float("nan")}, "--alpha nan"),
        ({"beta": 0.0}, "no exponent decides as it does"),
        ({"hard": True}, "leave out --hard"),
        ({"background": "constant", "alpha": 2.0}, "--alpha is the number"),
        ({"random_walk": Path("nowhere")}, r"nowhere: no run there; expected the --output of `cpn train-affinity`"),
    ],
)
def test_options_that_do_not_fit(toys, affinity_run, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        run_refine(config(toys, affinity_run, tmp_path / "out", **change))
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_run_of_another_kind_is_refused(toys, make_run, tmp_path):
    with pytest.raises(DataError, match=r"a run of task 'train'.*, expected one of 'affinity'"):
        run_refine(config(toys, make_run(tmp_path / "cam"), tmp_path / "out"))
