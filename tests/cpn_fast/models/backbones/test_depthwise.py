"""Depthwise convolutions with a backward pass of our own: gradients as torch has them, in bfloat16 no worse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones import depthwise
from cpn_fast.models.backbones.depthwise import convolve


def layer(channels: int, stride: int, dilation: int, dtype: torch.dtype) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, 3, stride, dilation, dilation, channels, dtype=dtype)


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad(output, inputs, weights.to(output.dtype))


@pytest.mark.parametrize("dilation", [2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9, 5), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_dilated_against_torch_in_float64(dilation: int, size: tuple[int, int], channels_last: bool) -> None:
    conv = layer(5, 1, dilation, torch.float64)
    x = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
    inputs = [x, conv.weight, conv.bias]
    output = convolve(x, conv.weight, conv.bias, conv)
    assert type(output.grad_fn).__name__ == "_DepthwiseBackward"
    assert torch.equal(output, conv(x))
    for found, expected in zip(gradients(output, inputs), gradients(conv(x), inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("size", [(12, 12), (11, 14)], ids=str)
def test_bfloat16_errs_no_more_than_torch(stride: int, dilation: int, size: tuple[int, int]) -> None:
    conv = layer(32, stride, dilation, torch.bfloat16)
    exact = layer(32, stride, dilation, torch.float64)
    exact.load_state_dict({name: value.double() for name, value in conv.state_dict().items()})
    x = torch.randn(16, 32, *size, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    wide = x.detach().double().requires_grad_()
    truth = gradients(exact(wide), [wide, exact.weight])
    output = convolve(x, conv.weight, conv.bias, conv)
    assert type(output.grad_fn).__name__ == "_DepthwiseBackward"
    ours, theirs = gradients(output, [x, conv.weight]), gradients(conv(x), [x, conv.weight])
    for found, other, expected in zip(ours, theirs, truth, strict=True):
        error, least = ((value.double() - expected).norm() / expected.norm() for value in (found, other))
        assert error <= max(1.2 * least, 0.004)


def test_what_torch_does_well_is_left_to_it() -> None:
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    for conv in (layer(4, 1, 1, torch.float32), layer(4, 2, 1, torch.float32), nn.Conv2d(4, 4, 3, 1, 2, 2)):
        assert "Depthwise" not in type(convolve(x, conv.weight, conv.bias, conv).grad_fn).__name__
    conv = layer(4, 1, 2, torch.float32)
    with torch.no_grad():
        assert torch.equal(convolve(x, conv.weight, conv.bias, conv), conv(x))
    unusual = nn.Conv2d(4, 4, 3, 1, 1, 2, 4)  # padding that is not the dilation
    torch.testing.assert_close(convolve(x, unusual.weight, unusual.bias, unusual), unusual(x), rtol=0, atol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_autocast_and_compilation(precision: torch.dtype) -> None:
    conv = layer(8, 1, 2, torch.float32)
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(3), requires_grad=True)

    def run(value: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            return convolve(value, conv.weight, conv.bias, conv)

    output = run(x)
    assert output.dtype == precision
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, output)
    ours, theirs = gradients(compiled, [x, conv.weight]), gradients(output, [x, conv.weight])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert ours[0].dtype == ours[1].dtype == torch.float32


def test_an_export_sees_a_plain_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "exporting", lambda: True)
    conv = layer(4, 1, 2, torch.float32)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    found = convolve(x, conv.weight, conv.bias, conv)
    assert type(found.grad_fn).__name__ == "ConvolutionBackward0"
    assert torch.equal(found, F.conv2d(x, conv.weight, conv.bias, 1, 2, 2, 4))
