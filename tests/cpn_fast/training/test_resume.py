"""A run that is killed and resumed ends with the same bits as one that was left alone."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cpn_fast.cam.task import run_train
from cpn_fast.config.serialise import config_to_dict
from cpn_fast.config.training import AugmentOptions, MethodOptions, PatchOptions, TrainConfig
from cpn_fast.data.types import Batch
from cpn_fast.files.errors import DataError
from cpn_fast.runs.checkpoint import load_checkpoint, state_sha256
from cpn_fast.runs.folder import RunFolder, check_same_settings
from cpn_fast.training.trainer import Trainer
from tests.grouped import grouped

STEPS, EVERY, KILLS = 12, 4, (2, 7, 11)

# Imports once, then forks one process per job: (config.json's values, step after which it kills itself, or null).
JOBS = textwrap.dedent("""
    import json, os, signal, sys
    import torch.utils.tensorboard
    from cpn_fast.cam import task as train
    from cpn_fast.training import trainer
    from cpn_fast.config.training import TrainConfig
    from cpn_fast.config.serialise import config_from_dict

    def run(values, kill_at):
        step = trainer.Trainer.train_step
        def killing_step(self, number, batch):
            step(self, number, batch)
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        trainer.Trainer.train_step = killing_step
        train.run_train(config_from_dict(TrainConfig, values, "test"))
        os._exit(0)

    for values, kill_at in json.load(sys.stdin):
        if (child := os.fork()) == 0:
            run(values, kill_at)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""")


def config(demo: Path, output: Path, **changes: object) -> TrainConfig:
    values: dict = {
        "data": f"demo:{demo}",
        "output": output,
        "backbone": "resnet38_tiny",
        "epochs": 2,
        "lr": 0.01,
        "batch_size": 2,
        "workers": 0,
        "checkpoint_every": EVERY,
        "log_every": 3,
        "val_images": 2,
        "accelerator": "cpu",
        "augment": AugmentOptions(crop=64),
        "patch": PatchOptions(segments=20),
        "options": MethodOptions(warm_up=0.3),  # 4 of 12 steps: a run is killed within and after
        **changes,
    }
    return TrainConfig(**grouped(values))


def tensors_sha256(state: dict) -> str:
    """Written apart from the program's own hash: every tensor of a nested state, in order."""
    digest = hashlib.sha256()

    def visit(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                visit(item)

    visit(state)
    return digest.hexdigest()


def run_jobs(jobs: list[tuple[dict, int | None]]) -> None:
    """Run the jobs in processes that no other test has touched; those with a step to die at must die."""
    done = subprocess.run(
        [sys.executable, "-c", JOBS], input=json.dumps(jobs), capture_output=True, text=True, timeout=500
    )
    exits = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("exit")]
    assert exits == ["0" if kill is None else "-9" for _, kill in jobs], done.stderr


@pytest.fixture(scope="module")
def uninterrupted(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("uninterrupted") / "run")
    run_jobs([(config_to_dict(config(small_demo, run.path)), None)])
    return run


@pytest.fixture(scope="module")
def resumed_runs(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, RunFolder]:
    """By number of workers: runs killed three times and resumed after each."""
    folder = tmp_path_factory.mktemp("killed")
    runs = {workers: RunFolder(folder / f"workers {workers}") for workers in (0, 2)}
    run_jobs(
        [
            (config_to_dict(config(small_demo, run.path, workers=workers, resume=index > 0)), kill)
            for workers, run in runs.items()
            for index, kill in enumerate((*KILLS, None))
        ]
    )
    return runs


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_killed_run_resumes_bit_equal(
    uninterrupted: RunFolder, resumed_runs: dict[int, RunFolder], workers: int
) -> None:
    run = resumed_runs[workers]
    assert run.config.options.dropout == 0.5
    assert run.config.patch.kind == "superpixel"
    assert [("tcp" in record) for record in run.records("step")] == [False] * 4 + [True] * 8
    assert run.config.device.workers == workers
    resumed, expected = (load_checkpoint(r.checkpoint_path) for r in (run, uninterrupted))
    assert resumed["step"] == expected["step"] == STEPS
    for part in ("model", "optimizer"):
        assert tensors_sha256(resumed[part]) == tensors_sha256(expected[part])
        assert state_sha256(resumed[part]) == state_sha256(expected[part])
    assert tensors_sha256(load_file(run.model_path)) == tensors_sha256(load_file(uninterrupted.model_path))

    def losses(folder: RunFolder) -> list[tuple[int, float, float]]:
        return [(r["step"], r["loss"], r["lr"]) for r in folder.records("step")]

    assert [step for step, _, _ in losses(run)] == list(range(1, STEPS + 1))
    assert losses(run) == losses(uninterrupted)
    assert [r["step"] for r in run.records("eval")] == [6, 12]
    assert run.records("eval") == uninterrupted.records("eval")


