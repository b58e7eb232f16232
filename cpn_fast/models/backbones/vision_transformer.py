"""Vision transformers (Dosovitskiy et al., ICLR 2021; Oquab et al., DINOv2, 2023) in timm's key layout.

Keys and arithmetic are those of timm's `vit_small_patch16_224` and `vit_small_patch14_reg4_dinov2`, which take images
of any size: position embeddings are resampled to the image's grid of patches (bicubic, antialiased).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.models.backbones.common import Backbone, Features
from cpn_kernels.ops.cp_triplet import IMAGENET_MEAN, IMAGENET_STD

NORM_EPS = 1e-6
MLP_RATIO = 4
SPREAD = 0.02
"""Of weights and embeddings that begin from random numbers."""


@dataclass(frozen=True)
class Architecture:
    """What tells one vision transformer from another.

    Attributes:
        patch: side of a patch in pixels.
        grid: side of the square of patches that the position embeddings are stored for.
        registers: tokens beside the class token that stand for nothing (Darcet et al., ICLR 2024); where there are any,
            position embeddings are stored for patches alone, else for the class token too.
        layer_scale: each block's two branches are scaled by channel.
        mean: RGB in [0, 1] that is 0 in the images of its pretraining.
        std: the spread by which those are divided.
        width: channels of a token.
        depth: blocks.
        heads: of the attention.
    """

    patch: int = 16
    grid: int = 14
    registers: int = 0
    layer_scale: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    width: int = 384
    depth: int = 12
    heads: int = 6


SMALL_PATCH16 = Architecture(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""timm's `vit_small_patch16_224`, as its own weights ("augreg") were trained."""

DEIT_SMALL_PATCH16 = Architecture()
"""The same network on images normalised as ImageNet's: DeiT's and DINO's weights."""

DINOV2_SMALL_PATCH14 = Architecture(patch=14, grid=37, registers=4, layer_scale=True)
"""DINOv2's ViT-S/14 with four registers."""


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] -> the same."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] -> the same."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] -> the same."""
        return tokens * self.gamma


class Block(nn.Module):
    """Attention and MLP, each of the normalised tokens and added to them."""

    def __init__(self, width: int, heads: int, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] -> the same."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class PatchEmbedding(nn.Module):
    """One token for each patch of the image."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H / patch, W / patch]."""
        return self.proj(x)


class VisionTransformer(Backbone):
    """A vision transformer without its classifier; its maps are the tokens of the patches.

    `final` are the last tokens, normalised by the network's own layer norm. `mid` and `high` are those after half and
    after three quarters of the blocks, normalised without an affine: what the blocks pass on grows with every one.

    Where a side is no multiple of the patch, the image is padded below and to the right with 0, its mean colour. What
    comes in, normalised by ImageNet's mean and standard deviation like for every backbone, is brought to what the
    weights were trained on first. In CAM training every weight trains, for there is no batch norm.

    Args:
        frozen: see `Backbone`.
        architecture: which one.
    """

    input_scale: Tensor
    input_shift: Tensor

    def __init__(self, frozen: bool = True, architecture: Architecture = SMALL_PATCH16) -> None:
        super().__init__()
        width, patch = architecture.width, architecture.patch
        self.architecture = architecture
        self.channels, self.strides = (width,) * 3, (patch,) * 3
        own_mean, own_std = (torch.tensor(value).view(3, 1, 1) for value in (architecture.mean, architecture.std))
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("input_scale", std / own_std, persistent=False)
        self.register_buffer("input_shift", (mean - own_mean) / own_std, persistent=False)
        stored = architecture.grid**2 + (0 if architecture.registers else 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if architecture.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, architecture.registers, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, stored, width))
        self.patch_embed = PatchEmbedding(width, patch)
        self.blocks = nn.Sequential(
            *(Block(width, architecture.heads, architecture.layer_scale) for _ in range(architecture.depth))
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.initialise(frozen)

    def initialise(self, frozen: bool) -> None:
        """Normally distributed weights and embeddings, biases of 0; then the freezing rule if `frozen`."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=SPREAD)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for embedding in self._embeddings():
            nn.init.normal_(embedding, std=SPREAD)
        self.freeze(frozen)

    def undecayed(self) -> tuple[nn.Parameter, ...]:
        """Embeddings, and what scales channels: the weights of layer norms and of `LayerScale`."""
        scales = (parameter for parameter in self.parameters() if parameter.ndim == 1)
        return (*self._embeddings(), *scales)

    def forward(self, x: Tensor) -> Features:
        """[B, 3, H, W] -> mid, high and final, [B, width, ceil(H / patch), ceil(W / patch)] each."""
        patch, depth = self.architecture.patch, self.architecture.depth
        x = F.pad(x, (0, -x.shape[3] % patch, 0, -x.shape[2] % patch))
        patches = self.patch_embed(x * self.input_scale + self.input_shift)
        grid = (patches.shape[2], patches.shape[3])
        tokens = self._with_prefix(patches, grid)
        mid = high = tokens
        for index, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if index == depth // 2:
                mid = tokens
            if index == 3 * depth // 4:
                high = tokens
        width = (self.architecture.width,)
        mid, high = (F.layer_norm(self._of_patches(taken), width, eps=NORM_EPS) for taken in (mid, high))
        final = self.norm(self._of_patches(tokens))
        mid, high, final = (taken.transpose(1, 2).unflatten(2, grid) for taken in (mid, high, final))
        return mid, high, final

    def _embeddings(self) -> Iterator[nn.Parameter]:
        yield self.cls_token
        if self.architecture.registers:
            yield self.reg_token
        yield self.pos_embed

    def _with_prefix(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, 1 + registers + h * w, width] of embedded patches [B, width, h, w], with their positions."""
        class_token: Tensor = self.cls_token
        positions: Tensor = self.pos_embed
        if not self.architecture.registers:
            class_token, positions = class_token + positions[:, :1], positions[:, 1:]
        positions = resampled_positions(positions, self.architecture.grid, grid)
        tokens = patches.flatten(2).transpose(1, 2) + positions
        prefix = [class_token, self.reg_token] if self.architecture.registers else [class_token]
        return torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)

    def _of_patches(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1 + self.architecture.registers :]


def resampled_positions(positions: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """Position embeddings of another grid of patches, by an antialiased bicubic filter.

    Args:
        positions: float [1, side * side, width].
        side: of the square grid that they are for.
        grid: rows and columns of the other one.

    Returns:
        [1, rows * columns, width]; as they are where the grid is the same.
    """
    maps = positions.transpose(1, 2).unflatten(2, (side, side))
    maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return maps.flatten(2).transpose(1, 2)
