"""`cpn-label` on accelerators: which provider runs, float16 tried out, the benchmark, and the model card."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from cpn_export import providers
from cpn_export.label import LabelOnnxConfig, main, run_label_onnx
from cpn_export.metadata import ModelInfo
from cpn_export.runtime import OnnxLabeller
from cpn_fast.config.export import ExportConfig
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder
from tests.cpn_export.conftest import TOY_GRAPH, toy_info

WriteModel = Callable[..., Path]
CPU = "CPUExecutionProvider"
TOO_MUCH = TOY_GRAPH.replace("float none = {0}", "float none = {-inf}").replace(
    "nothing = Mul (labels, none)", "much = Mul (labels, none)\n  nothing = Sub (much, much)"
)
"""Scores of NaN, as float16 gives them where infinity meets infinity."""


class Session:
    """An onnxruntime that was built with more providers than this machine has: those of `starts` run, on the CPU."""

    starts: tuple[str, ...] = ()
    real = onnxruntime.InferenceSession

    def __init__(self, path: str, options: Any, providers: list[str]) -> None:
        self._inner = self.real(path, options, providers=[CPU])
        self._name = next((name for name in providers if name in self.starts), CPU)

    def get_providers(self) -> list[str]:
        return [self._name] if self._name == CPU else [self._name, CPU]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def built_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make onnxruntime one that was built with some providers, of which some start."""

    def build(*names: str, starts: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(Session, "starts", (*starts, CPU))
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names, CPU])
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)

    return build


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :10, 0] = 255
    path = tmp_path / "photos" / "one.png"
    path.parent.mkdir()
    Image.fromarray(image).save(path)
    return path.parent


def test_every_provider_is_one_that_onnxruntime_has() -> None:
    known = set(onnxruntime.get_all_providers())
    assert {chain[0] for chain in providers.PROVIDERS.values()} <= known
    assert set(providers.AUTO) | {"tensorrt"} == set(providers.PROVIDERS)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("openvino", "OpenVINOExecutionProvider"), ("coreml", "CoreMLExecutionProvider"),
     ("directml", "DmlExecutionProvider"), ("cuda", "CUDAExecutionProvider")],
)  # fmt: skip
def test_the_provider_asked_for_or_an_error(
    name: Any, wanted: str, write_toy_model: WriteModel, tmp_path: Path, built_with: Callable[..., None]
) -> None:
    model = write_toy_model(tmp_path / "m.onnx")
    built_with()
    with pytest.raises(DataError, match=f"this onnxruntime has no {wanted} .*; install .*use --provider cpu"):
        OnnxLabeller(model, name)
    built_with(wanted)
    with pytest.raises(DataError, match=f"could not start {wanted} on this machine .* would run on {CPU}"):
        OnnxLabeller(model, name)
    built_with(wanted, starts=(wanted,))
    assert OnnxLabeller(model, name).running_on == f"{name} ({wanted})"


