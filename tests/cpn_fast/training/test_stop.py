"""Ctrl-C and SIGTERM in all three trainings, sent as a terminal and a scheduler send them: to the whole group."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cpn_fast.cam.task import run_train
from cpn_fast.cam.validation import CamValidator
from cpn_fast.config.training import AugmentOptions, TrainConfig
from cpn_fast.files.errors import DataError
from cpn_fast.runs.checkpoint import load_checkpoint, state_sha256
from cpn_fast.runs.folder import RunFolder
from cpn_fast.training.stop import NOTICE, StopRequest
from cpn_fast.training.trainer import Trainer
from tests.cpn_fast.segment.voc_squares import make
from tests.forking import LIMIT, Server, serving
from tests.grouped import grouped

# Imports once, then forks one process per line of stdin, each in a group of its own: [words of `cpn`, file of
# what it says, file that tells of its first step where steps are to be endless].
SERVER = textwrap.dedent("""
    import json, os, sys, time
    import torch.utils.tensorboard
    from cpn_fast.affinity import command
    from cpn_fast.cam import task
    from cpn_fast.cli.main import main
    from cpn_fast.segment import task
    from cpn_fast.training.trainer import Trainer

    def endless(self, step, batch):
        open(os.environ["STARTED"], "w").close()
        time.sleep(3600)

    for line in sys.stdin:
        words, output, slow = json.loads(line)
        if (child := os.fork()) == 0:
            os.setsid()
            said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1), os.dup2(said, 2)
            if slow:
                os.environ["STARTED"] = slow
                Trainer.train_step = endless
            status = main(words)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""")


@pytest.fixture(scope="module")
def only_server() -> Iterator[Server]:
    with serving(SERVER) as server:
        yield server


@pytest.fixture
def server(only_server: Server) -> Iterator[Server]:
    yield only_server
    only_server.end()


@pytest.fixture(scope="module")
def trainings(
    small_demo: Path, make_labelling: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """By kind: a command that would train for hours."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "cam": ["train", "--data", f"demo:{small_demo}", "--method", "cam", "--crop", "64"],
        "affinity": ["affinity", str(make_labelling(folder / "masks")), "--crop", "32"],
        "segment": ["segment", "train", "--data", f"voc:{make(folder / 'voc')}", "--masks", "truth", "--crop", "48"],
    }


LONG = ["--backbone", "resnet38_tiny", "--batch-size", "2", "--epochs", "5000", "--lr", "1e-5", "--eval-every", "0"]
LONG += ["--workers", "2", "--accelerator", "cpu", "--log-every", "1000"]


