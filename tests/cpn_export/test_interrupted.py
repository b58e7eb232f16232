"""Ctrl-C and SIGTERM in every command over images, sent to the whole group as a terminal and a scheduler send them."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpn_fast.files.manifest import Manifest
from cpn_fast.runs.folder import RunFolder
from tests.cpn_fast.segment.test_predict import make_segment_run
from tests.cpn_fast.segment.voc_squares import make
from tests.forking import LIMIT, Server, serving

PROMPT = 10
"""Seconds from the signal to the end, generous for a busy machine; on an idle one it takes less than one."""

# Imports once, then forks one process per line of stdin, each in a group of its own: [its words, file of what
# it says, the function that is slow ("module:name"), file that tells that it has been called].
SERVER = textwrap.dedent("""
    import importlib, json, os, signal, sys, time
    import cpn_export.label, cpn_export.to_onnx
    import cpn_fast.cam.label, cpn_fast.convert.command, cpn_fast.refine.command, cpn_fast.scoring.command
    import cpn_fast.segment.predict
    from cpn_fast.cli.main import main

    def slowed(target, begun):
        module, _, path = target.partition(":")
        *owners, name = path.split(".")
        owner = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        function = getattr(owner, name)
        def slow(*words, **more):
            open(begun, "a").write("x")
            time.sleep(0.3)
            return function(*words, **more)
        setattr(owner, name, slow)

    for line in sys.stdin:
        (program, *words), output, target, begun = json.loads(line)
        if (child := os.fork()) == 0:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
            said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1), os.dup2(said, 2)
            if target:
                slowed(target, begun)
            status = main(words) if program == "cpn" else cpn_export.label.main(words)
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
def commands(
    small_demo: Path,
    make_run: Callable[..., RunFolder],
    make_labelling: Callable[..., Path],
    write_toy_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[list[str], str]]:
    """By name: a command without its --output, and the function that is made slow."""
    folder = tmp_path_factory.mktemp("data")
    run, masks = str(make_run(folder / "run", "cam").path), str(make_labelling(folder / "masks", 12))
    squares, model = make(folder / "voc"), str(write_toy_model(folder / "toy.onnx"))
    write = "cpn_fast.files.mask_folder:MaskFolder.write"
    segment = str(make_segment_run(folder / "segment", squares))
    demo = ["--data", f"demo:{small_demo}", "--split", "train"]
    label = ["cpn", "label", run, *demo, "--device", "cpu", "--scales", "1", "--scales-of", "image", "--sheet", "0"]
    return {
        "label": (label, write),
        "refine": (["cpn", "refine", masks, "--crf", "--iterations", "1", "--workers", "2"], write),
        "predict": (["cpn", "segment", "predict", segment, "--data", f"voc:{squares}", "--scales", "1"], write),
        "cpn-label": (["cpn-label", model, f"{folder}/masks images", "--sheet", "0"], write),
        "convert": (["cpn", "convert", masks, "--format", "coco"], "cpn_fast.convert.folder:MaskItem.read"),
        "evaluate": (["cpn", "evaluate", run, *demo, "--device", "cpu"], "cpn_fast.scoring.map_counts:MapCounts.work"),
        "export": (["cpn", "export", run], "cpn_export.to_onnx:labeller_graph"),
    }


JOBS = ("label", "refine", "predict", "cpn-label")


@pytest.mark.parametrize(
    ("name", "number"),
    [*((name, signal.SIGINT) for name in (*JOBS, "convert", "evaluate", "export")), ("label", signal.SIGTERM)],
)
@pytest.mark.slow
def test_one_line_status_130_and_nothing_half_written(
    name: str,
    number: signal.Signals,
    server: Server,
    commands: dict[str, tuple[list[str], str]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    words, slow = commands[name]
    output, said, begun = tmp_path / "out", tmp_path / "said", tmp_path / "begun"
    pid = server.start([*words, "--output", str(output)], said, slow, begun)
    deadline, manifest = time.monotonic() + LIMIT, Manifest(output / "manifest.jsonl")
    while not (manifest.done() if name in JOBS else begun.exists()):
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)
    if name == "export":
        time.sleep(1)  # into the tracing
    started = time.monotonic()
    os.killpg(pid, number)
    assert server.status() == 130, said.read_text()
    seconds = time.monotonic() - started
    record_property("seconds", seconds)
    assert seconds < PROMPT
    text = said.read_text()
    assert text.count("interrupted") == 1 and "Traceback" not in text and "Exception ignored" not in text
    left = [path for path in tmp_path.rglob("*") if path.name.startswith((".tmp-", ".lock"))]
    assert left == []
    if name not in JOBS:
        assert not output.exists()
        return
    done = manifest.done()
    pngs = {path.stem: path.read_bytes() for path in (output / "SegmentationClass").glob("*.png")}
    assert done and done <= pngs.keys() and all(data.endswith(b"IEND\xaeB`\x82") for data in pngs.values())
    server.start([*words, "--output", str(output)], tmp_path / "again", "", "")
    assert server.status() == 0, (tmp_path / "again").read_text()
    total = len(manifest.done())
    assert total > len(done) and f"{total - len(done)} images of" in (tmp_path / "again").read_text()
