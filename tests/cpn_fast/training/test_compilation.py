"""--compile-mode: what is chosen, that torch gets it, and that nothing in a step stands in the way of a CUDA graph."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import get_first_incompatible_cudagraph_node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cpn_fast.cam.batches import BatchStream
from cpn_fast.config.training import (
    AugmentOptions,
    DeviceOptions,
    LoopOptions,
    MethodOptions,
    PatchOptions,
    TrainConfig,
    replace_dotted,
)
from cpn_fast.data.sources.open import open_source
from cpn_fast.files.errors import DataError
from cpn_fast.methods import create_method
from cpn_fast.models import build, create_model
from cpn_fast.training import compilation
from cpn_fast.training.compilation import ModeChoice, choose_mode, compile_tried
from cpn_fast.training.monitor import NonFiniteGuard
from cpn_fast.training.run import create_fabric
from tests.mini_backbone import Mini

CPU, GPU, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
CONFIG = TrainConfig(data="x", output=Path("x"), backbone="resnet38_tiny", method="cpn")


def of_weights(count: int) -> nn.Module:
    return nn.Linear(count, 1, bias=False, device="meta")


def chosen(module: nn.Module, device: torch.device = GPU, processes: int = 1, **given: Any) -> tuple[str, ...]:
    return choose_mode(replace_dotted(CONFIG, given), module, device, processes).modes


def test_small_networks_take_a_cuda_graph_on_a_gpu_and_no_others() -> None:
    small, large = of_weights(compilation.SMALL), of_weights(compilation.SMALL + 1)
    assert chosen(small) == ("reduce-overhead", "default")  # which is fallen back to
    assert chosen(large) == chosen(small, CPU) == chosen(small, processes=2) == ("default",)
    assert chosen(small, batch_size=4, micro_batch=2) == ("default",)
    assert chosen(small, batch_size=4, micro_batch=4) == ("reduce-overhead", "default")  # one pass
    taught = of_weights(9)
    taught.teacher = of_weights(9)
    assert chosen(taught) == ("default",)
    for module in (small, large):
        for mode in ("default", "reduce-overhead"):
            assert chosen(module, compile_mode=mode) == (mode,)
    reason = choose_mode(CONFIG, small, GPU, 1).reason
    assert reason.startswith("10.0 million weights: the step would wait for its launches")


def test_graphs_that_would_lose_a_gradient_are_refused() -> None:
    with pytest.raises(DataError, match=r"a step has 2 passes, .* leave out --micro-batch"):
        chosen(of_weights(9), batch_size=4, micro_batch=2, compile_mode="reduce-overhead")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_the_mode_reaches_torch(mode: compilation.Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """And to torch it means CUDA graphs, or none."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: given.update(options))
    compilation.compile_module(of_weights(3), mode)
    assert given == {"fullgraph": True, "dynamic": False, "mode": mode}
    options = {} if mode == "default" else torch._inductor.list_mode_options(mode)
    assert options.get("triton.cudagraphs", False) == (mode == "reduce-overhead")


class Compiled:
    """Stands for the compiler: fails in some modes, and counts the calls of a step in each."""

    def __init__(self, failing: tuple[str, ...]) -> None:
        self.failing, self.calls, self.mode = failing, dict[str, int](), ""

    def compile(self, module: nn.Module, mode: str) -> None:
        self.mode = mode
        module._compiled_call_impl = lambda: mode  # type: ignore[assignment]

    def attempt(self, calls: int) -> None:
        self.calls[self.mode] = calls
        if self.mode in self.failing:
            raise RuntimeError(f"no {self.mode}\nand more")


