"""Optimizer groups, schedule, and the guard that keeps NaN and infinity out of the weights."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cpn_fast.cam.task import run_train
from cpn_fast.config.training import (
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    OptimizerOptions,
    PatchOptions,
    TrainConfig,
)
from cpn_fast.files.errors import NonFiniteError
from cpn_fast.models import create_model
from cpn_fast.runs.checkpoint import load_checkpoint
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training import trainer
from cpn_fast.training.monitor import NonFiniteGuard
from cpn_fast.training.optimizer import create_optimizer, parameter_groups, poly_factor, set_learning_rate, skip_update

CONFIG = TrainConfig(
    data="x", output=Path("x"), backbone="resnet38_tiny", optimizer=OptimizerOptions(lr=0.1, momentum=0.9)
)


class Small(nn.Module):
    """A frozen layer and a trained one in the backbone, a new layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.Linear(3, 3), "body": nn.Linear(3, 3)})
        self.backbone["stem"].requires_grad_(False)
        self.head = nn.Linear(3, 2)


def test_groups_of_the_real_network() -> None:
    net = create_model(replace(CONFIG, options=MethodOptions(prcm="softmax")), 5)
    groups = {group["name"]: group for group in parameter_groups(net, CONFIG)}
    grouped = [p for group in groups.values() for p in group["params"]]
    trainable = [p for p in net.parameters() if p.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in trainable}
    assert len(grouped) == len(trainable) < len(list(net.parameters()))
    assert {id(p) for p in groups["head"]["params"]} == {id(net.classifier.weight)}
    heads = {id(p) for p in (net.f_mid.weight, net.f_high.weight, net.f9.weight, net.phi.weight)}
    assert {id(p) for p in groups["refinement"]["params"]} == heads
    assert [groups[name]["factor"] for name in ("backbone", "head", "refinement")] == [1, 10, 1]
    assert {group["weight_decay"] for group in groups.values()} == {5e-4}


def test_biases_of_new_layers() -> None:
    groups = {group["name"]: group for group in parameter_groups(Small(), CONFIG)}
    assert set(groups) == {"backbone", "backbone biases", "head", "head biases"}
    assert (groups["head biases"]["factor"], groups["head biases"]["weight_decay"]) == (20, 0)
    assert (groups["backbone biases"]["factor"], groups["backbone biases"]["weight_decay"]) == (1, 0)


def test_poly_schedule() -> None:
    assert poly_factor(0, 10, 0.9) == 1
    assert poly_factor(5, 10, 0.9) == pytest.approx(0.535886731268146)  # 0.5 ** 0.9
    assert poly_factor(10, 10, 0.9) == 0


def test_updates_are_those_written_out() -> None:
    """Three steps against v = mu v + g + wd w; w -= lr v in float64, per group."""
    torch.manual_seed(0)
    net = Small()
    optimizer = create_optimizer(net, CONFIG)
    factors = {
        "backbone.body.weight": (1, 5e-4),
        "backbone.body.bias": (1, 0),
        "head.weight": (10, 5e-4),
        "head.bias": (20, 0),
    }
    named = dict(net.named_parameters())
    weights = {name: p.detach().double() for name, p in named.items()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(3):
        set_learning_rate(optimizer, 0.1 * poly_factor(step, 3, 0.9))
        for name, (factor, decay) in factors.items():
            named[name].grad = torch.randn_like(named[name])
            velocity[name] = 0.9 * velocity[name] + named[name].grad.double() + decay * weights[name]
            weights[name] = weights[name] - factor * 0.1 * (1 - step / 3) ** 0.9 * velocity[name]
        skip_update(optimizer, torch.zeros(()))
        optimizer.step()
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach().double(), weights[name], rtol=1e-5, atol=1e-6)


def test_a_held_back_update_changes_nothing() -> None:
    net = Small()
    optimizer = create_optimizer(net, CONFIG)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, math.nan) if parameter.requires_grad else None
    skip_update(optimizer, torch.ones(()))
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    for state in optimizer.state.values():
        assert not state["momentum_buffer"].any()


def test_gradient_scaler_works_on_the_gated_optimizer() -> None:
    """16-mixed: scaled gradients give the unscaled update; an overflow is skipped and lowers the scale."""
    torch.manual_seed(0)
    plain, scaled = Small(), Small()
    scaled.load_state_dict(plain.state_dict())
    features = torch.randn(4, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizers = [create_optimizer(net, CONFIG) for net in (plain, scaled)]
    for net, optimizer in zip((plain, scaled), optimizers, strict=True):
        loss = net.head(net.backbone["body"](features)).square().mean()
        (loss if net is plain else scaler.scale(loss)).backward()
        skip_update(optimizer, torch.zeros(()))
    optimizers[0].step()
    scaler.step(optimizers[1])
    scaler.update()
    for expected, found in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    before = [p.clone() for p in scaled.parameters()]
    scaled.head.weight.grad.fill_(math.inf)
    skip_update(optimizers[1], torch.zeros(()))
    scaler.step(optimizers[1])
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, scaled.parameters(), strict=True))
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_monitor_names_loss_part(value: float) -> None:
    net = Small()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    monitor = NonFiniteGuard(list(net.named_parameters()))
    losses = {"loss": torch.tensor(value), "cls": torch.tensor(1.0), "tcp": torch.tensor(value)}
    assert monitor.observe(7, ("a", "b"), losses) == 1
    with pytest.raises(NonFiniteError, match=r"step 7: .*loss part loss = .*, tcp = .*images: a, b") as error:
        monitor.report(monitor.take())
    assert "cls" not in str(error.value)


