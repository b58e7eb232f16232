"""The stages of `cpn run` in this process: a dozen of their own would load torch a dozen times."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cpn_fast.cli import configured
from cpn_fast.config.serialise import config_to_dict
from cpn_fast.pipeline.command import run_pipeline
from cpn_fast.pipeline.runner import Outcome


def run_stages_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on; each reads its config from a file all the same."""

    def here(command: str, config: Any, keep_open: int) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(config_to_dict(config)), encoding="utf-8")
            return Outcome(configured.main([command, str(path)]), 1.0, 1.0)

    monkeypatch.setattr(run_pipeline, "__defaults__", (here,))
