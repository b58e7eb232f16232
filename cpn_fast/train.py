"""`python -m cpn_fast.train`: the same as `cpn train`.

`cpn_fast.train` is also the function of the public API. Once this module is imported, Python puts it in that place, so
the module can be called as the function.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from cpn_fast.api.functions import train
from cpn_fast.cli.main import main as cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cpn train` with these arguments (None = the process's); returns the exit status."""
    return cli(["train", *(sys.argv[1:] if argv is None else argv)])


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return train(*args, **options)


if __name__ == "__main__":
    sys.exit(main())

sys.modules[__name__].__class__ = _CallableModule
