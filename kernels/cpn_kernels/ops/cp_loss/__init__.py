"""The losses of the complementary pair: triplet (TCP) and cross-regularisation (CPCR), with OHEM."""

from __future__ import annotations

from torch import Tensor

from cpn_kernels.backend import use_triton
from cpn_kernels.ops.cp_loss import reference
from cpn_kernels.ops.cp_loss.op import cp_loss_op
from cpn_kernels.ops.cp_loss.options import CpLossOptions
from cpn_kernels.ops.cp_loss.reference import ohem_mean

__all__ = ["CpLossOptions", "cp_loss", "ohem_mean"]

DEFAULT = CpLossOptions()


def cp_loss(
    cam_triplet: Tensor,  # [3B, K, h, w]
    rcam_triplet: Tensor | None,  # [3B, K, h, w]
    labels: Tensor,  # [B, K]
    visible: Tensor,  # [B]
    options: CpLossOptions = DEFAULT,
    *,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """L_tcp (eq. 14) and L_cpcr (eq. 15) of a batch of triplets; each a mean per image, then over the images.

    The maps are normalised inside. The unrefined maps are the target of L_cpcr, so `cam_triplet` receives gradient from
    the first L_tcp term alone (and only on the side that is not its target), `rcam_triplet` from the rest.

    CUDA tensors take the Triton kernels, but for `tcp_target` "union" and `pair_norm` "image": the reference computes
    those everywhere.

    Args:
        cam_triplet: raw logit maps of (I.., I_h.., I_hbar..), float [3B, K, h, w].
        rcam_triplet: raw refined foreground maps in the same order; None leaves the first L_tcp term alone.
        labels: 1 where the class is in the image, else 0; [B, K].
        visible: lambda, the share of image pixels that I_h shows, in [0, 1]; [B].
        options: the open readings.
        size: (H, W) to which raw maps are first upsampled, bilinear with aligned corners; None = the CAM grid.

    Returns:
        (tcp, cpcr), scalars; float32, or float64 for such maps.

    Raises:
        ValueError: for shapes that do not match.
    """
    images, classes = labels.shape
    if cam_triplet.ndim != 4 or cam_triplet.shape[:2] != (3 * images, classes):
        raise ValueError(f"cam_triplet is {tuple(cam_triplet.shape)}; expected [{3 * images}, {classes}, h, w]")
    if rcam_triplet is not None and rcam_triplet.shape != cam_triplet.shape:
        raise ValueError(f"rcam_triplet is {tuple(rcam_triplet.shape)}; expected {tuple(cam_triplet.shape)}")
    if visible.shape != (images,):
        raise ValueError(f"visible is {tuple(visible.shape)}; expected [{images}]")
    if options.has_kernel and use_triton(cam_triplet, rcam_triplet, labels, visible):
        losses = cp_loss_op(cam_triplet, rcam_triplet, labels, visible, list(size or ()), *options.values())[0]
        return losses[0], losses[1]
    return reference.cp_loss(cam_triplet, rcam_triplet, labels, visible, options, size)
