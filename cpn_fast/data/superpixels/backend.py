"""Which SLIC cuts a run's patches: settled once, stored with the run, and the same for every process and resume."""

from __future__ import annotations

import dataclasses

from cpn_fast.config.training import TrainConfig
from cpn_fast.fabric import Fabric
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder
from cpn_kernels.ops.superpixels import Backend, backend_version, resolve_backend


def resolve_run_backend(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """Put a name in the place of "auto": on resume the run's own, else what is there on this machine.

    Args:
        config: settings of the run.
        folder: where it is, or will be, stored.

    Returns:
        The settings with `patch.backend` named; as they were where no superpixels are hidden.

    Raises:
        DataError: on resume where the run's backend is not there, or is there in another version: other patches.
    """
    if not hides_superpixels(config):
        return config
    backend = config.patch.backend
    if config.loop.resume:
        backend = _resumed(backend, folder)
    elif backend == "auto":
        backend = resolve_backend("auto")
    return dataclasses.replace(config, patch=dataclasses.replace(config.patch, backend=backend))


def _resumed(backend: Backend, folder: RunFolder) -> Backend:
    stored, made_by = folder.config.patch.backend, folder.backend_version
    if backend == "auto" and stored == "auto":
        raise DataError(
            f"{folder.config_path}: patch.backend is 'auto', which does not say what made the run's patches; expected "
            "a name: give --patch.backend native or skimage"
        )
    if backend == "auto":
        backend = stored
    if backend != stored or made_by is None:  # settings that differ are refused where all of them are compared
        return backend
    try:
        here = version_of(backend)
    except DataError as error:
        raise DataError(f"{folder.path}: the run's patches were made by {made_by}; {error}") from error
    if here != made_by:
        raise DataError(
            f"{folder.path}: the run's patches were made by {made_by}, here is {here}, whose patches differ; install "
            f"{made_by}, or start a new run in another --output"
        )
    return backend


def version_of(backend: Backend) -> str:
    """Name and version of a backend, e.g. "native 1". Raises DataError where it is not installed."""
    try:
        return backend_version(backend)
    except ImportError as error:
        raise DataError(f"--patch.backend {backend}: {error}") from error


def broadcast_backend(fabric: Fabric, config: TrainConfig) -> str | None:
    """The backend's name and version, the same in every process; None where no superpixels are hidden.

    Raises:
        DataError: where this process has another one than the first, since its patches would differ.
    """
    if not hides_superpixels(config):
        return None
    here = version_of(config.patch.backend)
    first = fabric.broadcast(here)
    if here != first:
        raise DataError(
            f"process {fabric.global_rank} has superpixels of {here}, the first process of {first}; install the same "
            "on every machine, or name one that all have with --patch.backend"
        )
    return first


def hides_patches(config: TrainConfig) -> bool:
    """Whether this run hides patches of its crops."""
    return config.method == "cpn"


def hides_superpixels(config: TrainConfig) -> bool:
    """Whether the patches of this run are superpixels."""
    return hides_patches(config) and config.patch.kind == "superpixel"