def test_monitor_names_gradient_and_holds_back_for_good() -> None:
    net = Small()
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    monitor = NonFiniteGuard(named)
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    net.head.weight.grad[0, 0] = math.nan
    assert monitor.observe(1, ("a",), {"loss": torch.tensor(1.0)}) == 1
    bad = monitor.take()
    net.head.weight.grad[0, 0] = 1
    assert monitor.observe(2, ("b",), {"loss": torch.tensor(1.0)}) == 1
    with pytest.raises(NonFiniteError, match=r"step 1: .*gradient of head\.weight; images: a"):
        monitor.report(bad)


def test_monitor_reports_values_and_norm() -> None:
    net = Small()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    monitor = NonFiniteGuard(list(net.named_parameters()))
    assert monitor.observe(3, ("a",), {"loss": torch.tensor(2.0)}, stop=True, extra={"x": torch.arange(2)}) == 0
    values = monitor.report(monitor.take())
    assert values.step == 3 and values.stop
    assert values.losses["loss"] == 2.0
    assert values.losses["grad_norm"] == pytest.approx(math.sqrt(12 + 12 + 8))
    assert values.extra["x"].tolist() == [0, 1]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_run_stops_before_weights_are_touched(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Step 6 goes bad; the error comes with step 7, and the weights are those after step 5."""
    config = TrainConfig(
        data=f"demo:{small_demo}", output=tmp_path / "run", method="cam", backbone="resnet38_tiny",
        loop=LoopOptions(epochs=2, batch_size=2, checkpoint_every=5, eval_every=0),
        optimizer=OptimizerOptions(lr=1e-3),
        device=DeviceOptions(accelerator="cpu", workers=0),
        augment=AugmentOptions(crop=64), patch=PatchOptions(kind="grid"),
    )  # fmt: skip
    step_of = trainer.Trainer.train_step
    weights: list[dict[str, torch.Tensor]] = []

    def train_step(self: trainer.Trainer, step: int, batch: object) -> None:
        if step == 6:
            classifier = self.network.net.classifier
            if where == "loss":
                classifier.register_forward_hook(lambda _m, _i, output: output * math.inf)
            else:
                classifier.weight.register_hook(lambda gradient: gradient * math.nan)
        step_of(self, step, batch)  # type: ignore[arg-type]
        weights.append({name: value.clone() for name, value in self.network.net.state_dict().items()})

    monkeypatch.setattr(trainer.Trainer, "train_step", train_step)
    part = r"loss part loss = \S+, cls = \S+;" if where == "loss" else r"gradient of classifier\.weight;"
    with pytest.raises(NonFiniteError, match=rf"step 6: .*{part} images: train\S+, train\S+\. ") as error:
        run_train(config)
    run = RunFolder(config.output)
    assert str(error.value).startswith("diverged at step 6: ") and "look at" not in str(error.value)
    advice = "lower --lr or begin with pretrained weights (--weights), in another --output"
    assert str(error.value).endswith(f"The last checkpoint, {run.checkpoint_path}, is of an earlier step; {advice}")
    assert len(weights) == 6  # the seventh step raised
    assert all(torch.equal(weights[5][name], value) for name, value in weights[4].items())
    saved = load_checkpoint(run.checkpoint_path)
    assert saved["step"] == 5
    assert all(torch.equal(saved["model"][name], value) for name, value in weights[4].items())
    assert [record["step"] for record in run.records("step")] == [1, 2, 3, 4, 5]
    assert not run.model_path.exists()


def test_bad_last_step_is_noticed_before_the_checkpoint(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        data=f"demo:{small_demo}", output=tmp_path / "run", method="cam", backbone="resnet38_tiny",
        loop=LoopOptions(epochs=1, max_steps=2, batch_size=2, eval_every=0),
        optimizer=OptimizerOptions(lr=1e-3),
        device=DeviceOptions(accelerator="cpu", workers=0),
        augment=AugmentOptions(crop=64),
    )  # fmt: skip
    step_of = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, step: int, batch: object) -> None:
        if step == 2:
            self.network.net.classifier.register_forward_hook(lambda _m, _i, output: output * math.nan)
        step_of(self, step, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.Trainer, "train_step", train_step)
    with pytest.raises(NonFiniteError, match=r"diverged at step 2: .* There is no checkpoint yet; lower --lr"):
        run_train(config)
    assert not RunFolder(config.output).checkpoint_path.exists()


@pytest.mark.parametrize("where", ["weights", "validation"])
def test_an_update_that_leads_out_of_the_numbers(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Loss and gradients of the step were finite; weights, or the maps made with them, are not."""
    config = TrainConfig(
        data=f"demo:{small_demo}", output=tmp_path / "run", method="cam", backbone="resnet38_tiny",
        loop=LoopOptions(epochs=1, max_steps=2, batch_size=2, eval_every=int(where == "validation"), val_images=1),
        optimizer=OptimizerOptions(lr=1e-3),
        device=DeviceOptions(accelerator="cpu", workers=0),
        augment=AugmentOptions(crop=64),
    )  # fmt: skip
    step_of = trainer.Trainer.train_step

    def train_step(self: trainer.Trainer, step: int, batch: object) -> None:
        step_of(self, step, batch)  # type: ignore[arg-type]
        if step == 2:
            self.network.net.classifier.weight.data.fill_(math.nan if where == "weights" else 3e38)

    monkeypatch.setattr(trainer.Trainer, "train_step", train_step)
    what = (
        r"the weights classifier\.weight\." if where == "weights" else "the network's class maps or scores in the valid"
    )
    with pytest.raises(NonFiniteError, match=rf"^diverged at step 2: not finite: {what}.* lower --lr or begin with"):
        run_train(config)
    run = RunFolder(config.output)
    assert not run.checkpoint_path.exists() and not run.model_path.exists()
