"""Two gloo processes under torchrun: bits that do not depend on their number, and what happens when one is lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cpn_fast.cam.options import parse
from cpn_fast.cam.task import run_train
from cpn_fast.data.loading.steps import Span, step_loader
from cpn_fast.files.errors import DataError
from cpn_fast.runs.checkpoint import load_checkpoint, state_sha256
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.several import OWN_STORE, lost_processes_told, resumed_after_restart
from tests.torchrun import Torchrun, torchrun_in_forks

BATCH, STEPS, EVERY = 4, 9, 3

# Each line of a plan: name of a file that says that it is done, rank, step, and what befalls that rank there.
MAIN = """
import os, signal, sys, time
from pathlib import Path
from cpn_fast.train import main
from cpn_fast.training import trainer

folder, plan, *arguments = sys.argv[1:]
rank = int(os.environ["RANK"])

def befalls(step, moment):
    for line in plan.split(";"):
        name, who, when, what = line.split(",")
        if (int(who), int(when), what.partition(":")[0]) == (rank, step, moment) and not Path(folder, name).exists():
            Path(folder, name).touch()
            os.kill(os.getpid(), signal.SIGKILL) if what.endswith("kill") else time.sleep(600)

step_of, save = trainer.Trainer.train_step, trainer.save_checkpoint

def train_step(self, step, batches):
    step_of(self, step, batches)
    befalls(step, "step")

def save_checkpoint(path, state):
    befalls(state["step"], "save")
    save(path, state)

if plan:
    trainer.Trainer.train_step, trainer.save_checkpoint = train_step, save_checkpoint
if __name__ == "__main__":
    for run in arguments[0].split(";"):
        if (status := main([*arguments[1:], *run.split()])) != 0:
            sys.exit(status)
"""


def arguments(demo: Path) -> list[str]:
    """A small network with dropout; a step of four images in passes of two."""
    text = f"""
        --data demo:{demo} --method cam --backbone tests.mini_backbone:Mini --crop 32 --batch-size {BATCH} --lr 0.05
        --epochs 10 --workers 0 --eval-every 0 --accelerator cpu --micro-batch 2 --checkpoint-every {EVERY}
    """
    return text.split()


@pytest.fixture(scope="module")
def torchrun() -> Iterator[Torchrun]:
    """With what docs/guide/train.md says of --max-restarts."""
    with torchrun_in_forks({OWN_STORE: "1"}) as run:
        yield run


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train_and_be_killed.py"
    path.write_text(MAIN)
    return path


@pytest.fixture(scope="module")
def pair(
    torchrun: Torchrun, small_demo: Path, script: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Runs of two processes: one to the end, and one that stops half-way."""
    folder = tmp_path_factory.mktemp("pair")
    runs = f"--output {folder}/whole --max-steps {STEPS};--output {folder}/half --max-steps 4"
    words = ["--standalone", "--nproc-per-node", "2", str(script), str(folder), "", runs, *arguments(small_demo)]
    statuses, told = torchrun(words)
    assert statuses == [0], told
    return SimpleNamespace(whole=RunFolder(folder / "whole"), half=RunFolder(folder / "half"))


def weights(run: RunFolder) -> str:
    state = load_checkpoint(run.checkpoint_path)
    assert state["step"] == STEPS
    return state_sha256([state["model"], state["optimizer"]])


@pytest.mark.slow
def test_one_process_ends_with_the_bits_of_two(pair: SimpleNamespace, small_demo: Path, tmp_path: Path) -> None:
    one = run_train(parse([*arguments(small_demo), "--output", str(tmp_path / "one"), "--max-steps", str(STEPS)]))
    assert weights(one) == weights(pair.whole)
    losses = [[record["loss"] for record in run.records("step")] for run in (one, pair.whole)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], rel=1e-6)
    words = [*arguments(small_demo), "--output", str(pair.half.path), "--max-steps", str(STEPS), "--resume"]
    assert weights(run_train(parse(words))) == weights(pair.whole)


@pytest.mark.slow
def test_ranks_are_killed_at_three_moments(
    torchrun: Torchrun, pair: SimpleNamespace, small_demo: Path, script: Path, tmp_path: Path
) -> None:
    """Two nodes of one process: before the first checkpoint, between two, and while the second one is written."""
    plan = "a,1,2,step:kill;b,1,5,step:kill;c,0,6,save:kill"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", *where]
    run = f"--output {tmp_path}/run --max-steps {STEPS}"
    node = [*words, str(script), str(tmp_path), plan, run, *arguments(small_demo)]
    statuses, told = torchrun(node, node)
    assert statuses == [0, 0], told
    assert all((tmp_path / name).exists() for name in "abc")
    assert weights(RunFolder(tmp_path / "run")) == weights(pair.whole)
    steps = [record["step"] for record in RunFolder(tmp_path / "run").records("step")]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_training(
    torchrun: Torchrun, small_demo: Path, script: Path, tmp_path: Path
) -> None:
    words = ["--standalone", "--nproc-per-node", "2", str(script), str(tmp_path), "a,1,2,step:hang"]
    words += [f"--output {tmp_path}/run --timeout 20", *arguments(small_demo)]
    (status,), (told,) = torchrun(words)
    assert status != 0
    assert "error: process 0 of 2: another one has ended, or did not answer for 20 s (--timeout)" in told


class _Slots(torch.utils.data.Dataset):
    """Says which (step, slot) was read."""

    def __getitem__(self, index: tuple[int, int]) -> tuple[str, dict[str, torch.Tensor]]:
        return f"{index[0]}-{index[1]}", {"slot": torch.tensor(index[1])}


@pytest.mark.parametrize(("world_size", "passes"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_each_process_reads_its_share_alone(world_size: int, passes: int) -> None:
    read = [
        [ids for ids, _ in step_loader(_Slots(), Span(3, 5, rank, world_size, passes), 8, 0)]
        for rank in range(world_size)
    ]
    assert all(len(batches) == 2 * passes for batches in read)
    for step in (3, 4):
        begin = (step - 3) * passes
        of_step = [name for batches in read for ids in batches[begin : begin + passes] for name in ids]
        assert of_step == [f"{step}-{slot}" for slot in range(8)]


def test_a_command_that_torchrun_restarts_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = parse(["--data", "demo:", "--output", str(tmp_path), "--accelerator", "cpu"])
    folder = RunFolder(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert not resumed_after_restart(config, folder).loop.resume  # nothing has begun
    folder.create(config, ("a",))
    assert resumed_after_restart(config, folder).loop.resume and not caplog.text
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    resumed_after_restart(config, folder)
    assert f"set {OWN_STORE}=1 before torchrun" in caplog.text
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert not resumed_after_restart(config, folder).loop.resume


def test_only_what_the_network_says_is_a_lost_process() -> None:
    fabric = SimpleNamespace(world_size=2, global_rank=1)
    with pytest.raises(DataError, match=r"process 1 of 2: .*Connection closed"), lost_processes_told(fabric, 5):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), lost_processes_told(fabric, 5):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--micro-batch", "3"), r"--micro-batch 3: each of 1 processes has 4 images of a step"),
        (("--micro-batch", "2", "--options.teacher", "0.9"), "do not go together"),
    ],
)
def test_passes_that_do_not_fit_are_refused(
    changes: tuple[str, ...], message: str, small_demo: Path, tmp_path: Path
) -> None:
    words = [word for word in arguments(small_demo) if word != "--micro-batch"]
    words.remove("2")
    with pytest.raises(DataError, match=message):
        run_train(parse([*words, *changes, "--output", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()
