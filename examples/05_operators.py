"""The operators of the method as functions on tensors: the same on a CPU (C++) and on a GPU (Triton, CUDA)."""

import torch

from cpn_kernels import CpLossOptions, cp_loss, cp_triplet, dense_crf, pixel_correlation, random_walk, superpixels


def main() -> None:
    """Call each of them once."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    coarse = torch.randint(0, 256, (2, 8, 12, 3)).float()
    smooth = torch.nn.functional.interpolate(coarse.permute(0, 3, 1, 2), scale_factor=8, mode="bicubic")
    images = smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().to(device)  # uint8 [2, 64, 96, 3]

    patches = superpixels(images, segments=40)
    print("superpixels per image:", [int(labels.max()) + 1 for labels in patches])

    # Complementary pairs: what I_h hides, its partner shows; hidden pixels are 0, so the two add up to the image.
    keys = torch.tensor([1, 2], device=device)
    views, visible = cp_triplet(images, patches, keys, p_hidden=0.5)
    image, hidden, complement = views.chunk(3)
    print("I_h + I_hbar = I:", torch.equal(hidden + complement, image), "visible:", visible.tolist())

    # The losses of a step, from the maps of the three views.
    cams = torch.rand(6, 3, 8, 12, device=device, requires_grad=True)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]], device=device)
    tcp, cpcr = cp_loss(cams, cams.detach().sqrt(), labels, visible, CpLossOptions(ohem=0.2))
    tcp.backward()
    print(f"L_tcp {tcp.item():.3f}, L_cpcr {cpcr.item():.3f}, gradient {cams.grad.abs().sum().item():.3f}")

    # Maps refined by the affinity of pixels: pairwise cosines are never held in memory on a GPU.
    embedding = torch.randn(2, 16, 8 * 12, device=device)
    print("refined", tuple(pixel_correlation(embedding, cams[:2].detach().flatten(2)).shape))

    # A random walk along learned affinities, and a dense CRF along the image's edges.
    affinity, maps = torch.rand(2, 34, 8, 12, device=device), torch.rand(2, 4, 8, 12, device=device)
    print("walked", tuple(random_walk(affinity, maps, steps=16).shape))
    probabilities = torch.rand(2, 3, 64, 96, device=device).softmax(dim=1)
    refined = dense_crf(images, probabilities, iterations=2)
    print("after the CRF the probabilities still sum to", round(refined.sum(dim=1).mean().item(), 4))


if __name__ == "__main__":
    main()
