"""`python -m cpn_fast.train`: the same as `cpn train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cpn_fast.cli.main import main as cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cpn train` with these arguments (None = the process's); returns the exit status."""
    return cli(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
