"""What all tests share: nothing is written to the user's cache, one torch thread, GPU tests skip without a GPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cpn_fast.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Two test processes share two cores; more torch threads would only wait for one another."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    reason = "needs torch with a CUDA device"
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of demo scenes and superpixels, empty at the start; also seen by processes that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["CPN_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated set of 12 train, 6 val and 16 pretrain images; open it with `demo:PATH`."""
    from cpn_fast.data.demo import generate_demo

    return generate_demo(tmp_path_factory.mktemp("scenes") / "demo", train=12, val=6, pretrain=16, processes=1)


@pytest.fixture(scope="session")
def make_run(small_demo: Path) -> Callable[..., RunFolder]:
    """Write a run folder with untrained weights: `make_run(path, method="cpn", weights=True)`."""

    def make(path: Path, method: str = "cpn", weights: bool = True) -> RunFolder:
        import torch

        from cpn_fast.config import AugmentOptions, TrainConfig
        from cpn_fast.data.demo_scenes import CLASSES
        from cpn_fast.models import create_model
        from cpn_fast.run_folder import RunFolder

        config = TrainConfig(
            data=f"demo:{small_demo}",
            output=path,
            method=method,  # type: ignore[arg-type]
            backbone="resnet38_tiny",
            augment=AugmentOptions(crop=64),
        )
        path.mkdir(parents=True, exist_ok=True)
        run = RunFolder(path)
        run.create(config, CLASSES)
        if weights:
            torch.manual_seed(0)
            run.save_model(create_model(config, len(CLASSES)), 0)
        return run

    return make


@pytest.fixture(scope="module", autouse=True)
def same_threads() -> None:
    """Begin every module with the asked-for number of torch threads: with another one, sums round differently."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
