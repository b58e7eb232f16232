"""`python -m cpn_fast.cli.configured COMMAND FILE`: a command with the config in a JSON file, for the pipeline."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cpn_fast.cli.main import config_class, run_config
from cpn_fast.config.serialise import config_from_dict
from cpn_fast.console.exit_status import guarded
from cpn_fast.files.json_file import read_json


def main(argv: Sequence[str]) -> int:
    """Run the command `argv[0]` with the config in the file `argv[1]`; returns the exit status as `cpn` does."""
    command, path = argv

    def run() -> None:
        values = read_json(Path(path), "a command's config", "let the pipeline write it")
        run_config(command, config_from_dict(config_class(command), values, path))

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
