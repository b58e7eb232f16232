"""PRCM against a loop over classes and pixels in float64 numpy, and hand-computed cases."""

import math

import numpy as np
import pytest
import torch

from cpn_fast.models.prcm import (
    RELEASED_TEMPERATURE,
    pixel_region_correlation,
    region_features,
    released_attention,
)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.sqrt((vector**2).sum()), 1e-12)


def loop_prcm(winners, features, embedding, phi, present, form):
    """Section 4 written out for one image: class by class, pixel by pixel."""
    classes, pixels = winners.shape
    regions = []
    temperature = 1.0 if form == "released" else 0.1
    for c in range(classes):
        weights = np.exp(winners[c] / temperature)
        weights /= weights.sum()
        z = sum(weights[i] * features[:, i] for i in range(pixels))
        regions.append(phi @ z)
    out = np.zeros((classes, pixels))
    if form == "released":
        # as it lies in memory: all classes of the first channel, then of the second; read class by class
        flat = [max(regions[c][e], 0.0) for e in range(len(phi)) for c in range(classes)]
        for c in range(classes):
            key = flat[c * len(phi) : (c + 1) * len(phi)]
            dots = np.array([key @ np.maximum(embedding[:, i], 0) for i in range(pixels)]) / math.sqrt(classes)
            attention = np.exp(dots - dots.max())
            out[c] = winners[c] * attention / attention.sum() * present[c]
        return out
    for i in range(pixels):
        logits = {c: 10 * float(unit(regions[c]) @ unit(embedding[:, i])) for c in range(classes) if present[c]}
        total = sum(math.exp(v) for v in logits.values())
        for c, value in logits.items():
            out[c, i] = winners[c, i] * math.exp(value) / total
    return out


@pytest.mark.parametrize("form", ["softmax", "released"])
def test_equals_the_loop_in_float64(form):
    generator = torch.Generator().manual_seed(3)
    winners = torch.rand(2, 4, 7, generator=generator, dtype=torch.float64)
    present = torch.tensor([[True, True, False, True], [True, False, False, True]])
    winners = winners * present[:, :, None]
    features = torch.randn(2, 6, 7, generator=generator, dtype=torch.float64)
    embedding = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    phi = torch.randn(5, 6, generator=generator, dtype=torch.float64)

    found = pixel_region_correlation(winners, features, embedding, phi, present, form)

    for image in range(2):
        expected = loop_prcm(
            winners[image].numpy(),
            features[image].numpy(),
            embedding[image].numpy(),
            phi.numpy(),
            present[image].numpy(),
            form,
        )
        np.testing.assert_allclose(found[image].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_region_features_of_a_hard_map_are_the_mean_over_the_region():
    winners = torch.zeros(1, 1, 4)
    winners[0, 0, :2] = 1.0
    features = torch.tensor([[[2.0, 4.0, 100.0, 100.0]]])
    # softmax of [10, 10, 0, 0]: the two region pixels weigh 1/2 each, less 2e^-10 of the mass outside
    outside = math.exp(-10) / (2 + 2 * math.exp(-10))
    expected = 3 * (1 - 2 * outside) + 200 * outside
    assert region_features(winners, features).item() == pytest.approx(expected, rel=1e-5)


def test_a_class_alone_with_the_background_shares_by_the_sigmoid_of_the_cosine_difference():
    # one pixel whose embedding equals the region of class 1 and is orthogonal to the background's
    winners = torch.tensor([[[0.25], [0.75]]])
    phi = torch.eye(2)
    features = torch.tensor([[[0.0], [1.0]]])
    embedding = torch.tensor([[[1.0], [0.0]]])
    found = pixel_region_correlation(winners, features, embedding, phi, torch.ones(1, 2, dtype=torch.bool))
    # both regions are the same single pixel's feature, so attention is one half each
    torch.testing.assert_close(found, winners / 2)


def test_rows_of_absent_classes_are_zero_and_take_no_share():
    winners = torch.rand(1, 3, 5)
    winners[0, 2] = 0
    features, embedding, phi = torch.randn(1, 4, 5), torch.randn(1, 3, 5), torch.randn(3, 4)
    with_absent = pixel_region_correlation(winners, features, embedding, phi, torch.tensor([[True, True, False]]))
    without = pixel_region_correlation(winners[:, :2], features, embedding, phi, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(with_absent[:, :2], without)
    assert torch.count_nonzero(with_absent[:, 2]) == 0


def test_the_released_form_is_that_of_the_released_code(released):
    features = released["pcm_features"].flatten(2)
    regions = region_features(released["pcm_winners"].flatten(2), features, RELEASED_TEMPERATURE)
    torch.testing.assert_close(regions, released["prcm_regions"].transpose(1, 2), rtol=0, atol=1e-12)
    embedding = released["pcm_f9"].flatten(1) @ features
    found = released_attention(regions, embedding, released["prcm_f10"].flatten(1))
    torch.testing.assert_close(found, released["prcm_attention"].flatten(2), rtol=0, atol=1e-12)
