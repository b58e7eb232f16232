"""The step that is tried out before a run changes nothing of the run, and says what would have stopped it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cpn_fast.cam.task import CamTask, run_train
from cpn_fast.config.recipes import with_recipe
from cpn_fast.config.training import (
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    OptimizerOptions,
    PatchOptions,
    SegmentAugment,
    SegmentConfig,
    SegmentLoop,
    TrainConfig,
)
from cpn_fast.data.loading.steps import Span
from cpn_fast.files.errors import DataError
from cpn_fast.methods.cpn import CpnMethod
from cpn_fast.methods.teacher import Teacher
from cpn_fast.runs.checkpoint import load_checkpoint, state_sha256
from cpn_fast.runs.folder import RunFolder
from cpn_fast.segment.task import SegmentTask
from cpn_fast.training import compilation
from cpn_fast.training import run as training_run
from cpn_fast.training.run import create_fabric
from cpn_fast.training.trial_step import trial_step, untouched


def config(demo: Path, output: Path, **device: Any) -> TrainConfig:
    options: dict[str, Any] = {"accelerator": "cpu", "workers": 0, **device}
    return TrainConfig(
        data=f"demo:{demo}", output=output, backbone="resnet38_tiny",
        loop=LoopOptions(epochs=2, max_steps=5, batch_size=2, eval_every=0),
        optimizer=OptimizerOptions(lr=0.01), device=DeviceOptions(**options), augment=AugmentOptions(crop=64),
        patch=PatchOptions(kind="grid"), options=MethodOptions(warm_up=0.17),  # 2 of 12 steps
    )  # fmt: skip


def records(run: RunFolder) -> list[dict[str, Any]]:
    measured = ("seconds", "images_per_second", "peak_memory_mib")
    return [{name: value for name, value in record.items() if name not in measured} for record in run.records()]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_is_the_same_with_and_without(
    precision: str, small_demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[bool] = []
    forward = CpnMethod.forward

    def counted(self: CpnMethod, *inputs: Any) -> dict[str, Tensor]:
        steps.append(inputs[4])
        return forward(self, *inputs)

    monkeypatch.setattr(CpnMethod, "forward", counted)
    with caplog.at_level("INFO"):
        tried = run_train(config(small_demo, tmp_path / "tried", precision=precision, trial_step="on"))
    assert steps == [False, True, True, False, False, False]  # a step of CPN, then the warm-up
    assert "trial step of 2 crops of 64 pixels (thrown away" in caplog.text
    plain = run_train(config(small_demo, tmp_path / "plain", precision=precision))
    assert len(steps) == 6 + 5
    assert records(tried) == records(plain) and len(records(plain)) == 5
    states = [load_checkpoint(run.checkpoint_path) for run in (tried, plain)]
    for part in ("model", "optimizer"):
        assert state_sha256(states[0][part]) == state_sha256(states[1][part])


def test_random_numbers_buffers_gradients_and_mode_are_put_back() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    kept = torch.full((4, 3, 1, 1), 2.0)
    module[0].weight.grad = kept
    torch.manual_seed(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = torch.rand(4)
    torch.manual_seed(3)
    with untouched(module, torch.device("cpu")):
        module.train()
        module(torch.randn(2, 3, 5, 5)).sum().backward()
        assert not torch.equal(module[1].running_mean, before["1.running_mean"])
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module[0].weight.grad is kept and torch.equal(kept, torch.full((4, 3, 1, 1), 2.0))
    assert module[0].bias.grad is None and not any(part.training for part in module.modules())


def test_a_teacher_that_follows_in_the_step_is_put_back(small_demo: Path, tmp_path: Path) -> None:
    settings = with_recipe(config(small_demo, tmp_path / "run"))
    settings = replace(settings, options=replace(settings.options, teacher=0.5))
    fabric = create_fabric(settings)
    task = CamTask(settings, fabric)
    net = task.create_net()
    method = task.create_module(net)
    with torch.no_grad():  # so that there is something to follow
        net.classifier.weight.add_(1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    moved: list[bool] = []
    follow = Teacher.follow

    def watched(self: Teacher, its: Any) -> None:
        follow(self, its)
        name = "teacher.net.classifier.weight"
        moved.append(not torch.equal(method.state_dict()[name], before[name]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "follow", watched)
        trial_step(method, task.trial_inputs(net), fabric)
    assert moved == [True]
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize("method", ["cam", "seam", "cpn"])
def test_its_inputs_are_like_a_real_step(small_demo: Path, tmp_path: Path, method: str) -> None:
    settings = with_recipe(replace(config(small_demo, tmp_path / "run"), method=method))
    task = CamTask(settings, create_fabric(settings))
    net = task.create_net()
    batch = next(iter(task.stream(net, Span(0, 1, 0, 1))))
    real, tried = task.inputs(batch, 12, 12), task.trial_inputs(net)
    assert len(real) == len(tried)
    for one, other in zip(real, tried, strict=True):
        if isinstance(one, Tensor):
            assert isinstance(other, Tensor)
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        else:
            assert one == other


def test_a_segmentation_network_is_tried_out_with_inputs_like_its_own(small_demo: Path, tmp_path: Path) -> None:
    shared = config(small_demo, tmp_path / "run")
    settings = with_recipe(
        SegmentConfig(
            data=shared.data, output=shared.output, masks="truth", backbone=shared.backbone,
            loop=SegmentLoop(batch_size=2), augment=SegmentAugment(crop=64), device=shared.device,
        )
    )  # fmt: skip
    fabric = create_fabric(settings)
    task = SegmentTask(settings, fabric)
    net = task.create_net()
    batch = next(iter(task.stream(net, Span(0, 1, 0, 1))))
    for one, other in zip(task.inputs(batch, 1, 9), task.trial_inputs(net), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trial_step(task.create_module(net), task.trial_inputs(net), fabric)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())  # batch norms among them


def broken(module: nn.Module, mode: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler\nand more")

    module._compiled_call_impl = fail  # type: ignore[assignment]


def test_a_compiler_that_fails_is_done_without_unless_it_was_asked_for(
    small_demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "compile_module", broken)
    asked = config(small_demo, tmp_path / "asked", compile="on", trial_step="on")
    with pytest.raises(RuntimeError, match="no compiler"):
        run_train(asked)
    assert not (tmp_path / "asked" / "config.json").exists()
    settle = training_run.settle_device

    def as_on_a_gpu(given: TrainConfig, folder: RunFolder) -> Any:
        settled, choice = settle(given, folder)
        return settled, replace(choice, compile_may_fail=True)

    monkeypatch.setattr(training_run, "settle_device", as_on_a_gpu)
    with caplog.at_level(logging.WARNING):
        run = run_train(replace(asked, output=tmp_path / "auto"))
    assert "--compile auto: compilation failed (no compiler); training goes on without" in caplog.text
    assert run.config.device.compile == "off" and len(run.records("step")) == 5


def test_what_does_not_fit_is_said_before_anything_is_written(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nadvice")

    monkeypatch.setattr(CpnMethod, "forward", full)
    with pytest.raises(DataError, match=r"a step of 2 crops of 64 pixels does not fit .* nothing was written") as error:
        run_train(config(small_demo, tmp_path / "run", trial_step="on"))
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "config.json").exists()