@pytest.mark.parametrize(
    ("failing", "tried", "compiled", "said"),
    [
        ((), {"reduce-overhead": 3}, True, ""),
        (("reduce-overhead",), {"reduce-overhead": 3, "default": 1}, True, "no CUDA graph could be made (no reduce-"),
        (
            ("reduce-overhead", "default"),
            {"reduce-overhead": 3, "default": 1},
            False,
            "compilation failed (no default)",
        ),
    ],
    ids=str,
)
def test_where_no_graph_can_be_made_the_step_is_compiled_without(
    failing: tuple[str, ...], tried: dict[str, int], compiled: bool, said: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    compiler, module = Compiled(failing), of_weights(2)
    monkeypatch.setattr(compilation, "compile_module", compiler.compile)
    fabric = create_fabric(replace(CONFIG, device=DeviceOptions(accelerator="cpu")))
    choice = ModeChoice(("reduce-overhead", "default"), "")
    with caplog.at_level(logging.WARNING):
        assert compile_tried(module, choice, fabric, True, compiler.attempt) == compiled
    assert compiler.calls == tried and said in caplog.text and bool(said) == bool(caplog.text)
    assert (module._compiled_call_impl is None) == (not compiled)
    if not compiled:
        with pytest.raises(RuntimeError, match="no default"):
            compile_tried(module, choice, fabric, False, compiler.attempt)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The public functions take the kernels' operators, of which shapes alone are asked here."""
    monkeypatch.setattr(build, "create_backbone", lambda name, frozen, **_: Mini())
    for name in ("cp_triplet", "pixel_correlation", "cp_loss"):
        module = importlib.import_module(f"cpn_kernels.ops.{name}")
        monkeypatch.setattr(module, "use_triton", lambda *_: True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class CapturedError(Exception):
    """Ends a compilation once its graph is known."""


OPERATORS = {"cp_triplet", "pixel_correlation", "pixel_correlation_gradient", "cp_loss", "cp_loss_gradient"}


def test_torch_finds_nothing_in_a_step_that_a_graph_cannot_hold(kernels: None) -> None:
    """Forward and backward with the kernels' operators and dropout, in bfloat16, by torch's own judgement."""
    joint: list[torch.fx.GraphModule] = []

    def capture(graph: torch.fx.GraphModule, *_: Any, **__: Any) -> Any:
        joint.append(graph)
        raise CapturedError

    method = create_method(CONFIG, create_model(CONFIG, 3)).train()
    backend = aot_autograd(fw_compiler=lambda graph, _: graph.forward, partition_fn=capture)
    with pytest.raises(Exception, match="CapturedError"), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.compile(method, fullgraph=True, dynamic=False, backend=backend)(*batch(CPU))
    (graph,) = joint
    names = [str(node.target) for node in graph.graph.nodes]
    assert {f"cpn.{name}.default" for name in OPERATORS} <= {*names}
    assert any("bernoulli" in name or "dropout" in name for name in names), "dropout is in it"
    assert get_first_incompatible_cudagraph_node(graph) is None
    assert not [name for name in names if "nonzero" in name or "_local_scalar_dense" in name]
    held = graph.graph.call_function(torch.ops.aten._fused_moving_avg_obs_fq_helper_functional.default, ())
    assert get_first_incompatible_cudagraph_node(graph) is held, "one that it cannot hold would be found"


def batch(device: torch.device) -> tuple[Tensor, ...]:
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8, device=device)
    patches = torch.zeros(2, 64, 64, dtype=torch.int32, device=device)
    return images, patches, torch.zeros(2, dtype=torch.int64, device=device), torch.ones(2, 3, device=device)


class OneDevice(TorchDispatchMode):
    """Refuses what leaves the device: a value for the host, a tensor that is made elsewhere, a copy to it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.operators = device, list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.operators.append(str(function))
        away = [tensor for tensor in tree_leaves(found) if isinstance(tensor, Tensor) and tensor.device != self.device]
        assert not away and "_local_scalar_dense" not in str(function), f"{function} leaves {self.device}"
        return found


def test_a_step_leaves_its_device_nowhere(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device "meta" stands for a GPU: of its values nothing is known to the host, which could not wait for them."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which does not know that device
    method = create_method(CONFIG, create_model(CONFIG, 3)).train().to(META)
    guard = NonFiniteGuard([(name, p) for name, p in method.named_parameters() if p.requires_grad])
    with OneDevice(META) as watched:
        outputs = method(*batch(META))
        outputs["loss"].backward()
        losses = {name: outputs[name].detach() for name in ("loss", "cls", "tcp", "cpcr")}
        with pytest.MonkeyPatch.context() as held:  # what the host reads later is copied on a queue of its own
            held.setattr("cpn_fast.training.monitor.AsyncRead", lambda values: values)
            assert guard.observe(1, ("a", "b"), losses).device == META
        with pytest.raises((AssertionError, RuntimeError)):
            outputs["loss"].item()
        with pytest.raises((AssertionError, NotImplementedError)):
            outputs["loss"].cpu()
    assert {f"cpn.{name}.default" for name in OPERATORS} <= {*watched.operators} and len(watched.operators) > 200


@pytest.mark.parametrize("method", ["cam", "cpn"])
def test_every_batch_of_a_run_has_the_same_shapes(small_demo: Path, tmp_path: Path, method: str) -> None:
    """Also where the images do not fill the last one: a CUDA graph is made once."""
    config = replace(
        CONFIG, data=f"demo:{small_demo}", output=tmp_path, loop=LoopOptions(batch_size=5), patch=PatchOptions("grid"),
        augment=AugmentOptions(crop=32), device=DeviceOptions(workers=0), options=MethodOptions(), method=method,
    )  # fmt: skip
    source = open_source(config.data)
    records = source.records("train")
    assert len(records) % 5
    steps = [
        [(tuple(value.shape), value.stride()) for value in (each.images, each.patches, each.keys, each.labels)]
        for each in BatchStream(source, records, config, 0, 2 * len(records) // 5 + 2)
    ]
    assert len(steps) > 4 and all(step == steps[0] for step in steps)
