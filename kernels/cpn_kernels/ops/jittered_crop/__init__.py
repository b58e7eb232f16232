"""A training crop of an image in one pass over its rows: resize, flip, colour jitter and cut, of the native library.

Its way in is `cpn_fast.data.loading.jitter`, which has Pillow where the library does not take an image.
"""

from __future__ import annotations

from cpn_kernels.ops.jittered_crop.native import is_supported, jittered_crop
from cpn_kernels.ops.jittered_crop.place import Kind, Place, Step, check, turn_hue

__all__ = ["Kind", "Place", "Step", "check", "is_supported", "jittered_crop", "turn_hue"]