class Watched:
    """A session whose bindings are looked at: each to the memory named, but made in that of the CPU."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.bound, self.plain = inner, [], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, *given: Any) -> Any:
        self.plain += 1
        return self._inner.run(*given)

    def io_binding(self) -> Any:
        binding, bound = self._inner.io_binding(), self.bound
        output = binding.bind_output

        def bind_output(name: str, memory: str, number: int) -> None:
            bound.append((name, memory, number))
            output(name, "cpu", number)

        binding.bind_output = bind_output
        return binding


@pytest.mark.parametrize("size", [1, 3])
def test_bound_to_memory_the_outputs_are_those_of_a_plain_run(
    write_toy_model: WriteModel, tmp_path: Path, size: int
) -> None:
    model = write_toy_model(tmp_path / "m.onnx")
    plain, bound = OnnxLabeller(model), OnnxLabeller(model)
    assert plain.memory is None
    bound.memory, bound.session = "cpu", Watched(bound.session)
    rows = np.full((size, 2), -1, np.float32)
    for height, width in ((5, 9), (12, 4)):  # outputs of another size each time
        images = np.random.default_rng(height).integers(0, 256, (size, height, width, 3), dtype=np.uint8)
        for with_maps in (True, False):
            found, expected = bound(images, rows, with_maps), plain(images, rows, with_maps)
            assert np.array_equal(found.mask, (images[..., 0] > 128).astype(np.uint8))
            assert np.array_equal(found.mask, expected.mask) and np.array_equal(found.scores, expected.scores)
            assert found.mask.dtype == np.uint8 and (found.maps is None) == (not with_maps)
            if with_maps:
                assert np.array_equal(found.maps, expected.maps)
    assert bound.session.plain == 0 and len(bound.session.bound) == 10
    kept = bound(images, rows).mask.copy()
    first = bound(images, rows).mask
    bound(255 - images, rows)
    assert np.array_equal(first, kept)  # what was given out is not written to by the next call


def test_which_providers_are_bound_to_their_memory(
    write_toy_model: WriteModel, tmp_path: Path, built_with: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_toy_model(tmp_path / "m.onnx")
    chains = {name: chain[0] for name, chain in providers.PROVIDERS.items() if name != "cpu"}
    built_with(*chains.values(), starts=tuple(chains.values()))
    found = {name: OnnxLabeller(model, name).memory for name in chains}  # type: ignore[arg-type]
    assert found == {"cuda": "cuda", "tensorrt": "cuda", "openvino": None, "coreml": None, "directml": None}
    inputs = []
    make = onnxruntime.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(
        onnxruntime.OrtValue, "ortvalue_from_numpy",
        lambda array, memory, number: inputs.append((array.dtype.name, memory, number)) or make(array, "cpu", 0),
    )  # fmt: skip
    labeller = OnnxLabeller(model, "cuda")
    labeller.session = Watched(labeller.session)  # type: ignore[assignment]
    image = np.full((1, 4, 6, 3), 200, np.uint8)
    assert (labeller(image, np.full((1, 2), -1, np.float32)).mask == 1).all()
    assert inputs == [("uint8", "cuda", 0), ("float32", "cuda", 0)]
    assert labeller.session.bound == [("scores", "cuda", 0), ("mask", "cuda", 0)]  # type: ignore[attr-defined]


def test_auto_takes_the_first_that_starts_and_says_what_it_passed_over(
    write_toy_model: WriteModel,
    tmp_path: Path,
    photo: Path,
    built_with: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = write_toy_model(tmp_path / "m.onnx")
    built_with("TensorrtExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider",
               starts=("TensorrtExecutionProvider", "OpenVINOExecutionProvider"))  # fmt: skip
    labeller = OnnxLabeller(model, "auto")
    assert labeller.running_on == "openvino (OpenVINOExecutionProvider)"
    assert len(labeller.passed_over) == 1 and "could not start CUDAExecutionProvider" in labeller.passed_over[0]
    summary = run_label_onnx(LabelOnnxConfig(model, (photo,), tmp_path / "out", provider="auto"))
    assert summary.written == 1
    assert "--provider auto: --provider cuda: onnxruntime could not start CUDAExecutionProvider" in caplog.text
    built_with()
    assert OnnxLabeller(model, "auto").running_on == f"cpu ({CPU})"


def test_the_plan_says_where_it_runs(
    write_toy_model: WriteModel, tmp_path: Path, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_toy_model(tmp_path / "m.onnx")
    assert main([str(model), str(photo), "--output", str(tmp_path / "out")]) == 0
    out, err = capfd.readouterr()
    assert f"running on cpu ({CPU})" in " ".join((out + err).split())


def test_float16_that_overflows_on_the_provider_is_refused(write_toy_model: WriteModel, tmp_path: Path) -> None:
    whole = write_toy_model(tmp_path / "float32.onnx", graph=TOO_MUCH)
    OnnxLabeller(whole)  # a float32 network is not tried out: its NaN shows in the images
    half = write_toy_model(tmp_path / "float16.onnx", graph=TOO_MUCH, precision="float16")
    with pytest.raises(DataError, match=r"gives NaN or infinity on cpu \(CPU.*export the run with --precision float32"):
        OnnxLabeller(half)
    good = write_toy_model(tmp_path / "good.onnx", precision="float16")
    assert OnnxLabeller(good).info.precision == "float16"


def test_benchmark(
    write_toy_model: WriteModel,
    tmp_path: Path,
    photo: Path,
    built_with: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_toy_model(tmp_path / "m.onnx")
    built_with("CUDAExecutionProvider", "OpenVINOExecutionProvider", starts=("OpenVINOExecutionProvider",))
    assert main([str(model), str(photo), "--benchmark", "--batches", "1", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "float32, image of 30 x 20 pixels, images/s:"
    rates = [match for line in lines if (match := re.fullmatch(r"(\w+) \(\w+\), batch (\d): ([\d.]+)", line))]
    assert [(rate[1], rate[2]) for rate in rates] == [("cpu", "1"), ("cpu", "3"), ("openvino", "1"), ("openvino", "3")]
    assert all(float(rate[3]) > 0 for rate in rates)
    assert [line for line in lines if line.startswith("cuda: not usable: ")] and len(lines) == 6
    assert main([str(model), "--benchmark", "--provider", "cuda"]) == 2  # asked for by name
    assert main([str(model), "--benchmark", "--batches", "0"]) == 2
    assert "--batches 0: expected" in capsys.readouterr().err
    assert not list(tmp_path.glob("*masks*"))


def test_a_provider_that_labels_otherwise_gets_no_figure(
    write_toy_model: WriteModel,
    tmp_path: Path,
    built_with: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_toy_model(tmp_path / "m.onnx")
    built_with("OpenVINOExecutionProvider", starts=("OpenVINOExecutionProvider",))
    call = OnnxLabeller.__call__

    def other(self: OnnxLabeller, images: Any, labels: Any, with_maps: bool = False) -> Any:
        found = call(self, images, labels, with_maps)
        if self.provider == "openvino":
            found.mask[:, 0] ^= 1
        return found

    monkeypatch.setattr(OnnxLabeller, "__call__", other)
    assert main([str(model), "--benchmark", "--batches", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("float32, image of 64 x 48 pixels")  # noise of the model's longest side
    where = "openvino (OpenVINOExecutionProvider)"
    assert f"{where}: no figure: only 97.92% of the pixels are labelled as by the CPU" in lines


def test_the_card_of_a_run_holds_what_was_measured(tmp_path: Path) -> None:
    to_onnx = pytest.importorskip("cpn_export.to_onnx", reason="needs what exports")
    run, config = RunFolder(tmp_path), ExportConfig(tmp_path, tmp_path / "m.onnx", licence="CC0-1.0")
    assert to_onnx._card(config, run, 256) == {"crop": 256, "licence": "CC0-1.0"}
    run.scores_path.write_text('{"miou": null, "data": "voc:x", "split": "val"}')  # no mask held a class
    assert "miou" not in to_onnx._card(config, run, 256)
    run.scores_path.write_text('{"miou": 0.25, "data": "voc:x", "split": "val"}')
    card = to_onnx._card(config, run, 256)
    assert (card["miou"], card["miou_of"]) == (0.25, "voc:x (val)")
    info = toy_info(**card)
    assert ModelInfo.from_metadata(info.to_metadata(), "x") == info


def test_the_card_is_printed(write_toy_model: WriteModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"crop": 448, "miou": 0.5678, "miou_of": "voc:VOC2012 (val)", "licence": "CC-BY-4.0"}
    model = write_toy_model(tmp_path / "m.onnx", **told)
    assert main([str(model), "--info"]) == 0
    out = capsys.readouterr().out
    for line in ("classes: 2: cat, dög", "trained on: crops of 448 pixels", "scales: 1 of the image",
                 "mIoU: 56.8% on voc:VOC2012 (val)", "licence: CC-BY-4.0"):  # fmt: skip
        assert f"\n{line}\n" in out
    older = {key: value for key, value in toy_info().to_metadata().items()
             if key.rpartition(".")[2] not in told}  # fmt: skip
    info = ModelInfo.from_metadata(older, "of an earlier version")
    assert (info.crop, info.miou, info.licence) == (None, None, "")
    model = write_toy_model(tmp_path / "older.onnx", metadata=older)
    assert main([str(model), "--info"]) == 0
    assert "mIoU: not measured when it was exported\nlicence: not stated" in capsys.readouterr().out
