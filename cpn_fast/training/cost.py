"""What a training will take of memory and time, estimated from two small passes before anything is spent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cpn_fast.device import free_memory
from cpn_fast.training.task import TrainingTask, images_of_pass, passes_of_step
from cpn_fast.training.validation import training_mode_kept

log = logging.getLogger(__name__)

SMALL, LARGE = 64, 128
"""Sides in pixels of the two images that are passed; half of them for a network of more than `HEAVY` weights."""
TRIALS = 3
HEAVY = 20_000_000
PROCESS_BYTES = 400 * 2**20
"""Of Python, torch and the data at hand, beside the network."""
OVERHEAD = 1.25
"""Of gradients of activations, convolution workspace and what the allocator keeps; measured with MobileNetV2."""


@dataclass(frozen=True)
class Cost:
    """What a training takes on each process.

    Attributes:
        memory: bytes at the peak.
        seconds: of a step, a mean over the training; None on a GPU, of which a small pass says nothing.
    """

    memory: float
    seconds: float | None


def estimate_cost(task: TrainingTask[Any], net: nn.Module, device: torch.device, world_size: int) -> Cost:
    """Pass two small images forwards and backwards; what the larger took more than the smaller goes with the pixels.

    The network, its gradients and its training mode are as before afterwards.

    Args:
        task: what is trained, with its settings.
        net: the bare network on its device.
        device: that device.
        world_size: processes that share a step's images.
    """
    config = task.config
    pixels = config.augment.crop**2 * images_of_pass(config, world_size)
    passes = passes_of_step(config, world_size)
    saved, seconds = _probes(net, config.augment.crop, device)
    trained = sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)
    weights = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers())) + 2 * trained
    half = 0.5 if config.device.precision in ("bf16-mixed", "16-mixed") else 1.0
    mean_views, most_views = task.views()
    memory = weights + saved(pixels * most_views) * half * OVERHEAD
    if device.type == "cuda":
        return Cost(memory, None)
    return Cost(memory + PROCESS_BYTES, passes * seconds(pixels * mean_views))


def say_cost(cost: Cost, steps: int, device: torch.device) -> None:
    """Log time and memory of so many steps; a warning where there is less memory free."""
    free = free_memory(device)
    where = "the GPU" if device.type == "cuda" else "this machine"
    took = "" if cost.seconds is None else f"about {duration(steps * cost.seconds)} for {steps} steps and "
    told = f"{took}{gib(cost.memory)} of memory at the peak, estimated from small passes"
    if free is not None and cost.memory > free:
        log.warning(
            "it will take %s, but %s has %s free; lower --batch-size or --crop, or take a smaller --backbone",
            told, where, gib(free),
        )  # fmt: skip
    else:
        log.info("this training will take %s%s", told, "" if free is None else f" ({where} has {gib(free)} free)")


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `12 min`, `2.5 h`, `3 days`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def gib(size: float) -> str:
    """Bytes in GiB: `7.9 GiB`."""
    return f"{size / 2**30:.1f} GiB"


Line = Callable[[float], float]
"""Something that grows with the pixels, as a function of their number."""


def _probes(net: nn.Module, crop: int, device: torch.device) -> tuple[Line, Line]:
    """Bytes that a backward pass needs of its forward pass, and seconds of both, over the pixels."""
    shrink = 2 if sum(parameter.numel() for parameter in net.parameters()) > HEAVY else 1
    large = min(crop, LARGE // shrink)
    small = min(SMALL // shrink, max(1, large // 2))
    with training_mode_kept(net):
        net.eval()  # no running statistics move, no random numbers are drawn
        _probe(net, small, device)  # the first pass allocates
        (few, quick), (many, slow) = (_fastest(net, side, device) for side in (small, large))
    return _line(small**2, few, large**2, many), _line(small**2, quick, large**2, slow)


def _line(x: float, y: float, other_x: float, other_y: float) -> Line:
    """The straight line through two points, not falling."""
    slope = max(0.0, (other_y - y) / max(1.0, other_x - x))
    return lambda at: max(0.0, y - slope * x) + slope * at


def _fastest(net: nn.Module, side: int, device: torch.device) -> tuple[float, float]:
    """As `_probe`, the least time of a few: what else the machine does only ever adds to it."""
    found = [_probe(net, side, device) for _ in range(TRIALS)]
    return found[0][0], min(seconds for _, seconds in found)


def _probe(net: nn.Module, side: int, device: torch.device) -> tuple[float, float]:
    """Bytes that are kept for the backward pass of one square image, and seconds of both passes."""
    image = torch.zeros(1, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    known = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    started = time.perf_counter()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        found = net(image)
        given = found if isinstance(found, tuple) else (found,)
        outputs = [output for output in given if output is not None]  # None: a head that the network lacks
        total = torch.stack([output.float().sum() for output in outputs if output.requires_grad]).sum()
    torch.autograd.grad(total, trained, allow_unused=True)
    return float(sum(kept.values())), time.perf_counter() - started
