"""Multi-scale, flipped inference of a segmentation network, against NumPy and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpn_fast.config.scales import SEGMENT_SCALES
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.deeplab import DeepLab
from cpn_fast.models.segmenter import Segmenter, allowed_mask
from cpn_kernels.ops.cp_triplet import IMAGENET_MEAN, IMAGENET_STD


class Ramp(nn.Module):
    """Three maps at half the size: red, green on a ramp from left to right (so mirroring shows), and a constant."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))

    def forward(self, views: Tensor) -> Tensor:
        halved = views[:, :, ::2, ::2]
        ramp = torch.linspace(0, 2, halved.shape[3], dtype=views.dtype)
        return torch.stack([halved[:, 0], halved[:, 1] * ramp, torch.full_like(halved[:, 0], 0.3)], dim=1)


def expected_probabilities(image: np.ndarray, scales: tuple[float, ...], flip: bool) -> np.ndarray:
    """What `Segmenter(Ramp())` gives, float64 [3, H, W], by OpenCV's resizing and NumPy."""
    height, width = image.shape[:2]
    view = (image / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    total = np.zeros((3, height, width))
    for scale in scales:
        size = (int(np.floor(width * scale + 0.5)), int(np.floor(height * scale + 0.5)))
        scaled = cv2.resize(view, size, interpolation=cv2.INTER_LINEAR)
        for mirrored in (False, True) if flip else (False,):
            halved = (scaled[:, ::-1] if mirrored else scaled)[::2, ::2]
            ramp = np.linspace(0, 2, halved.shape[1])
            maps = [halved[:, :, 0], halved[:, :, 1] * ramp, np.full(halved.shape[:2], 0.3)]
            logits = np.stack([cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps])
            exponents = np.exp(logits - logits.max(axis=0))
            found = exponents / exponents.sum(axis=0)
            total += found[:, :, ::-1] if mirrored else found
    return total / (len(scales) * (1 + flip))


def picture(height: int, width: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("scales", "flip", "size"),
    [
        ((1.0,), False, (20, 30)),
        ((0.5, 1.0, 1.25), True, (21, 33)),
        (SEGMENT_SCALES, True, (40, 27)),
        ((1.75,), True, (9, 40)),
    ],
)
def test_probabilities_against_numpy_and_opencv(scales: tuple[float, ...], flip: bool, size: tuple[int, int]) -> None:
    images = picture(*size, batch=2)
    found = Segmenter(Ramp(), scales, flip)(torch.from_numpy(images), torch.full((2, 2), -1.0))  # type: ignore[arg-type]
    expected = np.stack([expected_probabilities(image, scales, flip) for image in images])
    np.testing.assert_allclose(found.probabilities.numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(found.probabilities.sum(dim=1).numpy(), 1, atol=1e-5)
    np.testing.assert_allclose(found.scores.numpy(), expected[:, 1:].max(axis=(2, 3)), atol=2e-5)
    assert found.mask.dtype == torch.uint8
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.mask.numpy()[clear], expected.argmax(axis=1)[clear])
    assert len(np.unique(found.mask.numpy())) == 3


def test_background_and_the_given_classes_alone_may_win() -> None:
    probabilities = torch.tensor([[0.1, 0.0, 0.5], [0.2, 0.0, 0.1], [0.7, 1.0, 0.4]])  # [channel, pixel]
    batch = probabilities[None, :, None, :].repeat(5, 1, 1, 1)
    labels = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [-1, -1]])
    expected = [[0, 0, 0], [1, 0, 0], [2, 2, 0], [2, 2, 0], [2, 2, 0]]
    assert allowed_mask(batch, labels)[:, 0].tolist() == expected


def test_of_equal_probabilities_the_lower_index_wins() -> None:
    assert allowed_mask(torch.full((1, 3, 1, 1), 1 / 3), torch.tensor([[-1.0, -1]])).item() == 0


def test_labels_change_the_mask_and_not_what_the_network_says() -> None:
    images = torch.from_numpy(picture(24, 24))
    segmenter = Segmenter(Ramp(), (1.0,), False)  # type: ignore[arg-type]
    free, given = (segmenter(images, torch.tensor([row])) for row in ([-1.0, -1], [0.0, 1]))
    assert torch.equal(free.probabilities, given.probabilities) and torch.equal(free.scores, given.scores)
    assert (free.mask == 1).any() and not (given.mask == 1).any() and (given.mask == 2).any()


def test_a_deeplab_batched_and_alone() -> None:
    torch.manual_seed(0)
    net = DeepLab(create_backbone("resnet38_tiny", frozen=False), 3)
    segmenter = Segmenter(net, (0.5, 1.0))
    assert not net.training
    images = torch.from_numpy(picture(45, 62, batch=3))
    labels = torch.tensor([[-1.0, -1, -1], [1, 0, 0], [0, 0, 0]])
    with torch.no_grad():
        together = segmenter(images, labels)
        assert together.probabilities.shape == (3, 4, 45, 62)
        assert together.mask.shape == (3, 45, 62) and together.scores.shape == (3, 3)
        for index in range(3):
            alone = segmenter(images[index : index + 1], labels[index : index + 1])
            torch.testing.assert_close(together.probabilities[index], alone.probabilities[0], rtol=1e-4, atol=1e-5)
    assert set(together.mask[1].unique().tolist()) <= {0, 1}
    assert not together.mask[2].any()
