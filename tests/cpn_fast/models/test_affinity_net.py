"""AffinityNet: affinities, pair labels and loss against loops in float64; the network on every backbone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cpn_fast.config.training import OptimizerOptions, TrainConfig
from cpn_fast.models.affinity_net import AffinityNet, affinity_loss, pair_affinity, pair_labels
from cpn_fast.models.backbones import BACKBONES, create_backbone
from cpn_fast.training.optimizer import parameter_groups
from cpn_kernels.ops.random_walk import OFFSETS, random_walk

GRIDS = [(1, 1), (1, 3), (2, 2), (3, 9), (5, 5), (7, 4), (9, 11)]


def pairs(height: int, width: int) -> list[tuple[int, int, int, int, int]]:
    """(channel, y, x, partner's y, partner's x) of all pixels nearer than 5 to one another, each pair once."""
    pixels = list(itertools.product(range(height), range(width)))
    return [
        (OFFSETS.index((y2 - y1, x2 - x1)), y1, x1, y2, x2)
        for (y1, x1), (y2, x2) in itertools.combinations(pixels, 2)
        if math.hypot(y2 - y1, x2 - x1) < 5
    ]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_labels(batch: int, height: int, width: int) -> Tensor:
    """Mostly background, two classes, some void."""
    generator = torch.Generator().manual_seed(height * 10 + width)
    return torch.tensor([0, 0, 3, 7, 255])[torch.randint(0, 5, (batch, height, width), generator=generator)]


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_affinity_against_a_loop(height: int, width: int) -> None:
    embedding = draw(2, 6, height, width)
    expected = np.zeros((2, 34, height, width))
    for channel, y, x, y2, x2 in pairs(height, width):
        for image in range(2):
            one, other = embedding[image, :, y, x].tolist(), embedding[image, :, y2, x2].tolist()
            distance = sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 6
            expected[image, channel, y, x] = math.exp(-distance)
    np.testing.assert_allclose(pair_affinity(embedding).numpy(), expected, rtol=1e-12, atol=0)
    single = pair_affinity(embedding.bfloat16())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, pair_affinity(embedding.bfloat16().double()).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_pair_labels_against_a_loop(height: int, width: int) -> None:
    labels = draw_labels(2, height, width)
    expected = np.zeros((3, 2, 34, height, width), dtype=bool)
    for channel, y, x, y2, x2 in pairs(height, width):
        for image in range(2):
            one, other = int(labels[image, y, x]), int(labels[image, y2, x2])
            if 255 not in (one, other):
                kind = 2 if one != other else 0 if one == 0 else 1
                expected[kind, image, channel, y, x] = True
    found = pair_labels(labels)
    assert all(np.array_equal(ours.numpy(), theirs) for ours, theirs in zip(found, expected, strict=True))
    for dtype in (torch.uint8, torch.int32):
        assert all(torch.equal(a, b) for a, b in zip(pair_labels(labels.to(dtype)), found, strict=True))
    other_void = pair_labels(torch.where(labels == 255, -1, labels), void=-1)
    assert all(torch.equal(a, b) for a, b in zip(other_void, found, strict=True))


def loop_loss(affinity: np.ndarray, labels: np.ndarray) -> list[float]:
    sums, counts = [0.0] * 3, [1e-5] * 3
    for channel, y, x, y2, x2 in pairs(*labels.shape[1:]):
        for image in range(len(labels)):
            one, other, value = labels[image, y, x], labels[image, y2, x2], affinity[image, channel, y, x]
            if 255 in (one, other):
                continue
            kind = 2 if one != other else 0 if one == 0 else 1
            sums[kind] -= math.log(1 + 1e-5 - value) if kind == 2 else math.log(value + 1e-5)
            counts[kind] += 1
    parts = [s / n for s, n in zip(sums, counts, strict=True)]
    return [parts[0] / 4 + parts[1] / 4 + parts[2] / 2, *parts]


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_loss_against_a_loop(height: int, width: int) -> None:
    affinity = torch.sigmoid(draw(2, 34, height, width, seed=4))
    labels = draw_labels(2, height, width)
    found = [float(part) for part in affinity_loss(affinity, labels)]
    np.testing.assert_allclose(found, loop_loss(affinity.numpy(), labels.numpy()), rtol=1e-12)


def test_loss_of_right_and_wrong_affinities_and_of_nothing() -> None:
    labels = torch.zeros(1, 6, 8, dtype=torch.int64)
    labels[:, :, 4:] = 2
    known = pair_labels(labels)
    right = (known.background | known.foreground).double()
    assert float(affinity_loss(right, labels).total) == pytest.approx(-math.log(1 + 1e-5), abs=1e-9)
    wrong = affinity_loss(1 - right, labels)
    assert [float(part) for part in wrong] == pytest.approx([-math.log(1e-5)] * 4)
    nothing = affinity_loss(right, torch.full_like(labels, 255))
    assert [float(part) for part in nothing] == [0.0] * 4


def test_gradient_of_the_loss() -> None:
    embedding, labels = draw(1, 3, 4, 6).requires_grad_(), draw_labels(1, 4, 6)
    assert torch.autograd.gradcheck(lambda e: affinity_loss(pair_affinity(e), labels).total, (embedding,))
    alike = torch.ones(1, 3, 4, 6, requires_grad=True)
    loss = affinity_loss(pair_affinity(alike), labels).total
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(alike.grad).all()


def test_an_affinity_that_is_no_number_shows_only_where_it_counts() -> None:
    affinity, labels = torch.full((1, 34, 4, 6), 0.5), torch.zeros(1, 4, 6, dtype=torch.int64)
    labels[0, 0, 0] = 255
    affinity[0, 0, 0, 0] = affinity[0, 0, 0, 5] = float("nan")  # of a void pixel, of a pair that leaves the grid
    assert torch.isfinite(affinity_loss(affinity, labels).total)
    affinity[0, 0, 0, 1] = float("nan")
    assert torch.isnan(affinity_loss(affinity, labels).total)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "resnet38"])
@pytest.mark.parametrize("size", [(64, 64), (65, 49)])
def test_network_on_every_backbone(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = AffinityNet(create_backbone(name)).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        affinity, embedding = net(images), net.embed(images)
    stride = net.backbone.strides[2]
    grid = tuple(-(-side // stride) for side in size)
    assert embedding.shape == (2, 448, *grid) and affinity.shape == (2, 34, *grid)
    inside = torch.zeros(affinity.shape[1:], dtype=torch.bool)
    for channel, y, x, *_ in pairs(*grid):
        inside[channel, y, x] = True
    assert (affinity[:, ~inside] == 0).all() and (affinity[:, inside] > 0).all() and affinity.max() <= 1
    assert torch.equal(affinity, pair_affinity(embedding))
    assert random_walk(affinity, torch.rand(2, 3, *grid), 2).shape == (2, 3, *grid)


def test_a_few_steps_of_training_separate_two_halves() -> None:
    """All layers learn, and the affinity across the edge of two halves falls below that within them."""
    torch.manual_seed(0)
    net = AffinityNet(create_backbone("resnet38_tiny"))
    images = torch.full((1, 3, 64, 64), -1.0)
    images[:, :, :, 32:] = 1.0
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, :, 4:] = 1
    known = pair_labels(labels)
    same = known.background | known.foreground
    config = TrainConfig(data="demo:", output=None, optimizer=OptimizerOptions(weight_decay=0.0))  # type: ignore[arg-type]
    groups = parameter_groups(net, config)
    heads = {id(p) for group in groups if group["name"] == "head" for p in group["params"]}
    new = [net.embed_mid, net.embed_high, net.embed_final, net.mix]
    assert heads == {id(layer.weight) for layer in new}
    optimizer = torch.optim.Adam([p for group in groups for p in group["params"]], lr=1e-3)
    losses = []
    for _ in range(15):
        loss = affinity_loss(net(images), labels).total
        optimizer.zero_grad()
        loss.backward()
        assert all(layer.weight.grad.abs().sum() > 0 for layer in new)
        optimizer.step()
        losses.append(float(loss.detach()))
    affinity = net(images)
    assert losses[-1] < 0.5 * losses[0]
    assert affinity[same].mean() > affinity[known.negative].mean() + 0.2


def test_compiled_without_graph_breaks() -> None:
    embedding, labels = draw(1, 3, 5, 6).float(), draw_labels(1, 5, 6)

    def whole(embedding: Tensor, labels: Tensor) -> Tensor:
        return affinity_loss(pair_affinity(embedding), labels).total

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(embedding, labels), whole(embedding, labels))


@pytest.mark.parametrize(
    ("affinity", "labels", "message"),
    [
        (torch.rand(1, 34, 4, 5), torch.zeros(1, 4, 5), "labels are torch.float32"),
        (torch.rand(1, 34, 4, 5), torch.zeros(4, 5, dtype=torch.int64), "labels are .*expected integers"),
        (torch.rand(1, 34, 4, 5), torch.zeros(1, 5, 4, dtype=torch.int64), "affinity is .*expected"),
        (torch.rand(1, 33, 4, 5), torch.zeros(1, 4, 5, dtype=torch.int64), "affinity is .*expected"),
    ],
)
def test_bad_input_is_named(affinity: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        affinity_loss(affinity, labels)
