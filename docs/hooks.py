"""Parts of the documentation that the code writes: the command line's reference, from its own parsers."""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any

MARKER = "<!-- command line -->"
"""Line of a page in whose place the options of all commands come."""
WIDTH = "100"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs's hook: called for every page with its text."""
    return markdown.replace(MARKER, command_line()) if MARKER in markdown else markdown


def command_line() -> str:
    """A section for each command with what its `--help` says, in Markdown."""
    from cpn_fast.cli.main import COMMANDS

    parts = [_section(f"cpn {name}", command.summary, help_of(name)) for name, command in COMMANDS.items()]
    return "\n".join([*parts, _section("cpn-label", "label images with an exported model", help_of(None))])


def help_of(name: str | None) -> str:
    """What `cpn NAME --help` prints, of `cpn-label` for None; plain text."""
    text = io.StringIO()
    before = {key: os.environ.get(key) for key in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS=WIDTH, NO_COLOR="1")
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            if name is None:
                import tyro

                from cpn_export.label import LabelOnnxConfig

                tyro.cli(LabelOnnxConfig, args=["--help"], prog="cpn-label")
            else:
                from cpn_fast.cli import main

                main.parse(name, ["--help"])
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).strip()


def _section(title: str, summary: str, text: str) -> str:
    return f"## {title}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{text}\n```\n"
