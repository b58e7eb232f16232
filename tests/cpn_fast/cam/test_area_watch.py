"""The watch over the CAMs' area: what it warns of, when, and that a healthy run hears nothing."""

import logging
import re

import pytest
import torch

from cpn_fast.cam.area_watch import WINDOW, AreaWatch
from cpn_fast.training.tensorboard import MapStatistics


def sums(area: float, images: int = 5) -> torch.Tensor:
    """What the statistics hold after `images` images of the first of two classes, all covered to `area`."""
    statistics = MapStatistics(2, torch.device("cpu"))
    maps = torch.zeros(images, 2, 1, 1000)
    maps[:, 0, 0, : round(1000 * area)] = 0.9
    labels = torch.zeros(images, 2)
    labels[:, 0] = 1
    statistics.update("cam", maps, labels)
    return statistics.take()["cam"]


def warnings(watch: AreaWatch, areas: list[float]) -> list[tuple[int, str]]:
    """(record, warning) of records ten steps apart."""
    found = [(number, watch.observe(10 * number, sums(area))) for number, area in enumerate(areas, 1)]
    return [(number, text) for number, text in found if text is not None]


WARM_UP = 2 * WINDOW
"""Records of a warm-up whose two halves can be compared."""


def test_maps_that_shrink_after_the_warm_up_are_warned_of_once() -> None:
    areas = [0.3] * 5 + [0.16] * WARM_UP + [0.15] * 3 + [0.08] * 40
    found = warnings(AreaWatch(10 * (5 + WARM_UP)), areas)
    # the first full window, (3 * 0.15 + 17 * 0.08) / 20 = 0.0905, is below 0.6 * 0.16 = 0.096
    assert [number for number, _ in found] == [5 + WARM_UP + WINDOW]
    text = found[0][1]
    assert text.startswith("step 650: the CAMs shrink to their peaks: 9.0% of an image")
    assert "16.0% at the end of the warm-up" in text and "--options.pair-norm image" in text


def test_maps_that_flood_after_the_warm_up_are_warned_of() -> None:
    found = warnings(AreaWatch(10 * WARM_UP), [0.16] * WARM_UP + [0.17] * WINDOW + [0.2] * 30)
    # past 1.2 * 0.16 = 0.192 is the mean with 15 of 20 at 0.2: (5 * 0.17 + 15 * 0.2) / 20 = 0.1925
    assert [number for number, _ in found] == [WARM_UP + WINDOW + 15]
    assert re.search(r"the CAMs flood the images: 19\.[23]%.*--options\.tcp-target image", found[0][1])


@pytest.mark.parametrize("area", [0.12, 0.15, 0.17])
def test_healthy_areas_of_the_trials_are_not_warned_of(area: float) -> None:
    assert warnings(AreaWatch(10 * WARM_UP), [0.16] * WARM_UP + [area] * 40) == []


def test_an_area_that_was_still_growing_may_go_on() -> None:
    growing = [0.06 + 0.002 * n for n in range(WARM_UP)]  # 0.12 on average over the last window
    assert warnings(AreaWatch(10 * WARM_UP), growing + [0.18] * 40) == []
    assert "flood" in warnings(AreaWatch(10 * WARM_UP), growing + [0.25] * 40)[0][1]
    assert warnings(AreaWatch(10 * WARM_UP), growing + [0.06] * 40) == []
    assert "shrink" in warnings(AreaWatch(10 * WARM_UP), growing + [0.04] * 40)[0][1]


def test_without_a_warm_up_only_extremes_are_warned_of() -> None:
    assert warnings(AreaWatch(), [0.5] * 30 + [0.05] * 30) == []
    assert "shrink" in warnings(AreaWatch(), [0.3] * 5 + [0.01] * 40)[0][1]
    assert "flood" in warnings(AreaWatch(), [0.7] * WINDOW)[0][1]
    assert warnings(AreaWatch(), [0.7] * (WINDOW - 1)) == []
    plain = warnings(AreaWatch(paired=False), [0.7] * WINDOW)[0][1]
    assert "try a lower --lr" in plain and "--options" not in plain


def test_images_count_not_classes_or_records_without_any() -> None:
    watch = AreaWatch()
    assert watch.observe(10, torch.zeros(4, 2)) is None
    both = torch.stack([torch.zeros(2), torch.zeros(2), torch.tensor([9.0, 0.0]), torch.tensor([10.0, 90.0])])
    found = [watch.observe(10 * n, both) for n in range(2, 2 + WINDOW)]
    assert found == [None] * WINDOW  # 9 of 100 images covered, although the mean over the classes is 0.45


def test_the_trainer_logs_what_its_task_is_concerned_about(small_demo, tmp_path, caplog, monkeypatch) -> None:
    from cpn_fast.cam.task import run_train
    from cpn_fast.config.training import AugmentOptions, DeviceOptions, LoopOptions, PatchOptions, TrainConfig

    seen = []

    def observe(self: AreaWatch, step: int, statistics: torch.Tensor) -> str | None:
        seen.append((self.warm_up_steps, step, tuple(statistics.shape)))
        return f"maps of step {step}" if step == 2 else None

    monkeypatch.setattr(AreaWatch, "observe", observe)
    settings = TrainConfig(
        f"demo:{small_demo}", tmp_path / "run", backbone="resnet38_tiny",
        loop=LoopOptions(epochs=2, batch_size=4, log_every=1, eval_every=0, max_steps=3),
        device=DeviceOptions(accelerator="cpu", workers=0),
        augment=AugmentOptions(crop=64), patch=PatchOptions(kind="grid"),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "cpn_fast"):
        run_train(settings)
    assert seen == [(3, step, (4, 8)) for step in (1, 2, 3)]  # half of 6 steps warm up
    assert [record.getMessage() for record in caplog.records].count("maps of step 2") == 1