def wait_for(condition: Callable[[], object], pid: int) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"process {pid} did not get so far"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["cam", "affinity", "segment"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_first_signal_to_the_group_ends_with_a_checkpoint(
    kind: str, number: signal.Signals, server: Server, trainings: dict[str, list[str]], tmp_path: Path
) -> None:
    run, said = RunFolder(tmp_path / "run"), tmp_path / "said"
    pid = server.start([*trainings[kind], *LONG, "--output", str(run.path)], said, "")
    wait_for(lambda: len(run.records("step")) >= 3, pid)
    os.killpg(pid, number)
    started = time.monotonic()
    assert server.status() == 130, said.read_text()
    assert time.monotonic() - started < LIMIT
    text = said.read_text()
    assert (
        text.count(NOTICE) == 1 and "--resume" in text and "Traceback" not in text and "exited unexpectedly" not in text
    )
    step = load_checkpoint(run.checkpoint_path)["step"]
    assert 3 <= step < 5000
    assert [record["step"] for record in run.records("step")] == list(range(1, step + 1))
    with pytest.raises(ProcessLookupError):  # no worker is left behind
        for _ in range(500):
            os.killpg(pid, 0)
            time.sleep(0.02)


def test_second_ctrl_c_stops_also_where_it_was_ignored_before() -> None:
    """A shell without job control starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest(told=False).listening() as request:
            signal.raise_signal(signal.SIGINT)
            assert request
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_second_signal_stops_at_once(server: Server, trainings: dict[str, list[str]], tmp_path: Path) -> None:
    """In a step that takes an hour."""
    said, begun = tmp_path / "said", tmp_path / "begun"
    pid = server.start([*trainings["cam"], *LONG, "--output", str(tmp_path / "run")], said, begun)
    wait_for(begun.exists, pid)
    os.killpg(pid, signal.SIGINT)
    wait_for(lambda: NOTICE in said.read_text(), pid)
    os.killpg(pid, signal.SIGINT)
    assert server.status() == 130
    assert "Traceback" not in said.read_text() and not RunFolder(tmp_path / "run").checkpoint_path.exists()


def config(demo: Path, output: Path, **changes: object) -> TrainConfig:
    values: dict = {
        "data": f"demo:{demo}",
        "output": output,
        "method": "cam",
        "backbone": "resnet38_tiny",
        "epochs": 2,
        "batch_size": 4,
        "workers": 0,
        "val_images": 3,
        "accelerator": "cpu",
        "augment": AugmentOptions(crop=64),
        **changes,
    }
    return TrainConfig(**grouped(values))


@pytest.fixture(scope="module")
def uninterrupted(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_train(config(small_demo, tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize("evaluation", [1, 2])
def test_evaluation_is_interrupted_and_made_up_for(
    evaluation: int, uninterrupted: RunFolder, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the second of three images is scored, in the middle of the training or at its end."""
    evaluate, seen = CamValidator.evaluate, []

    def interrupted(self: CamValidator, net: object, device: torch.device, stopped: Callable[[], bool]) -> object:
        asked: list[bool] = []

        def on_second() -> bool:
            asked.append(True)
            if len(asked) == 2 and len(seen) == evaluation:
                os.kill(os.getpid(), signal.SIGINT)
            return stopped()

        seen.append(asked)
        return evaluate(self, net, device, on_second)

    monkeypatch.setattr(CamValidator, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_train(config(small_demo, tmp_path / "run"))
    run = RunFolder(tmp_path / "run")
    assert len(seen[-1]) == 2, "the third image is not scored"
    assert load_checkpoint(run.checkpoint_path)["step"] == 3 * evaluation
    assert len(run.records("eval")) == evaluation - 1
    monkeypatch.setattr(CamValidator, "evaluate", evaluate)
    run_train(config(small_demo, run.path, resume=True))
    assert run.records("eval") == uninterrupted.records("eval")
    assert run.model_path.read_bytes() == uninterrupted.model_path.read_bytes()


def test_signal_in_the_last_step_of_an_epoch_skips_the_evaluation(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = Trainer.train_step

    def train_step(self: Trainer, step: int, batch: object) -> None:
        step_of(self, step, batch)  # type: ignore[arg-type]
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(CamValidator, "evaluate", lambda *_: pytest.fail("scored"))
    with pytest.raises(KeyboardInterrupt):
        run_train(config(small_demo, tmp_path / "run"))
    assert load_checkpoint(RunFolder(tmp_path / "run").checkpoint_path)["step"] == 3


def test_notice_comes_once_and_handlers_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest().listening() as request:
        assert not request
        os.kill(os.getpid(), signal.SIGTERM)
        assert request
        assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before
    assert capfd.readouterr().err == NOTICE + "\n"


def test_resuming_a_finished_run_changes_no_file_of_weights(
    small_demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(small_demo, tmp_path / "run", epochs=1, eval_every=0)
    run = run_train(settings)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (run.model_path, run.checkpoint_path)}
    with caplog.at_level("WARNING"):
        run_train(config(small_demo, run.path, epochs=1, eval_every=0, resume=True))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert "all 3 steps are done, nothing is left to train" in caplog.text and "max-steps" not in caplog.text


def test_resuming_a_run_that_max_steps_ended_says_so(
    small_demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_train(config(small_demo, tmp_path / "run", max_steps=2))
    with caplog.at_level("WARNING"):
        run = run_train(config(small_demo, tmp_path / "run", max_steps=2, resume=True))
    assert "--max-steps 2" in caplog.text and "all 6 steps" in caplog.text
    assert run.records("step")[-1]["step"] == 2
    with pytest.raises(DataError, match="step 2 is already past --max-steps 1"):
        run_train(config(small_demo, tmp_path / "run", max_steps=1, resume=True))


def test_equal_weights_are_equal_files(uninterrupted: RunFolder, tmp_path: Path) -> None:
    """In processes of other hash seeds too; the content against the library's own reader."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    net = uninterrupted.load_model()
    before = uninterrupted.model_path.read_bytes()
    for _ in range(5):
        uninterrupted.save_model(net, 6)
        assert uninterrupted.model_path.read_bytes() == before
    state = load_file(uninterrupted.model_path)
    assert state_sha256(state) == state_sha256({key: net.state_dict()[key] for key in state})
    assert set(state) == set(net.state_dict())
    with safe_open(uninterrupted.model_path, "np") as file:
        metadata = file.metadata()
    assert metadata["step"] == "6" and metadata["stage"] == "train" and metadata["method"] == "cam"
    assert json.loads(metadata["classes"]) == list(uninterrupted.classes)
    length = int.from_bytes(before[:8], "little")
    assert length % 8 == 0 and np.frombuffer(before[8 + length :], np.uint8).size % 4 == 0
