"""A training of several processes: what it does when one of them is lost, or they are started anew."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cpn_fast.config.training import C, replace_dotted
from cpn_fast.fabric import Fabric
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder

log = logging.getLogger(__name__)

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Of torchrun's environment: without it the processes that it starts again find the addresses of those before in the
store that they share (seen with torch 2.13 and gloo), and wait for them."""


def resumed_after_restart(config: C, folder: RunFolder) -> C:
    """The settings, with `resume` where torchrun may start the processes anew and the run has begun.

    `torchrun --max-restarts N` gives every process the same command each time, so that command has to mean both.

    Args:
        config: as given.
        folder: of the run.
    """
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0) < 1:
        return config
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("RANK") in (None, "0"):
        log.warning("--max-restarts: set %s=1 before torchrun, or processes that start again may not meet", OWN_STORE)
    return replace_dotted(config, {"resume": True}) if folder.exists() else config


@contextmanager
def lost_processes_told(fabric: Fabric, timeout: int) -> Iterator[None]:
    """Turn what the network library says of a process that is gone, or does not answer, into a DataError.

    Args:
        fabric: of the training.
        timeout: seconds for which processes wait for one another.
    """
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not is_loss(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"process {fabric.global_rank} of {fabric.world_size}: another one has ended, or did not answer for "
            f"{timeout} s (--timeout): {reason}; see its own last lines, then resume with --resume"
        ) from error


def is_loss(error: RuntimeError) -> bool:
    """Whether an error is that of a connection to another process: gloo's have no class of their own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