@pytest.mark.slow
def test_another_seed_gives_other_bits(uninterrupted: RunFolder, small_demo: Path, tmp_path: Path) -> None:
    other = run_train(config(small_demo, tmp_path / "run", seed=1, max_steps=1))
    assert other.records("step")[0]["loss"] != uninterrupted.records("step")[0]["loss"]


@pytest.mark.slow
def test_finished_run_can_go_on_to_more_steps(uninterrupted: RunFolder, small_demo: Path, tmp_path: Path) -> None:
    """--max-steps only says where to stop: the schedule spans the epochs."""
    run_train(config(small_demo, tmp_path / "run", max_steps=5))
    run = run_train(config(small_demo, tmp_path / "run", resume=True))
    assert state_sha256(load_checkpoint(run.checkpoint_path)["model"]) == state_sha256(
        load_checkpoint(uninterrupted.checkpoint_path)["model"]
    )
    assert tensors_sha256(load_file(run.model_path)) == tensors_sha256(load_file(uninterrupted.model_path))


def test_a_teacher_is_kept_with_the_run(small_demo: Path, tmp_path: Path) -> None:
    settings = {"method": "cam", "options": MethodOptions(warm_up=0.2, teacher=0.9), "eval_every": 0}
    whole = run_train(config(small_demo, tmp_path / "whole", max_steps=6, **settings))
    run_train(config(small_demo, tmp_path / "parts", max_steps=4, **settings))
    parts = run_train(config(small_demo, tmp_path / "parts", max_steps=6, resume=True, **settings))
    resumed, expected = (load_checkpoint(run.checkpoint_path) for run in (parts, whole))
    for part in ("model", "teacher"):
        assert state_sha256(resumed[part]) == state_sha256(expected[part])
    assert state_sha256(expected["teacher"]) != state_sha256({f"net.{k}": v for k, v in expected["model"].items()})
    assert [("pixels" in record) for record in whole.records("step")] == [False] * 2 + [True] * 4
    assert load_file(whole.model_path).keys() == expected["model"].keys()


def check_stopped(run: RunFolder, before: int) -> None:
    state = load_checkpoint(run.checkpoint_path)
    assert 1 <= state["step"] < before
    assert [record["step"] for record in run.records("step")] == list(range(1, state["step"] + 1))


def test_sigterm_leaves_a_checkpoint(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step_of = Trainer.train_step

    def train_step(self: Trainer, step: int, batch: Batch) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step_of(self, step, batch)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_train(config(small_demo, tmp_path / "run", method="cam", epochs=100, eval_every=0))
    check_stopped(RunFolder(tmp_path / "run"), 6)
    assert signal.getsignal(signal.SIGTERM) == before


def test_folder_with_a_run_is_refused(uninterrupted: RunFolder, small_demo: Path) -> None:
    before = uninterrupted.metrics_path.read_bytes()
    with pytest.raises(DataError, match=r"holds a run already.*--resume"):
        run_train(config(small_demo, uninterrupted.path))
    assert uninterrupted.metrics_path.read_bytes() == before


def test_resume_with_other_settings_names_them(uninterrupted: RunFolder, small_demo: Path) -> None:
    given = config(small_demo, uninterrupted.path, resume=True, lr=0.5, workers=7)
    given = replace(given, options=replace(given.options, ohem=0.3))
    with pytest.raises(DataError) as error:
        run_train(given)
    message = str(error.value)
    assert "lr (run: 0.01, now: 0.5)" in message
    assert "options.ohem (run: 0.2, now: 0.3)" in message
    assert "workers" not in message and "output (" not in message


def test_weights_by_another_path_are_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"one")
    (tmp_path / "b.safetensors").write_bytes(b"one")
    monkeypatch.chdir(tmp_path)
    stored = TrainConfig(data="demo:", output=tmp_path, weights=Path("a.safetensors"))
    check_same_settings(stored, replace(stored, weights=tmp_path / "a.safetensors"), tmp_path)
    for other in (tmp_path / "b.safetensors", tmp_path / "gone.safetensors", None):
        with pytest.raises(DataError, match="weights"):
            check_same_settings(stored, replace(stored, weights=other), tmp_path)


def test_resume_without_a_run(small_demo: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run here"):
        run_train(config(small_demo, tmp_path / "nothing", resume=True))
