"""plan.json: read line by line as it is written, as a whole where another hand wrote it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from cpn_fast.files import plan as plan_module
from cpn_fast.files.errors import DataError
from cpn_fast.files.plan import read_plan, write_plan

NAMES = ["a", "set 0/ü", 'a "quoted", one', "two\nlines", "tab\t", "line\u2028separator", '"]}']


def as_a_whole(*_: object) -> None:
    raise AssertionError("the plan was read as a whole")


@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ['"]}'], []], ids=["all", "one", "like-the-end", "none"])
def test_what_is_written_is_read(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(tmp_path, iter(names), 'cpn label "a b"')
    assert json.loads((tmp_path / "plan.json").read_text()) == {"command": 'cpn label "a b"', "ids": names}
    if names:
        monkeypatch.setattr(plan_module, "read_json", as_a_whole)
    plan = read_plan(tmp_path)
    assert plan is not None
    assert (list(plan.ids), plan.command) == (names, 'cpn label "a b"')


@pytest.mark.parametrize("indent", [None, 2])
def test_plans_of_another_layout(indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"ids": NAMES, "command": ""}, indent=indent))
    plan = read_plan(tmp_path)
    assert plan is not None and (list(plan.ids), plan.command) == (NAMES, "")


@pytest.mark.parametrize("text", [
    '{"command": "", "ids": [\n"a",\n"b"',
    '{"command": "", "ids": [\n"a",\n"b",\n',
    '{"command": "", "ids": [\n"a"]}\n"b"]}\n',
    '{"command": "", "ids": [\n"a",\n7]}\n',
    '{"command": 3, "ids": [\n"a"]}\n',
    '{"command": "", "names": [\n"a"]}\n',
    "",
    "[]",
])  # fmt: skip
def test_what_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError, match=r"plan\.json.*delete it"):
        read_plan(tmp_path)


def test_a_plan_of_many_images_is_packed(tmp_path: Path) -> None:
    count = 20_000
    write_plan(tmp_path, (f"images/{number:08d}" for number in range(count)), "")
    tracemalloc.start()
    try:
        plan = read_plan(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan is not None and len(plan.ids) == count and plan.ids[count - 1] == "images/00019999"
    assert peak < 40 * count  # a string each alone would be 64, in a list 72
