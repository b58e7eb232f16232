"""Where the dense CRF of `cpn refine` and `cpn segment predict` runs; the device "meta" stands for a GPU."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cpn_fast.data.types import Record
from cpn_fast.refine import command, crf
from cpn_fast.refine.gathering import Gathering
from cpn_fast.refine.options import RefineConfig
from cpn_fast.segment import inference
from cpn_fast.segment.inference import Segmentation
from cpn_kernels.ops.dense_crf import SEGMENTATION, dense_crf

GPU = torch.device("meta")
NUMBERS = replace(SEGMENTATION, iterations=2)
Taken = list[tuple[torch.device, torch.device]]


def sample() -> tuple[np.ndarray, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (9, 12, 3), generator=generator, dtype=torch.uint8).numpy()
    return image, torch.rand(1, 3, 9, 12, generator=generator).softmax(dim=1)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """The devices of what the operator is given; on the fake GPU it answers with the CPU's result."""
    found: Taken = []
    image, probabilities = sample()

    def fake(images: Tensor, given: Tensor, **numbers: Any) -> Tensor:
        found.append((images.device, given.device))
        if given.device == GPU:
            return dense_crf(torch.from_numpy(image)[None], probabilities, **numbers)
        return dense_crf(images, given, **numbers)

    monkeypatch.setattr(crf, "dense_crf", fake)
    return found


def expected() -> Tensor:
    image, probabilities = sample()
    return dense_crf(torch.from_numpy(image)[None], probabilities, **asdict(NUMBERS))


def test_the_kernels_of_a_new_enough_gpu_are_taken_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf, "triton_ready", lambda: True)
    assert crf.crf_device(torch.device("cuda")) == torch.device("cuda")
    assert crf.crf_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(crf, "triton_ready", lambda: False)
    assert crf.crf_device(torch.device("cuda")) == torch.device("cpu")


def test_on_the_cpu_the_operator_is_given_what_it_was(taken: Taken) -> None:
    image, probabilities = sample()
    assert torch.equal(crf.crf_probabilities("a", image, probabilities, NUMBERS), expected())
    assert taken == [(torch.device("cpu"),) * 2]


def test_on_a_gpu_image_and_probabilities_lie_there_and_the_result_comes_back(taken: Taken) -> None:
    image, probabilities = sample()
    found = crf.crf_probabilities("a", image, probabilities, NUMBERS, GPU)
    assert taken == [(GPU, GPU)] and found.device.type == "cpu" and torch.equal(found, expected())


def test_what_the_gpu_has_no_memory_for_or_its_kernels_do_not_take_runs_on_the_cpu(
    taken: Taken, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image, probabilities = sample()
    given = crf.dense_crf

    def full(images: Tensor, probabilities: Tensor, **numbers: Any) -> Tensor:
        if probabilities.device == GPU:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return given(images, probabilities, **numbers)

    monkeypatch.setattr(crf, "dense_crf", full)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(crf.crf_probabilities("a/b", image, probabilities, NUMBERS, GPU), expected())
    assert "a/b: too large for the dense CRF in the GPU's memory; it runs on the CPU" in caplog.text
    taken.clear()
    many = torch.full((1, 257, 9, 12), 1 / 257)
    crf.crf_probabilities("a", image, many, replace(NUMBERS, iterations=0), GPU)
    assert taken == [(torch.device("cpu"),) * 2]


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Let a module's `crf_device` give the fake GPU for one that it takes for a GPU."""

    def put(module: object) -> None:
        monkeypatch.setattr(module, "crf_device", lambda device: GPU if device.type == "cuda" else device)

    return put


def test_refine_gives_its_device_to_the_crf(
    fake_gpu: Callable[[object], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    fake_gpu(command)
    for asked, wanted in (("cpu", torch.device("cpu")), ("cuda", GPU)):
        monkeypatch.setattr(command, "ready_device", lambda device: device)
        config = RefineConfig(tmp_path, tmp_path / "out", crf=True, device=asked)  # type: ignore[arg-type]
        (step,) = command._steps(config, NUMBERS)
        assert isinstance(step, crf.CrfStep) and step.device == wanted
        assert step.settings() == asdict(NUMBERS)  # where it ran does not make an output folder another one


def test_a_step_and_a_segmentation_run_where_they_say(taken: Taken, fake_gpu: Callable[[object], None]) -> None:
    image, probabilities = sample()
    found = crf.CrfStep(NUMBERS, GPU)("a", image, probabilities)
    assert taken == [(GPU, GPU)] and torch.equal(found, expected())
    taken.clear()
    fake_gpu(inference)
    for device in (torch.device("cuda"), torch.device("cpu")):
        record = Record("a", "a.jpg", None, None)  # type: ignore[arg-type]
        segmentation = Segmentation(record, image, (9, 12), None, None, {}, 1.0, probabilities[0], device)
        mask = segmentation.crf_mask(NUMBERS)
        np.testing.assert_array_equal(mask, expected()[0].argmax(dim=0).numpy())
    assert taken == [(GPU, GPU), (torch.device("cpu"),) * 2]


def test_images_that_wait_for_the_gpu_are_refined_together_and_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads wait while a first one holds the GPU; what they get is what each gets alone on the CPU."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (9, 12, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(4)]
    scores = [torch.rand(1, 3, 9, 12, generator=generator).softmax(dim=1) for _ in range(3)]
    scores.append(torch.rand(1, 2, 9, 12, generator=generator).softmax(dim=1))  # other classes: a call of its own
    expected = [crf.crf_probabilities("a", *pair, NUMBERS) for pair in zip(images, scores, strict=True)]
    held, free, calls = threading.Event(), threading.Event(), list[tuple[int, ...]]()

    def on_gpu(batch: Tensor, given: Tensor, **numbers: Any) -> Tensor:
        calls.append(tuple(given.shape[:2]))
        if len(calls) == 1:
            held.set()
            assert free.wait(20)
        return dense_crf(batch, given, **numbers)

    monkeypatch.setattr(crf, "dense_crf", on_gpu)
    there = torch.device("cpu", 0)  # another device than CPU, whose values are known
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(crf.crf_probabilities, "a", images[0], scores[0], NUMBERS, there)]
        assert held.wait(20)
        for image, given in zip(images[1:], scores[1:], strict=True):
            found.append(pool.submit(crf.crf_probabilities, "a", image, given, NUMBERS, there))
        while len(crf._on_gpu._waiting) < 3:
            time.sleep(0.01)
        free.set()
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.result(20), other)
    assert calls[0] == (1, 3) and sorted(calls[1:]) == [(1, 2), (2, 3)] and not crf._on_gpu._waiting


def test_what_fails_together_is_done_one_by_one() -> None:
    """And an error is that of the request that makes it alone."""
    held, free, calls = threading.Event(), threading.Event(), list[list[int]]()

    def halve(given: Sequence[int]) -> list[float]:
        calls.append(list(given))
        if len(calls) == 1:
            held.set()
            assert free.wait(20)
        if len(given) > 1 or given[0] == 0:
            raise ValueError(f"not {given}")
        return [1 / number for number in given]

    gathering: Gathering[int, float] = Gathering(halve, 8)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(gathering, "kind", 4)]
        assert held.wait(20)
        found += [pool.submit(gathering, "kind", number) for number in (2, 0)]
        while len(gathering._waiting) < 2:
            time.sleep(0.01)
        free.set()
        assert (found[0].result(20), found[1].result(20)) == (0.25, 0.5)
        with pytest.raises(ValueError, match=r"not \[0\]"):
            found[2].result(20)
    assert [2] in calls and [0] in calls and not gathering._waiting
