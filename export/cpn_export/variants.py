"""`python -m cpn_export.variants`: until the next version another name of `python -m cpn_export.compare_precisions`."""

from __future__ import annotations

import sys

from cpn_export.compare_precisions import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
