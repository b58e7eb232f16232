"""`import cpn_fast` as a person in a notebook uses it: what it gives, and that it gives it in silence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import jaccard_score

import cpn_fast
import cpn_kernels
from cpn_fast.api.errors import python_words
from cpn_fast.config.training import AugmentOptions, DeviceOptions, LoopOptions, PatchOptions
from cpn_fast.files.masks import read_mask
from cpn_fast.models.build import create_deeplab
from cpn_fast.models.cam import CamNet
from cpn_fast.runs.folder import RunFolder
from tests.cpn_fast.models.backbones.pyramids import Pyramid, build

SCALES = (0.5, 1.0)


@pytest.fixture(scope="module")
def run(make_run: Callable[..., RunFolder], tmp_path_factory: pytest.TempPathFactory) -> cpn_fast.Run:
    loaded = cpn_fast.load(make_run(tmp_path_factory.mktemp("api") / "run").path)
    assert isinstance(loaded, cpn_fast.Run)
    return loaded


@pytest.fixture(scope="module")
def demo(small_demo: Path) -> str:
    return f"demo:{small_demo}"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_and_what_needs_no_network_loads_no_torch() -> None:
    said = python(
        "import sys, cpn_fast\n"
        "early = sorted(name for name in sys.modules if name.startswith('cpn_fast.'))\n"
        "names = [cpn_fast.list_backbones()[0], cpn_fast.TrainConfig.__name__, cpn_fast.open_source.__name__]\n"
        "names += [cpn_fast.Run.__name__, cpn_fast.load.__name__, cpn_fast.DataError.__name__]\n"
        "print(early, names, 'torch' in sys.modules, 'rich' in sys.modules)"
    )
    assert said.split("]")[0] == "["  # not even a module of its own
    assert "'resnet38', 'TrainConfig', 'open_source', 'Run', 'load', 'DataError'" in said
    assert said.strip().endswith("False False")


def test_every_public_name_is_there_and_others_are_not() -> None:
    assert all(getattr(cpn_fast, name) is not None for name in cpn_fast.__all__)
    assert set(cpn_fast.__all__) <= set(dir(cpn_fast))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = cpn_fast.nonsense


def test_operators_are_functions() -> None:
    from cpn_kernels import pixel_correlation

    embedding, maps = torch.rand(1, 3, 4), torch.rand(1, 2, 4)
    assert pixel_correlation(embedding, maps).shape == (1, 2, 4)
    for name in ("cp_triplet", "cp_loss", "superpixels", "random_walk", "dense_crf"):
        assert callable(getattr(cpn_kernels, name))


@pytest.mark.parametrize("first", ["import cpn_fast.train", "from cpn_fast import train", "cpn_fast.load"])
def test_train_is_the_function_and_the_module_behind_python_m(first: str) -> None:
    """Python puts a submodule in the place of the function once it is imported; it is called alike."""
    said = python(
        f"import cpn_fast\n{first}\nfrom cpn_fast.train import main\n"
        "try:\n    cpn_fast.train('config.json')\n"
        "except cpn_fast.DataError as error:\n    print(error)\n"
        "print(main.__module__)"
    )
    assert "str: expected a TrainConfig" in said and said.endswith("cpn_fast.train\n")


def test_python_m_cpn_fast_train_is_the_command() -> None:
    command = [sys.executable, "-m", "cpn_fast.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and "--backbone" in done.stdout and not done.stderr


def test_a_training_is_silent_and_gives_a_run(demo: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = cpn_fast.TrainConfig(
        data=demo, output=tmp_path / "run", backbone="resnet38_tiny",
        loop=LoopOptions(max_steps=2, batch_size=2, val_images=2),
        device=DeviceOptions(accelerator="cpu", workers=0),
        augment=AugmentOptions(crop=32), patch=PatchOptions(kind="grid"),
    )  # fmt: skip
    run = cpn_fast.train(config)
    assert capfd.readouterr() == ("", "")
    assert (run.path, run.kind) == (tmp_path / "run", "cam")
    assert run.config.backbone == "resnet38_tiny" and run.classes == cpn_fast.open_source(demo).classes
    assert [record["step"] for record in run.metrics if record["kind"] == "step"] == [1, 2]
    assert isinstance(run.network(), CamNet) and not run.network().training
    with pytest.raises(cpn_fast.DataError, match="run"):
        cpn_fast.train(config)  # the folder holds one


def test_a_photo_is_labelled_as_the_command_labels_it(
    run: cpn_fast.Run, demo: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = cpn_fast.open_source(demo)
    summary = cpn_fast.label(run, source, tmp_path, split="val", scales=SCALES, device="cpu", sheet=0, beta=0.3)
    assert summary.written == len(source.records("val")) and summary.failed == 0
    labeller = run.labeller(scales=SCALES, device="cpu", beta=0.3)
    for record in source.records("val")[:2]:
        names = [source.classes[index] for index in record.labels or ()]
        image = source.read(record).image
        out = labeller(image, labels=names)
        assert np.array_equal(out.mask, read_mask(tmp_path / "SegmentationClass" / f"{record.id}.png"))
        assert out.labels == tuple(names) and out.classes == source.classes
        assert out.maps.shape == (len(names), *image.shape[:2]) and out.maps.dtype == np.float32
        values = [0, *(source.classes.index(name) + 1 for name in names)]
        decided = np.concatenate([np.full((1, *image.shape[:2]), 0.3, np.float32), out.maps]).argmax(axis=0)
        assert np.array_equal(out.mask, np.array(values)[decided])
        assert out.scores.shape == (len(source.classes),) and ((out.scores >= 0) & (out.scores <= 1)).all()
    assert capfd.readouterr() == ("", "")


def test_files_arrays_pil_images_and_lists_are_the_same_photo(run: cpn_fast.Run, demo: str, tmp_path: Path) -> None:
    source = cpn_fast.open_source(demo)
    image = source.read(source.records("val")[0]).image
    Image.fromarray(image).save(tmp_path / "photo.png")
    labeller, name = run.labeller(scales=(1.0,), device="cpu"), source.classes[0]
    expected = labeller(image, [name])
    given = [tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(image), image]
    found = labeller(given, labels=[[name]] * 4)
    assert all(np.array_equal(out.mask, expected.mask) and np.array_equal(out.maps, expected.maps) for out in found)
    assert np.array_equal(labeller(image, name).mask, expected.mask)  # one name alone
    grey = image[:, :, 0].copy()
    assert np.array_equal(labeller(grey).scores, labeller(Image.fromarray(grey)).scores)
    alone = labeller(image)
    best = source.classes[int(alone.scores.argmax())]
    assert best in alone.labels and labeller([image])[0].labels == alone.labels
    expected.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), expected.mask)


def test_a_segmentation_network_by_the_same_calls(demo: str, tmp_path: Path) -> None:
    source = cpn_fast.open_source(demo)
    config = cpn_fast.SegmentConfig(data=demo, output=tmp_path / "run", masks="truth", backbone="resnet38_tiny")
    folder = RunFolder(config.output)
    folder.create(config, source.classes)
    torch.manual_seed(0)
    folder.save_model(create_deeplab(config, len(source.classes)), 0)
    run = cpn_fast.load(folder.path)
    assert run.kind == "segmentation"
    record = source.records("val")[0]
    cpn_fast.label(run, source, tmp_path / "masks", split="val", scales=(1.0,), device="cpu")
    labeller, image = run.labeller(scales=(1.0,), device="cpu"), source.read(record).image
    out = labeller(image)
    assert np.array_equal(out.mask, read_mask(tmp_path / "masks" / "SegmentationClass" / f"{record.id}.png"))
    assert [source.classes.index(name) + 1 for name in out.labels] == [v for v in np.unique(out.mask) if v]
    assert out.maps.shape == (len(out.labels), *image.shape[:2]) and out.maps.sum(axis=0).max() <= 1 + 1e-5
    limited = labeller(image, [source.classes[2]])  # background and this class are left to choose from
    assert set(np.unique(limited.mask)) <= {0, 3} and limited.maps[0].max() == pytest.approx(limited.scores[2])
    assert (limited.mask[limited.maps[0] > 0.5] == 3).all()
    with pytest.raises(cpn_fast.DataError, match="beta is for CAM networks"):
        run.labeller(beta=0.3)
    scores = cpn_fast.evaluate(run, source, split="val", scales=(1.0,), device="cpu")
    assert scores.miou is not None and scores.miou == pytest.approx(
        cpn_fast.evaluate(tmp_path / "masks", source, split="val").miou
    )


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), None, r"array float32 \[4, 4, 3\]; expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), None, "expected uint8"),
        (7, None, "image is a int; expected a path"),
        ("nowhere.jpg", None, "nowhere.jpg"),
        (np.zeros((4, 4, 3), np.uint8), ["nothing"], "unknown class 'nothing'"),
        ([np.zeros((4, 4, 3), np.uint8)], [], "of 1 images"),
        ([np.zeros((4, 4, 3), np.uint8)], ["dog"], "of 1 images"),
    ],
)
def test_what_is_no_photo_or_class_is_said(run: cpn_fast.Run, image: object, labels: object, message: str) -> None:
    labeller = run.labeller(scales=(1.0,), device="cpu")
    with pytest.raises(cpn_fast.DataError, match=message):
        labeller(image, labels)  # type: ignore[call-overload]


def test_masks_are_scored_as_another_library_scores_them(
    run: cpn_fast.Run, demo: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = cpn_fast.open_source(demo)
    cpn_fast.label(str(run.path), demo, tmp_path, split="val", scales=(1.0,), device="cpu", sheet=0)
    scores = cpn_fast.evaluate(tmp_path, demo, split="val")
    truth, found = [], []
    for record in source.records("val"):
        mask = source.read(record, with_mask=True).mask
        assert mask is not None
        truth.append(mask[mask < 255])
        found.append(read_mask(tmp_path / "SegmentationClass" / f"{record.id}.png")[mask < 255])
    every = (np.concatenate(truth), np.concatenate(found))
    values = np.unique(np.concatenate(every))
    expected = jaccard_score(*every, labels=values, average=None)
    names = ("background", *source.classes)
    assert scores.per_class == pytest.approx(
        {name: expected[list(values).index(v)] if v in values else None for v, name in enumerate(names)}
    )
    assert scores.miou == pytest.approx(expected.mean()) and scores.images == len(truth) and scores.beta is None
    assert capfd.readouterr() == ("", "")
    assert cpn_fast.evaluate(tmp_path, source, split="val", progress=True).miou == scores.miou
    assert "mean" in capfd.readouterr().out  # the table


def test_a_network_to_train_by_oneself(tmp_path: Path) -> None:
    net = cpn_fast.create_model("cpn", backbone="resnet38_tiny", num_classes=3)
    assert net.refinement == "pcm" and net(torch.zeros(1, 3, 32, 40)).cam.shape == (1, 3, 4, 5)
    assert cpn_fast.create_model("cam", backbone="resnet38_tiny", num_classes=3).refinement == "none"
    module = build()
    own = cpn_fast.create_model("seam", backbone=module, num_classes=2)
    assert own.backbone.body is module and own(torch.zeros(1, 3, 32, 48)).cam.shape == (1, 2, 2, 3)
    path = tmp_path / "w.safetensors"
    save_file({f"model.{key}": torch.full_like(value, 0.5) for key, value in Pyramid().state_dict().items()}, path)
    own = cpn_fast.create_model(backbone=Pyramid(), num_classes=2, weights=path)
    assert all((p == 0.5).all() for p in own.backbone.parameters())
    with pytest.raises(cpn_fast.DataError, match="at least 1"):
        cpn_fast.create_model(backbone="resnet38_tiny", num_classes=0)


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    for path, message in ((tmp_path, "no run here"), (tmp_path / "model.h5", r"a file that can be loaded \(\.onnx")):
        with pytest.raises(cpn_fast.DataError, match=message):
            cpn_fast.load(path)
    with pytest.raises(cpn_fast.DataError, match="no such file"):
        cpn_fast.load(tmp_path / "model.onnx")


def test_errors_name_arguments_and_leave_commands_alone(run: cpn_fast.Run, demo: str, tmp_path: Path) -> None:
    with pytest.raises(cpn_fast.DataError, match=r"^max_side 0: expected at least 1"):
        cpn_fast.label(run, demo, tmp_path / "masks", max_side=0)
    with pytest.raises(cpn_fast.DataError, match=r"^batch_size 0: expected"):
        cpn_fast.evaluate(run, demo, output=tmp_path / "scores", batch_size=0)
    with pytest.raises(cpn_fast.DataError, match=r"^scales 0: expected different numbers"):
        run.labeller(scales=(0,))
    said = "give `cpn label --soft-maps` --hard, --no-flip or --max-side; a--b, `--x` and -- stay"
    assert python_words(said) == "give `cpn label --soft-maps` hard, flip=False or max_side; a--b, `--x` and -- stay"
