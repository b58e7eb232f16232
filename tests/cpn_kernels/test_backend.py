"""Who takes the kernels: CUDA tensors that hold something, never while exporting."""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from cpn_kernels import backend


class _Cuda:
    """What `use_triton` looks at of a tensor, on a machine without a GPU."""

    def __init__(self, dtype: torch.dtype = torch.float32, count: int = 3) -> None:
        self.is_cuda, self.dtype, self.count = True, dtype, count

    def numel(self) -> int:
        return self.count


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "triton_ready", lambda: True)


@pytest.mark.usefixtures("ready")
def test_what_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.use_triton(_Cuda(), None, _Cuda(torch.bfloat16), _Cuda(torch.int64))
    assert not backend.use_triton(_Cuda(), torch.zeros(3))
    assert not backend.use_triton(_Cuda(), _Cuda(torch.float64))
    assert not backend.use_triton(_Cuda(), _Cuda(count=0))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not backend.use_triton(_Cuda())


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((10, 0), True)])
def test_devices_before_ampere_take_the_reference(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0) if index == 0 else capability)
    assert backend.triton_ready() is expected


def test_the_question_is_a_constant_of_a_compiled_graph() -> None:
    def double(x: Tensor) -> Tensor:
        return x * 2 if not backend.use_triton(x) and not (backend.triton_ready() and x.is_cuda) else x

    assert torch.compile(double, fullgraph=True, backend="eager")(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_is_told_from_a_compiled_graph(strict: bool) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 3 if backend.exporting() else x * 2

    assert not backend.exporting()
    assert torch.compile(Doubled(), fullgraph=True, backend="eager")(torch.ones(2)).tolist() == [2, 2]
    exported = torch.export.export(Doubled(), (torch.ones(2),), strict=strict)
    assert exported.module()(torch.ones(2)).tolist() == [3, 3]


OPERATORS = {
    "cp_loss.launch": ("forward", "backward"),
    "cp_triplet.triton_kernel": ("triplet",),
    "dense_crf.launch": ("dense_crf",),
    "patch_crop.triton_kernel": ("patch_crop",),
    "pixel_correlation.launch": ("forward", "backward"),
    "random_walk.triton_kernel": ("random_walk",),
}


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """A tensor of a second GPU is no tensor of the current one; fake tensors have a device without there being one."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext())
    launched = backend.on_its_device(lambda first, factor: (len(entered), first.device, factor))
    with FakeTensorMode():
        assert launched(torch.empty(2, device="cuda:1"), factor=3) == (1, torch.device("cuda", 1), 3)
    assert entered == [torch.device("cuda", 1)]
    assert launched(torch.empty(2), 4) == (1, torch.device("cpu"), 4)


@pytest.mark.parametrize("module", OPERATORS)
def test_every_operator_that_launches_kernels_is_guarded(module):
    found = importlib.import_module(f"cpn_kernels.ops.{module}")
    for name in OPERATORS[module]:
        assert getattr(found, name).__wrapped__.__name__ == name
        assert getattr(found, name).__code__ is backend.on_its_device(len).__code__
