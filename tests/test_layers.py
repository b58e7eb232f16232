"""The layers hold: what the contracts of pyproject.toml forbid is caught, and nothing imports past them by name."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from cpn_fast.cli.main import COMMANDS

PACKAGES = ("cpn_fast", "kernels/cpn_kernels", "export/cpn_export")
BREACHES = {
    "cpn_fast/models/pcm.py": "cpn_fast.training.trainer",
    "cpn_fast/models/prcm.py": "cpn_fast.report.charts",
    "cpn_fast/files/shard.py": "cpn_fast.report.charts",
    "cpn_fast/scoring/command.py": "cpn_export.runtime",
}
"""File that is made to import a module above its own layer -> that module."""
BY_NAME = {
    "cpn_fast/cli/main.py",  # the command table
    "cpn_fast/__init__.py",  # two lazy interfaces, each with a table
    "cpn_kernels/__init__.py",
    "cpn_kernels/offline.py",  # the list of kernels to compile
    "cpn_fast/models/backbones/external.py",  # a user's own backbone, named on the command line
}
"""Files that may import a module whose name is no literal, or is one of ours, as no contract sees it."""


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """A copy of the three packages and the contracts."""
    for package in PACKAGES:
        shutil.copytree(
            repository / package, tmp_path / Path(package).name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


LINT = """
import sys
# An editable install puts a finder of its own in front, which would lead back to the repository.
sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__module__.startswith("_frozen_importlib")]
from importlinter.cli import lint_imports_command
sys.exit(lint_imports_command())
"""


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(tree), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_each_breach_is_caught(tree: Path) -> None:
    clean = lint_imports(tree)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    for file, module in BREACHES.items():
        path = tree / file
        path.write_text(path.read_text(encoding="utf-8") + f"\nimport {module}\n", encoding="utf-8")
    found = lint_imports(tree)
    assert found.returncode == 1
    for file, module in BREACHES.items():
        importer = file.removesuffix(".py").replace("/", ".")
        assert re.search(rf"{re.escape(importer)} -> {re.escape(module)} \(l\.\d+\)", found.stdout), (
            file,
            found.stdout,
        )


def test_a_module_in_no_layer_is_caught(tree: Path) -> None:
    (tree / "cpn_fast" / "helpers.py").write_text('"""Stands nowhere."""\n', encoding="utf-8")
    found = lint_imports(tree)
    assert found.returncode == 1
    assert "helpers" in found.stdout + found.stderr


def sources(repository: Path) -> Iterator[tuple[str, ast.Module]]:
    """(path within its package's folder, syntax tree) of every file of the three packages."""
    for package in PACKAGES:
        root = (repository / package).parent
        for path in sorted((repository / package).rglob("*.py")):
            yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports_by_name(tree: ast.Module) -> bool:
    """Whether a file imports a module that is no literal name of someone else's package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
            given = node.args[0]
            if not isinstance(given, ast.Constant) or str(given.value).startswith("cpn_"):
                return True
    return False


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import importlib\nimportlib.import_module(name)", True),
        ("from importlib import import_module\nimport_module('cpn_fast.cam.task')", True),
        ("__import__(f'cpn_fast.{name}')", True),
        ("import importlib\nimportlib.import_module('fast_slic')", False),
        ("import cpn_fast.cam.task", False),
    ],
)
def test_imports_by_name_are_recognised(code: str, found: bool) -> None:
    assert imports_by_name(ast.parse(code)) == found


def test_modules_are_imported_by_name_in_the_tables_alone(repository: Path) -> None:
    assert {path for path, tree in sources(repository) if imports_by_name(tree)} <= BY_NAME


def test_modules_of_the_command_table_are_named_there_alone(repository: Path) -> None:
    """A string with the name of a command's function is an import that no contract sees."""
    named = {command.run for command in COMMANDS.values()}
    named |= {text.partition(":")[0] for text in named}
    found = {
        path
        for path, tree in sources(repository)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in named
    }
    assert found == {"cpn_fast/cli/main.py"}


def test_nobody_imports_the_command_line(repository: Path) -> None:
    above = ("cpn_fast/cli/", "cpn_fast/train.py")
    for path, tree in sources(repository):
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert path.startswith(above) or not any(name.startswith("cpn_fast.cli") for name in names), path


def circles(graph: grimp.ImportGraph) -> set[str]:
    """Modules that import each other in a loop, or lie between two loops; imports within functions count."""
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    for ways in (imports, {module: set(graph.find_modules_that_directly_import(module)) for module in graph.modules}):
        while free := {module for module in imports if not ways[module] & imports.keys()}:
            imports = {module: of for module, of in imports.items() if module not in free}
    return set(imports)


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("cpn_fast", "cpn_kernels", "cpn_export", "benchmarks", cache_dir=None)
    assert not circles(graph)
    graph.add_import(importer="cpn_fast.files.mask_folder", imported="cpn_fast.files.find_masks")
    assert {"cpn_fast.files.mask_folder", "cpn_fast.files.find_masks"} <= circles(graph)
