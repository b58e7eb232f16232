"""What all tests share: nothing is written to the user's cache, one torch thread, GPU tests skip without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from cpn_fast.runs.folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Two test processes share two cores: more torch threads would only wait for one another, as would the processes
    that torch.compile starts, each of which loads torch."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, with cpn_export's files as one: they share trained networks and their exports, a minute."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/cpn_export" if file.startswith("tests/cpn_export/") else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left with one at the end; skip what the machine cannot run."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    _skip_without_data(items)
    _skip_without_gpu(items)


def _skip_without_data(items: list[pytest.Item]) -> None:
    """Skip `data(PATH)` where the folder named by CPN_TEST_DATA does not hold PATH."""
    folder = os.environ.get("CPN_TEST_DATA")
    for item in items:
        for mark in item.iter_markers("data"):
            if folder is None or not (Path(folder) / mark.args[0]).exists():
                item.add_marker(pytest.mark.skip(reason=f"needs {mark.args[0]}, looked for in $CPN_TEST_DATA"))


def _skip_without_gpu(items: list[pytest.Item]) -> None:
    """Skip `gpu` where torch sees none."""
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
    """The cache of demo scenes and superpixels, empty at the start; also seen by processes that tests start.

    So is that of compiled code, which both test processes share, but no other suite: torch loads what another process
    has half written.
    """
    folder = tmp_path_factory.mktemp("cache")
    os.environ["CPN_CACHE"] = str(folder)
    session = tmp_path_factory.getbasetemp()
    session = session.parent if "PYTEST_XDIST_WORKER" in os.environ else session
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(session / "torchinductor")
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """No power is cut here: thousands of small files need not reach the disk one by one.

    That they would is a test of its own in files/test_atomic_manifest.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def released() -> dict[str, Tensor]:
    """Losses, targets and gradients of the authors' own code, float64; `data/README.md` says what each key holds."""
    import numpy as np
    import torch

    with np.load(REPOSITORY / "tests" / "data" / "released_losses.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated set of 12 train, 6 val and 16 pretrain images; open it with `demo:PATH`."""
    from cpn_fast.data.sources.demo import generate_demo

    return generate_demo(tmp_path_factory.mktemp("scenes") / "demo", train=12, val=6, pretrain=16, processes=1)


@pytest.fixture(scope="session")
def make_run(small_demo: Path) -> Callable[..., RunFolder]:
    """Write a run folder with untrained weights: `make_run(path, method="cpn", weights=True)`."""

    def make(path: Path, method: str = "cpn", weights: bool = True) -> RunFolder:
        import torch

        from cpn_fast.config.training import AugmentOptions, TrainConfig
        from cpn_fast.data.sources.demo_scenes import CLASSES
        from cpn_fast.models import create_model
        from cpn_fast.runs.folder import RunFolder

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


@pytest.fixture(scope="session")
def make_labelling() -> Callable[..., Path]:
    """Write a folder as `cpn label --soft-maps` does, of two-coloured images: `make_labelling(path, count=4)`.

    Each image is 40 high and 56 wide, blue with a red or green rectangle, which is class 1 or 2. The maps are sure
    of the rectangle's upper half alone.
    """

    def make(path: Path, count: int = 4, classes: tuple[str, ...] = ("red", "green", "unseen")) -> Path:
        import json

        import numpy as np
        from PIL import Image

        from cpn_fast.files.masks import write_labelmap, write_mask
        from cpn_fast.files.soft_maps import SoftMaps, write_soft_maps

        lines = []
        for number in range(count):
            rng = np.random.default_rng(number)
            name = ("red", "green")[number % 2]
            rows = slice(*sorted((4 + int(rng.integers(8)), 28 + int(rng.integers(8)))))
            columns = slice(6 + int(rng.integers(10)), 34 + int(rng.integers(12)))
            image = np.empty((40, 56, 3), np.uint8)
            image[:] = (20, 30, 200)
            image[rows, columns] = {"red": (210, 20, 20), "green": (20, 200, 40)}[name]
            image_path = path.parent / f"{path.name} images" / f"{number}.png"
            image_path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(image_path)
            maps = np.zeros((1, 40, 56), np.float32)
            maps[0, rows, columns] = 0.4
            maps[0, rows.start : (rows.start + rows.stop) // 2, columns] = 1.0
            value = classes.index(name) + 1
            write_soft_maps(path / "SoftMaps" / f"{number}.npz", SoftMaps(np.array([value], np.uint8), maps, (40, 56)))
            write_mask(path / "SegmentationClass" / f"{number}.png", (value * (maps[0] > 0.5)).astype(np.uint8))
            entry = {"id": str(number), "status": "ok", "image": str(image_path), "width": 56, "height": 40}
            lines.append(json.dumps({**entry, "labels": [name], "labels_from": "image"}))
        (path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
        (path / "settings.json").write_text(json.dumps({"beta": 0.5, "classes": list(classes), "flip": True}))
        write_labelmap(path / "labelmap.txt", classes)
        return path

    return make


@pytest.fixture(scope="module", autouse=True)
def same_threads() -> None:
    """Begin every module with the asked-for number of torch threads: with another one, sums round differently."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def cpn_without_torch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `cpn ARGUMENTS` in a process in which what comes with [train] alone cannot be imported."""
    code = """
import importlib.util, sys
HIDDEN = {"torch", "triton", "lightning_fabric", "skimage", "cv2", "safetensors", "onnx", "tensorboard"}
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else found(name, package)
from cpn_fast.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)

    return run
