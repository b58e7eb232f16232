"""torchrun, of which the nodes and the processes they start are forks of one that has imported what trainings need.

Loading torch and Lightning takes a process longer than the few steps that it is started for, and each restart again.
It is torchrun itself, with the options that make it call the script in a fork; that it also starts programs is shown
by training/test_distributed.py.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.forking import serving

LIMIT = 300
"""Seconds after which nodes that have not ended are killed."""

# A line of stdin: a folder, the words of every node, and variables of the environment. What node N says goes into the
# folder's file N, their statuses into `statuses`.
SERVER = f"""
import json, os, signal, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from pathlib import Path
from torch.distributed import run
from cpn_fast.affinity import command
from cpn_fast.cam import task
from cpn_fast.segment import task

def node(words, output):
    told = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(told, 1), os.dup2(told, 2)
    try:
        run.main(["--run-path", "--start-method", "fork", *words])
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

def nodes(folder, words, environment):
    os.setsid()
    signal.alarm({LIMIT})
    os.environ.update(environment)
    children = []
    for number, of_node in enumerate(words):
        if (child := os.fork()) == 0:
            node(of_node, Path(folder) / str(number))
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (Path(folder) / "statuses").write_text(json.dumps(statuses))
    os._exit(0)

for line in sys.stdin:
    if (child := os.fork()) == 0:
        nodes(*json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Torchrun = Callable[..., tuple[list[int], list[str]]]
"""`torchrun(["--standalone", ..., "script.py", ...], ...)` runs nodes, each with the words that follow `torchrun` on a
command line, side by side to their end; the exit status of each, and what it and its processes have said."""


@contextmanager
def torchrun_in_forks(environment: Mapping[str, str]) -> Iterator[Torchrun]:
    """The function to run nodes with.

    Args:
        environment: variables of theirs, beside this process's.
    """
    with serving(SERVER) as server, tempfile.TemporaryDirectory() as root:

        def torchrun(*nodes: list[str]) -> tuple[list[int], list[str]]:
            folder = Path(tempfile.mkdtemp(dir=root))
            group = server.start(folder, nodes, dict(environment))
            try:
                assert server.status() == 0, f"ended after {LIMIT} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            told = [(folder / str(number)).read_text() for number in range(len(nodes))]
            return json.loads((folder / "statuses").read_text()), told

        yield torchrun
