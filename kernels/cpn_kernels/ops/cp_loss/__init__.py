"""The losses of the complementary pair: triplet (TCP) and cross-regularisation (CPCR), with OHEM."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cpn_kernels.backend import takes_kernel
from cpn_kernels.cam_norm import MapNorm
from cpn_kernels.ops.cp_loss import reference
from cpn_kernels.ops.cp_loss.op import cp_loss_op
from cpn_kernels.ops.cp_loss.reference import ohem_mean

__all__ = ["cp_loss", "ohem_mean"]


def cp_loss(
    cam_triplet: Tensor,  # [3B, K, h, w]
    rcam_triplet: Tensor | None,  # [3B, K, h, w]
    labels: Tensor,  # [B, K]
    visible: Tensor,  # [B]
    *,
    map_norm: MapNorm = "minmax",
    pair_norm: Literal["own", "shared"] = "own",
    tcp: bool = True,
    tcp_target: Literal["pair", "image"] = "pair",
    cpcr: bool = True,
    ohem: float = 0.2,
    ohem_pool: Literal["present", "all"] = "present",
    cpcr_target: Literal["winner", "dense", "released"] = "winner",
    refined_pair_gradient: bool = False,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """L_tcp (eq. 14) and L_cpcr (eq. 15) of a batch of triplets; each a mean per image, then over the images.

    The maps are normalised inside. The unrefined maps are the target of L_cpcr, so `cam_triplet` receives gradient from
    the first L_tcp term alone (and only on the side that is not its target), `rcam_triplet` from the rest.

    Args:
        cam_triplet: raw logit maps of (I.., I_h.., I_hbar..), float [3B, K, h, w].
        rcam_triplet: raw refined foreground maps in the same order; None leaves the first L_tcp term alone.
        labels: 1 where the class is in the image, else 0; [B, K].
        visible: lambda, the share of image pixels that I_h shows, in [0, 1]; [B].
        map_norm: normalisation of the maps, "minmax" or "max".
        pair_norm: hidden views are normalised by their "own" maximum, or by one at least that of I ("shared"; the
            maximum of I is a constant there).
        tcp: compute L_tcp, else it is 0.
        tcp_target: the constant side of L_tcp's first term: the "pair", or the map of the full "image", which the
            pair is then to reproduce.
        cpcr: compute L_cpcr, else it is 0.
        ohem: share of L_cpcr's elements that count per image, the largest; in (0, 1].
        ohem_pool: they are chosen from the background and "present" classes, or from "all" channels.
        cpcr_target: "winner" (masked by the winner of Y_o, clamped to the share of the other view), "dense" (as it is)
            or "released" (background after scaling, then only the strongest class of each pixel).
        refined_pair_gradient: L_tcp's refined term also sends gradient into its pair, as the released code does.
        size: (H, W) to which raw maps are first upsampled, bilinear with aligned corners; None = the CAM grid.

    Returns:
        (tcp, cpcr), scalars; float32, or float64 for such maps.

    Raises:
        ValueError: for shapes that do not match, or an unknown option.
    """
    images, classes = labels.shape
    if cam_triplet.ndim != 4 or cam_triplet.shape[:2] != (3 * images, classes):
        raise ValueError(f"cam_triplet is {tuple(cam_triplet.shape)}; expected [{3 * images}, {classes}, h, w]")
    if rcam_triplet is not None and rcam_triplet.shape != cam_triplet.shape:
        raise ValueError(f"rcam_triplet is {tuple(rcam_triplet.shape)}; expected {tuple(cam_triplet.shape)}")
    if visible.shape != (images,):
        raise ValueError(f"visible is {tuple(visible.shape)}; expected [{images}]")
    for name, value, known in (
        ("pair_norm", pair_norm, ("own", "shared")),
        ("tcp_target", tcp_target, ("pair", "image")),
        ("ohem_pool", ohem_pool, ("present", "all")),
        ("cpcr_target", cpcr_target, ("winner", "dense", "released")),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if not 0 < ohem <= 1:
        raise ValueError(f"ohem is {ohem}; expected a share in (0, 1]")
    if map_norm not in ("minmax", "max"):
        raise ValueError(f"map_norm is {map_norm!r}; expected 'minmax' or 'max'")
    if takes_kernel(cam_triplet, rcam_triplet, labels, visible):
        losses = cp_loss_op(
            cam_triplet,
            rcam_triplet,
            labels,
            visible,
            list(size or ()),
            map_norm,
            pair_norm,
            tcp,
            tcp_target,
            cpcr,
            ohem,
            ohem_pool,
            cpcr_target,
            refined_pair_gradient,
        )[0]
        return losses[0], losses[1]
    return reference.cp_loss(
        cam_triplet,
        rcam_triplet,
        labels,
        visible,
        map_norm=map_norm,
        pair_norm=pair_norm,
        tcp=tcp,
        tcp_target=tcp_target,
        cpcr=cpcr,
        ohem=ohem,
        ohem_pool=ohem_pool,
        cpcr_target=cpcr_target,
        refined_pair_gradient=refined_pair_gradient,
        size=size,
    )
