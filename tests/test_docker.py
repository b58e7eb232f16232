"""The Dockerfiles, read where no docker is: what they copy, install and start exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

FOLDER = Path(__file__).resolve().parents[1] / "docker"
FILES = sorted(FOLDER.glob("*.Dockerfile"))
KNOWN = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, rest) of each line, those that end in a backslash joined."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture
def project(repository: Path) -> dict[str, object]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_there_is_one_for_labelling_and_one_for_training() -> None:
    assert [path.name for path in FILES] == ["label.Dockerfile", "train.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_instructions_are_known_and_in_their_form(path: Path, project: dict[str, object]) -> None:
    found = instructions(path.read_text(encoding="utf-8"))
    assert found[0][0] == "FROM" and {word for word, _ in found} <= KNOWN
    for word, rest in found:
        if word == "FROM":
            image, tag = rest.split()[0].split(":")
            assert image == "python" and tag.removesuffix("-slim") in SpecifierSet(str(project["requires-python"]))
        if word in ("ENTRYPOINT", "CMD"):
            assert re.fullmatch(r'\["[^"]+"(, "[^"]+")*\]', rest), "the form that no shell reads"
    last = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    assert any(word == "USER" for word, _ in found[last:]), "nothing runs as root"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_and_built_from_is_there(path: Path, repository: Path) -> None:
    copied: set[str] = set()
    for word, rest in instructions(path.read_text(encoding="utf-8")):
        sources = rest.split()[:-1]
        if word == "COPY" and not sources[0].startswith("--from="):
            assert [name for name in sources if not (repository / name).exists()] == []
            copied |= set(sources)
    pyproject = (repository / "pyproject.toml").read_text(encoding="utf-8")
    for needed in ("README.md", "LICENSE", "cpn_fast", "kernels", "export"):  # what the wheel is built from
        assert needed in pyproject and needed in copied
    assert {"pyproject.toml", "CMakeLists.txt", "constraints.txt"} <= copied


@pytest.mark.parametrize(("name", "program", "extras"), [("label", "cpn-label", "cpu"), ("train", "cpn", "train,gpu")])
def test_what_is_installed_and_started_is_of_this_project(
    name: str, program: str, extras: str, project: dict[str, dict[str, object]]
) -> None:
    found = instructions((FOLDER / f"{name}.Dockerfile").read_text(encoding="utf-8"))
    installs = [word for _, rest in found for word in shlex.split(rest) if word.startswith(".[")]
    assert installs == [f".[{extras}]"] and set(extras.split(",")) <= set(project["optional-dependencies"])
    assert [rest for word, rest in found if word == "ENTRYPOINT"] == [f'["/venv/bin/{program}"]']
    assert program in project["scripts"]


def test_backslashes_join_lines() -> None:
    assert instructions("# why\nRUN a \\\n    && b\nUSER x\n") == [("RUN", "a && b"), ("USER", "x")]
