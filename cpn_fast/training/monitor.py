"""What a step measures, read by the host a step late, and the guard that keeps non-finite values from the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpn_fast.files.errors import NonFiniteError

NORM = "grad_norm"


class AsyncRead:
    """A device tensor on its way to the host: the copy is queued now, waited for when it is read."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = values.clone()

    def read(self) -> Tensor:
        """The values on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


@dataclass(frozen=True)
class StepValues:
    """What the host learns of a step.

    Attributes:
        step: number of the step, from 1.
        losses: `loss` and its parts, means over all processes, and `grad_norm`.
        stop: some process was asked to stop.
        extra: further values that travelled along, on the CPU.
    """

    step: int
    losses: dict[str, float]
    stop: bool
    extra: dict[str, Tensor]


@dataclass(frozen=True)
class PendingStep:
    """A step that was observed, whose values are on their way to the host."""

    step: int
    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: AsyncRead  # [len(names) + 2]: losses and norm, bad, stop
    gradients: tuple[list[str], Tensor] | None  # P names, [P] norms on the device
    extra: dict[str, AsyncRead]


class NonFiniteGuard:
    """Gathers a step's losses on the device, decides there whether the update may happen, and reports a step late.

    `observe` never waits for the device. Once a step was bad, every later update is held back too, until the host
    notices (in the next step, or before a checkpoint) and raises.

    Args:
        parameters: the trained parameters with their names, in one order on every process.
        check_gradients: False with a gradient scaler, which overflows on purpose and holds such updates back itself.
    """

    def __init__(self, parameters: Sequence[tuple[str, nn.Parameter]], check_gradients: bool = True) -> None:
        self.parameters = list(parameters)
        self.check_gradients = check_gradients
        self._skip: Tensor | None = None
        self._pending: PendingStep | None = None

    def observe(
        self,
        step: int,
        ids: Sequence[str],
        losses: Mapping[str, Tensor],
        stop: bool = False,
        extra: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Take in step `step` after its backward pass.

        Args:
            step: its number, from 1.
            ids: this process's images.
            losses: scalars on the device.
            stop: this process was asked to stop.
            extra: tensors on the device that the host wants to read along.

        Returns:
            float32 scalar on the device, 1 where the update must not happen: to be given to `optim.skip_update`.
        """
        parts = {name: value.detach().float() for name, value in losses.items()}
        gradients = None
        if self.check_gradients:
            named = [(name, p.grad) for name, p in self.parameters if p.grad is not None]
            norms = torch.stack(torch._foreach_norm([grad for _, grad in named]))  # one pass, as clipping does it
            gradients = [name for name, _ in named], norms
            parts[NORM] = torch.linalg.vector_norm(norms)
        values = torch.stack(list(parts.values()))
        bad = (~torch.isfinite(values).all()).float()
        packed = torch.cat([values, torch.stack([bad, bad.new_full((), float(stop))])])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(packed)
            packed[:-2] /= torch.distributed.get_world_size()
        bad = (packed[-2] > 0).float()
        self._skip = bad if self._skip is None else torch.maximum(self._skip, bad)
        late = {name: AsyncRead(value) for name, value in (extra or {}).items()}
        self._pending = PendingStep(step, tuple(ids), tuple(parts), AsyncRead(packed), gradients, late)
        return self._skip

    def take(self) -> PendingStep | None:
        """Hand over the step that was observed last, to be given to `report` later."""
        pending, self._pending = self._pending, None
        return pending

    def report(self, pending: PendingStep) -> StepValues:
        """Wait for the values of an observed step.

        Raises:
            NonFiniteError: if its loss or gradient was not finite; its update and all later ones were held back.
        """
        values = pending.values.read().tolist()
        losses = dict(zip(pending.names, values[:-2], strict=True))
        if values[-2] > 0:
            raise NonFiniteError(self._explain(pending, losses))
        extra = {name: late.read() for name, late in pending.extra.items()}
        return StepValues(pending.step, losses, values[-1] > 0, extra)

    def _explain(self, pending: PendingStep, losses: Mapping[str, float]) -> str:
        parts = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value) and name != NORM]
        what = "loss part" if parts else "gradient of"
        if not parts and pending.gradients is not None:
            names, norms = pending.gradients
            parts = [name for name, good in zip(names, torch.isfinite(norms).tolist(), strict=True) if not good]
            parts = parts[:5] + ([f"{len(parts) - 5} more"] if len(parts) > 5 else []) or ["all parameters together"]
        ids = _all_ids(pending.ids)
        return f"diverged at step {pending.step}: not finite: {what} {', '.join(parts)}; images: {', '.join(ids)}"


def _all_ids(ids: tuple[str, ...]) -> list[str]:
    """The images of every process; all of them get here in the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(ids)
    gathered: list[tuple[str, ...] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, ids)
    return [name for part in gathered if part for name in part]
