"""How many kernels a training step of CPN launches on a GPU: as it is, and as torch.compile would make it.

    python -m benchmarks.launches [BACKBONE] [--crop 224]

Nothing runs: operators are counted on shapes alone, and the compiler's code is read, not compiled. Views launch
nothing. What this project's own operators launch inside is counted once each, in both forms alike.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cpn_fast.config.training import TrainConfig
from cpn_fast.methods import create_method
from cpn_fast.models import create_model
from cpn_fast.models.refinement import winner_maps

BATCH, CLASSES, GRID = 4, 20, 28

EXTERN = re.compile(r"\b(?:extern_kernels|torch\.ops\.[a-z]+)\.\w+(?:\.\w+)?\(")
"""A call that Inductor leaves to a library, or to an operator of ours."""

NOTHING = ("aten.empty", "aten.new_empty", "aten.detach", "aten._unsafe_view", "aten.lift_fresh", "aten.empty_like")
"""Operators that are no views, yet launch nothing."""


class Launches(TorchDispatchMode):
    """Counts the operators that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view and not str(function).startswith(NOTHING)
        return function(*args, **(kwargs or {}))


@contextmanager
def kernels_taken() -> Iterator[None]:
    """The public operators take their kernels, whatever the device."""
    with ExitStack() as held:
        for name in ("cp_triplet", "pixel_correlation", "cp_loss"):
            module = importlib.import_module(f"cpn_kernels.ops.{name}")
            held.enter_context(mock.patch.object(module, "use_triton", lambda *_: True))
        yield


def eager_launches(call: Callable[[], Any]) -> int:
    """Of a call on tensors of the device "meta", and of its backward pass where it gives a loss that has one."""
    with Launches() as counted:
        found = call()
        loss = found["loss"] if isinstance(found, dict) else None
        if loss is not None:
            loss.backward()
    return counted.count


def compiled_launches(call: Callable[..., Any], *inputs: Any) -> tuple[int, int]:
    """Kernels that Inductor writes, and calls that it leaves to others, each time that the compiled function runs.

    Args:
        call: compiled with `torch.compile`'s settings of a training, forwards alone.
        inputs: on the CPU; fused as a GPU's would be.
    """
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    from torch._inductor.utils import get_code

    compiled = torch.compile(call, fullgraph=True, dynamic=False)

    def once() -> None:
        with suppress(IndexError):  # the code that is written instead of run gives nothing
            compiled(*inputs)

    # Backwards too in the first call; Triton's code on the CPU, for which there is no driver to be asked.
    with (
        inductor.patch(cpu_backend="triton", fx_graph_cache=False, fallback_random=True),
        functorch.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False),
        mock.patch("torch.utils._triton.triton_hash_with_backend", lambda: ""),
    ):
        code = "\n".join(get_code(once))
    return len(re.findall(r"\.run\(", code)), len(EXTERN.findall(code))


def surroundings(device: str) -> tuple[Tensor, Tensor]:
    """What `winner_maps` is given: the CAM of a triplet, and its labels."""
    return torch.zeros(3 * BATCH, CLASSES, GRID, GRID, device=device), torch.ones(3 * BATCH, CLASSES, device=device)


def batch(crop: int, device: str) -> tuple[Tensor, ...]:
    """Images, patches, keys and labels of a step."""
    images = torch.zeros(BATCH, crop, crop, 3, dtype=torch.uint8, device=device)
    patches = torch.zeros(BATCH, crop, crop, dtype=torch.int32, device=device)
    keys = torch.zeros(BATCH, dtype=torch.int64, device=device)
    return images, patches, keys, torch.ones(BATCH, CLASSES, device=device)


def count(backbone: str, crop: int) -> dict[str, dict[str, Any]]:
    """Launches by part and form."""
    config = TrainConfig("", Path(), method="cpn", backbone=backbone)
    with kernels_taken(), mock.patch.object(torch, "is_autocast_enabled", lambda *_: False):
        method = create_method(config, create_model(config, CLASSES)).train()
        found = {}
        for name, call, given in (
            ("what surrounds PCM", winner_maps, surroundings),
            (f"step of {backbone}", method, lambda device: batch(crop, device)),
        ):
            inductor, others = compiled_launches(call, *given("cpu"))
            on_meta = call.to("meta") if isinstance(call, torch.nn.Module) else call
            eager = eager_launches(lambda on_meta=on_meta, given=given: on_meta(*given("meta")))
            found[name] = {"eager": eager, "compiled": inductor + others, "of which Inductor's": inductor}
    return found


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", nargs="?", default="mobilenet_v2")
    parser.add_argument("--crop", type=int, default=224)
    given = parser.parse_args()
    print(json.dumps(count(given.backbone, given.crop), indent=2))


if __name__ == "__main__":
    main()
