"""`python -m cpn_fast.cli`: the command line without its script."""

from __future__ import annotations

import sys

from cpn_fast.cli.main import main

sys.exit(main())
