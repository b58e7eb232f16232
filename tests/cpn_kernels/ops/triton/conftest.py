"""The tests in here run Triton kernels: on a GPU where there is one, else in Triton's interpreter.

The interpreter is chosen as kernels are defined, so it needs a process of its own: `test_interpreted.py` one folder up
starts it, on every machine. Collected in an ordinary process, the same tests are GPU tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests `gpu` unless the interpreter runs them."""
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="session", autouse=True)
def patched_once_a_launch() -> Iterator[None]:
    """Triton's interpreter patches its language anew at every call of a device function: half of the time it takes.

    A launch patches it, and undoes that at its end; in between, what its device functions would patch is patched
    already, but for the modules that the kernel itself does not name: those are done at their first call.
    """
    if not INTERPRETED:
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    dtype_of = interpreter._get_np_dtype
    done: set[tuple[bool, ...]] = set()
    dtypes: dict[str, Any] = {}

    def dtype_once(dtype: Any) -> Any:
        """It writes a table of all types anew at every call, a tenth of the time."""
        scalar = dtype.scalar
        if type(scalar) is not language.dtype:  # pointers
            return dtype_of(dtype)
        if scalar.name not in dtypes:
            dtypes[scalar.name] = dtype_of(scalar)
        return dtypes[scalar.name]

    def patch_once(function: Callable[..., Any]) -> Any:
        seen = {id(value) for value in function.__globals__.values()}
        modules = tuple(id(module) in seen for module in (language, language.core))
        if modules in done:
            return interpreter._LangPatchScope()
        done.add(modules)
        return patch(function)

    def launch_anew(self: Any, *arguments: Any, **options: Any) -> None:
        done.clear()
        launch(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as held:
        held.setattr(interpreter, "_patch_lang", patch_once)
        held.setattr(interpreter, "_get_np_dtype", dtype_once)
        held.setattr(interpreter.GridExecutor, "__call__", launch_anew)
        yield


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fill fresh memory with NaN, or the largest integer: what a kernel leaves unwritten shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public functions take the kernels, also for the interpreter's CPU tensors."""
    if INTERPRETED:
        for operator in (
            "pixel_correlation",
            "cp_triplet",
            "cp_loss",
            "random_walk",
            "dense_crf",
            "patch_crop",
            "augmented_crop",
        ):
            monkeypatch.setattr(f"cpn_kernels.ops.{operator}.use_triton", lambda *tensors: True, raising=False)
