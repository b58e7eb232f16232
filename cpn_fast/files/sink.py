"""The forms in which masks are kept."""

from typing import Literal

Sink = Literal["files", "wds", "parquet"]
"""A PNG for each mask, or shards of many: tars or Parquet."""
