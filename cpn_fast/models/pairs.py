"""Complementary pairs at inference: what two views of an image show, each of which hides what the other shows.

A classifier that does not see the most telling part of an object looks at the rest of it, so the pair's maps, each
where its view shows the image, hold more of the object than the image's own (the premise of the paper, section 3.1).
The patches are those of a grid: the same for every image, so that they are part of an exported graph too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cpn_kernels.philox import first_word

SIDE = 64
"""Side of a patch in pixels of the view."""

TABLE = 64
"""Patches by patches of a pattern, which repeats beyond that."""


def patterns(pairs: int) -> Tensor:
    """Which patches the first view of each pair shows, as 0 and 1, each with probability 1/2.

    Returns:
        float [pairs, TABLE, TABLE].

    Patch (row, column) of pair n is shown iff word 0 of Philox4x32-10 at (key n, counter row * TABLE + column) is at
    least 2**31.
    """
    counters = torch.arange(TABLE * TABLE).view(1, TABLE, TABLE)
    return (first_word(torch.arange(pairs).view(-1, 1, 1), counters) >= 2**31).float()


def shown_pixels(pattern: Tensor, height: int, width: int) -> Tensor:
    """A pattern [TABLE, TABLE] over an image: float [height, width], 1 where its first view shows the pixel."""
    rows = torch.arange(height, device=pattern.device) // SIDE % TABLE
    columns = torch.arange(width, device=pattern.device) // SIDE % TABLE
    return pattern.index_select(0, rows).index_select(1, columns)


def pair_cam(cam_of: Callable[[Tensor], Tensor], views: Tensor, shown: Tensor, flip: bool) -> Tensor:
    """CAM of a pair: of each view where it shows the image.

    Args:
        cam_of: the network's CAM logits [M, K, h, w] of normalised views.
        views: [M, 3, H, W]; with `flip` the second half are the mirrored ones of the first.
        shown: float [H, W], 1 where the first view shows the image.
        flip: see `views`; the pattern is mirrored with them.

    Returns:
        float [M, K, h, w] >= 0.
    """
    if flip:
        both = torch.stack([shown, shown.flip(1)])[:, None, None]
        pixels = both.expand(2, views.shape[0] // 2, 1, *shown.shape).flatten(0, 1)
    else:
        pixels = shown[None, None]
    first, second = F.relu(cam_of(views * pixels)), F.relu(cam_of(views * (1 - pixels)))
    visible = F.interpolate(pixels, size=(first.shape[2], first.shape[3]), mode="bilinear", align_corners=False)
    return first * visible + second * (1 - visible)
