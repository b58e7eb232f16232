"""Equations 14 and 15 one position at a time in float64 numpy, and maps to try them on."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

LABELS = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
VISIBLE = torch.tensor([0.4, 0.75, 0.5], dtype=torch.float64)


def raw_maps(seed: int, height: int = 4, width: int = 5) -> Tensor:
    """Distinct numbers in (-1.5, 2.5), no zero among them: [9, 4, h, w], with a weak and an empty channel."""
    generator = torch.Generator().manual_seed(seed)
    count = 9 * 4 * height * width
    maps = (torch.randperm(count, generator=generator).double() + 0.37) / count * 4 - 1.5
    maps = maps.reshape(9, 4, height, width)
    maps[0, 2] /= 400  # below the least peak
    maps[5, 3] = -maps[5, 3].abs()
    maps[8, 1] = maps[8, 1].abs() + 0.3  # covers everything
    return maps


def loop_normalise(raw: np.ndarray, label: int, map_norm: str, floor: float = 0.0) -> np.ndarray:
    rectified = np.maximum(raw, 0)
    low, high = rectified.min(), rectified.max()
    if label == 0 or high < 1e-2:
        return np.zeros_like(raw)
    scale = max(high, floor)
    if map_norm == "max":
        return rectified / (scale + 1e-5)
    return np.maximum(rectified - low - 1e-5, 0) / (scale - low + 1e-5)


def loop_on_scale(raw: np.ndarray, full: np.ndarray, label: int, map_norm: str) -> np.ndarray:
    """One channel by the minimum and maximum of the full image's."""
    rectified, bounds = np.maximum(raw, 0), np.maximum(full, 0)
    if label == 0 or bounds.max() < 1e-2:
        return np.zeros_like(raw)
    if map_norm == "max":
        return rectified / (bounds.max() + 1e-5)
    return np.maximum(rectified - bounds.min() - 1e-5, 0) / (bounds.max() - bounds.min() + 1e-5)


def loop_views(triplet: Tensor, image: int, map_norm: str, pair_norm: str) -> list[np.ndarray]:
    """Y_o, Y_h, Y_hbar of one image, each [K, h, w]."""
    raw = triplet.double().numpy()
    batch = len(raw) // 3
    views = []
    for view in range(3):
        channels = []
        for c in range(raw.shape[1]):
            if pair_norm == "image":
                channels.append(
                    loop_on_scale(raw[view * batch + image, c], raw[image, c], int(LABELS[image, c]), map_norm)
                )
                continue
            floor = max(raw[image, c].max(), 0.0) if pair_norm == "shared" and view > 0 else 0.0
            channels.append(loop_normalise(raw[view * batch + image, c], int(LABELS[image, c]), map_norm, floor))
        views.append(np.stack(channels))
    return views


def loop_target(full: np.ndarray, part: np.ndarray, share: float, form: str) -> np.ndarray:
    """The unrefined side of eq. 15, one position at a time; [K + 1, h, w]."""
    classes, height, width = full.shape
    out = np.zeros((classes + 1, height, width))
    for y, x in itertools.product(range(height), range(width)):
        o, p = full[:, y, x], part[:, y, x]
        if form == "released":
            scaled = [share * b for b in p]
            rest = [(1 - max(o)) - (1 - max(scaled)), *(a - b for a, b in zip(o, scaled, strict=True))]
            best = rest.index(max(rest))
            out[best, y, x] = rest[best]
            continue
        o, p = [max(1 - max(o), 0.0), *o], [max(1 - max(p), 0.0), *p]
        for c in range(classes + 1):
            rest = o[c] - share * p[c]
            if form == "winner":
                wins = c == 0 or o[1:].index(max(o[1:])) == c - 1
                rest = min(max(rest, 0.0), 1 - share) if wins else 0.0
            out[c, y, x] = rest
    return out


def loop_ohem(errors: np.ndarray, pool: list[int], fraction: float) -> float:
    chosen = sorted((float(e) for c in pool for e in errors[c].ravel()), reverse=True)
    return float(np.mean(chosen[: max(1, int(fraction * len(chosen)))]))


def loop_loss(
    cam: Tensor,
    rcam: Tensor,
    *,
    map_norm: str = "minmax",
    pair_norm: str = "own",
    ohem: float = 0.2,
    ohem_pool: str = "present",
    cpcr_target: str = "winner",
) -> tuple[float, float]:
    """Equations 14 and 15 image by image."""
    tcp, cpcr = [], []
    for image in range(len(LABELS)):
        share = float(VISIBLE[image])
        plain = loop_views(cam, image, map_norm, pair_norm)
        refined = loop_views(rcam, image, map_norm, pair_norm)
        tcp.append(sum(np.abs(share * h + (1 - share) * b - o).mean() for o, h, b in (plain, refined)))
        pool = [c for c in range(5) if ohem_pool == "all" or c == 0 or LABELS[image, c - 1]]
        total = 0.0
        for part, other, part_share in ((plain[1], refined[2], share), (plain[2], refined[1], 1 - share)):
            target = loop_target(plain[0], part, part_share, cpcr_target)
            found = (1 - part_share) * np.concatenate([np.maximum(1 - other.max(0, keepdims=True), 0), other])
            if cpcr_target == "released":
                found[0] = 1 - found[1:].max(0)
            total += loop_ohem(np.abs(target - found), pool, ohem)
        cpcr.append(total)
    return float(np.mean(tcp)), float(np.mean(cpcr))


def loop_union(cam: Tensor, visible: list[float], map_norm: str, pair_norm: str) -> tuple[float, np.ndarray]:
    """The first term of L_tcp with the pair's union as target, and its signs, dL/dY_o times the number of elements."""
    raw, images = cam.detach().double().numpy(), len(LABELS)
    errors = []
    for image in range(images):
        full, hidden, complement = raw[image], raw[images + image], raw[2 * images + image]
        for c in range(raw.shape[1]):
            label = int(LABELS[image, c])
            shown = [np.maximum(m[c], 0) for m, v in ((hidden, visible[image]), (complement, 1 - visible[image])) if v]
            both = np.max(shown, axis=0)
            if pair_norm == "image":
                target = loop_on_scale(both, full[c], label, map_norm)
                mine = loop_on_scale(full[c], full[c], label, map_norm)
            else:
                floor = max(full[c].max(), 0.0) if pair_norm == "shared" else 0.0
                target, mine = loop_normalise(both, label, map_norm, floor), loop_normalise(full[c], label, map_norm)
            errors.append(mine - target)
    stacked = np.stack(errors)
    return float(np.abs(stacked).mean()), np.sign(stacked).reshape(images, *raw.shape[1:])
