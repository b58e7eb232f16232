"""What is left to the machine: bf16, compilation and loaders on a GPU, nothing new on a CPU; a resume keeps its own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from cpn_fast.cam.options import parse
from cpn_fast.config.training import DeviceOptions, TrainConfig
from cpn_fast.files.errors import DataError
from cpn_fast.runs.folder import RunFolder, check_same_settings
from cpn_fast.training.device_choice import Machine, choose_device, settle_device

CPU, H200 = Machine("", False, 16), Machine("NVIDIA H200", True, 16)
TURING = Machine("NVIDIA T4", False, 4)


def chosen(machine: Machine, stored: DeviceOptions | None = None, **given: object) -> tuple[object, ...]:
    options = choose_device(DeviceOptions(**given), machine, stored).options  # type: ignore[arg-type]
    return options.precision, options.compile, options.workers, options.trial_step


def test_by_machine() -> None:
    assert chosen(CPU) == ("32-true", "off", 2, "off")  # as before there was a choice
    assert chosen(H200) == ("bf16-mixed", "on", 15, "on")
    assert chosen(H200, devices=4) == ("bf16-mixed", "on", 3, "on")
    assert chosen(Machine("NVIDIA H200", True, 96)) == ("bf16-mixed", "on", 16, "on")
    assert chosen(TURING) == ("32-true", "on", 3, "on")
    assert chosen(Machine("NVIDIA T4", False, 1))[2] == 2


def test_every_choice_is_an_option() -> None:
    given = {"precision": "16-mixed", "compile": "off", "workers": 0, "trial_step": "off"}
    for machine in (CPU, H200):
        assert chosen(machine, **given) == ("16-mixed", "off", 0, "off")
    open_ones = {field.name for field in fields(DeviceOptions) if field.default in ("auto", None)}
    assert open_ones == {*given, "accelerator", "compile_mode"}


def test_the_reasons_name_what_was_chosen() -> None:
    first, second = choose_device(DeviceOptions(workers=3, cudnn_benchmark=False), H200).reasons
    assert first.startswith("training on NVIDIA H200: precision bf16-mixed (the GPU has it), --compile on (")
    assert second == (
        "memory format channels_last, fused SGD, TF32 on, cudnn.benchmark off; loader processes: 3 (as given)"
    )
    assert "16 cores for 2 processes" in choose_device(DeviceOptions(devices=2), H200).reasons[1]


def test_a_resumed_run_keeps_its_numbers(tmp_path: Path) -> None:
    stored = DeviceOptions(precision="bf16-mixed", compile="on", workers=9)
    assert chosen(CPU, stored) == ("bf16-mixed", "on", 2, "off")
    assert chosen(CPU, stored, precision="32-true")[0] == "32-true"  # refused where all settings are compared
    assert chosen(H200, DeviceOptions()) == ("bf16-mixed", "on", 15, "on")  # a run that did not say
    RunFolder(tmp_path).create(TrainConfig("demo:", tmp_path, device=stored), ["cat"])
    resumed = parse(["--resume", "--output", str(tmp_path), "--accelerator", "cpu"])
    settled, choice = settle_device(resumed, RunFolder(tmp_path))
    assert settled.device.precision == "bf16-mixed" and settled.device.compile == "on" and not choice.compile_may_fail


def test_what_is_left_open_contradicts_no_run(tmp_path: Path) -> None:
    """As `cpn reproduce` compares its rows, which it has not settled, with the runs that are there."""
    stored, given = (
        TrainConfig("demo:", tmp_path, device=DeviceOptions(precision=precision, compile=compiled))
        for precision, compiled in (("bf16-mixed", "on"), ("auto", "auto"))
    )
    check_same_settings(stored, given, tmp_path)
    plain = TrainConfig("demo:", tmp_path, device=DeviceOptions(precision="32-true"))
    with pytest.raises(DataError, match=r"precision \(run: 'bf16-mixed', now: '32-true'\)"):
        check_same_settings(stored, plain, tmp_path)


def test_the_machine_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert Machine.here("auto").gpu == "NVIDIA A100" and Machine.here("cuda").bf16
    assert Machine.here("cpu").gpu == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not Machine.here("auto").bf16


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "auto"), (["--compile"], "on"), (["--no-compile"], "off"), (["--compile", "off"], "off"),
     (["--compile=auto"], "auto"), (["--compile", "--crop", "64"], "on")],
    ids=str,
)  # fmt: skip
def test_compile_as_earlier_versions_took_it(words: list[str], expected: str) -> None:
    assert parse(["--data", "demo:", "--output", "x", *words]).device.compile == expected
