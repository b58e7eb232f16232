"""Vision transformers against a NumPy reference in float64, and where installed those of transformers and timm."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cpn_fast.config.training import TrainConfig
from cpn_fast.models.backbones import create_backbone
from cpn_fast.models.backbones.vision_transformer import Architecture, VisionTransformer, resampled_positions
from cpn_fast.models.cam import CamNet
from cpn_fast.training.optimizer import parameter_groups

Array = NDArray[np.float64]

WIDTH, DEPTH, HEADS = 12, 4, 3
PLAIN = Architecture(patch=4, grid=5, mean=(0.5,) * 3, std=(0.5,) * 3, width=WIDTH, depth=DEPTH, heads=HEADS)
REGISTERS = Architecture(patch=4, grid=5, registers=2, layer_scale=True, width=WIDTH, depth=DEPTH, heads=HEADS)
FORMS = {"plain": PLAIN, "registers": REGISTERS}
NATIVE = (20, 20)


def random_vit(architecture: Architecture) -> VisionTransformer:
    """Every tensor random, so that no part is without effect."""
    generator = torch.Generator().manual_seed(5)
    backbone = VisionTransformer(architecture=architecture).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (parameter.ndim == 1))
    return backbone


def images(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- the published layouts, written out -------------------------------------------------------------------------------


def layout(patch: int, positions: int, registers: int = 0, scaled: bool = False) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384), "pos_embed": (1, positions, 384),
        "patch_embed.proj.weight": (384, 3, patch, patch), "patch_embed.proj.bias": (384,),
        "norm.weight": (384,), "norm.bias": (384,),
    }  # fmt: skip
    if registers:
        found["reg_token"] = (1, registers, 384)
    linear = {"attn.qkv": (1152, 384), "attn.proj": (384, 384), "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}
    for block in range(12):
        for name, shape in linear.items():
            found |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            found |= {f"blocks.{block}.{name}.{field}": (384,) for field in ("weight", "bias")}
        if scaled:
            found |= {f"blocks.{block}.{name}.gamma": (384,) for name in ("ls1", "ls2")}
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch16", layout(16, 14 * 14 + 1)),
        ("deit_small_patch16", layout(16, 14 * 14 + 1)),
        ("vit_small_patch14_reg4_dinov2", layout(14, 37 * 37, registers=4, scaled=True)),
    ],
)
def test_keys_and_shapes_are_the_published_ones(name: str, expected: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert {key: tuple(value.shape) for key, value in backbone.state_dict().items()} == expected
    if "patch16" in name:  # timm's count less the classifier of 1000
        assert sum(p.numel() for p in backbone.parameters()) == 22_050_664 - 385 * 1000
    assert all(p.requires_grad for p in backbone.parameters()) and backbone.has_statistics()


# --- a reference without torch ----------------------------------------------------------------------------------------


def layer_norm(x: Array, weight: Array | float = 1.0, bias: Array | float = 0.0) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * weight + bias


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(state: dict[str, Array], name: str, tokens: Array) -> Array:
    """One image's tokens [N, C], head by head and query by query."""
    size = WIDTH // HEADS
    mixed = np.zeros_like(tokens)
    weight, bias = state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"]
    for head in range(HEADS):
        query, key, value = (
            tokens @ weight[at : at + size].T + bias[at : at + size]
            for at in (part * WIDTH + head * size for part in range(3))
        )
        for n in range(len(tokens)):
            exponents = np.exp(key @ query[n] / math.sqrt(size))
            mixed[n, head * size : (head + 1) * size] = exponents @ value / exponents.sum()
    return mixed @ state[f"{name}.proj.weight"].T + state[f"{name}.proj.bias"]


def reference(backbone: VisionTransformer, image: Array) -> tuple[Array, Array, Array]:
    """Maps [C, h, w] of one image [3, H, W] that ImageNet's mean and spread have normalised."""
    state = {key: value.detach().numpy() for key, value in backbone.state_dict().items()}
    form = backbone.architecture
    rows, columns = -(-image.shape[1] // form.patch), -(-image.shape[2] // form.patch)
    padded = np.zeros((3, rows * form.patch, columns * form.patch))
    padded[:, : image.shape[1], : image.shape[2]] = image
    colours = padded * np.reshape([0.229, 0.224, 0.225], (3, 1, 1)) + np.reshape([0.485, 0.456, 0.406], (3, 1, 1))
    own = (colours - np.reshape(form.mean, (3, 1, 1))) / np.reshape(form.std, (3, 1, 1))
    positions, prefix = state["pos_embed"][0], [state["cls_token"][0]]
    if form.registers:
        prefix.append(state["reg_token"][0])
    else:
        prefix[0], positions = prefix[0] + positions[:1], positions[1:]
    if (rows, columns) != (form.grid, form.grid):  # Pillow's filter, which is antialiased
        maps = positions.astype(np.float32).reshape(form.grid, form.grid, WIDTH)
        resized = [
            Image.fromarray(maps[..., c]).resize((columns, rows), Image.Resampling.BICUBIC) for c in range(WIDTH)
        ]
        positions = np.stack(resized, axis=-1).reshape(rows * columns, WIDTH).astype(np.float64)
    kernel = state["patch_embed.proj.weight"].reshape(WIDTH, -1)
    patches = [
        kernel @ own[:, y : y + form.patch, x : x + form.patch].reshape(-1) + state["patch_embed.proj.bias"]
        for y in range(0, padded.shape[1], form.patch)
        for x in range(0, padded.shape[2], form.patch)
    ]
    tokens, taken = np.concatenate([*prefix, np.stack(patches) + positions]), {}
    for index in range(DEPTH):
        block = f"blocks.{index}"

        def scaled(name: str, branch: Array, block: str = block) -> Array:
            return branch * state[f"{block}.{name}.gamma"] if form.layer_scale else branch

        def norm(name: str, x: Array, block: str = block) -> Array:
            return layer_norm(x, state[f"{block}.{name}.weight"], state[f"{block}.{name}.bias"])

        tokens = tokens + scaled("ls1", attention(state, f"{block}.attn", norm("norm1", tokens)))
        hidden = gelu(norm("norm2", tokens) @ state[f"{block}.mlp.fc1.weight"].T + state[f"{block}.mlp.fc1.bias"])
        tokens = tokens + scaled("ls2", hidden @ state[f"{block}.mlp.fc2.weight"].T + state[f"{block}.mlp.fc2.bias"])
        taken[index + 1] = tokens[1 + form.registers :]
    final = layer_norm(taken[DEPTH], state["norm.weight"], state["norm.bias"])
    mid, high, final = (
        tokens.T.reshape(WIDTH, rows, columns) for tokens in (layer_norm(taken[2]), layer_norm(taken[3]), final)
    )
    return mid, high, final


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "tolerance"), [(NATIVE, 1e-6), ((18, 17), 1e-6), ((13, 30), 1e-5), ((40, 7), 1e-5)])
def test_maps_equal_the_reference(form: str, size: tuple[int, int], tolerance: float) -> None:
    """At the size of the position embeddings, at one that is padded to it, and where they are resampled by Pillow."""
    backbone = random_vit(FORMS[form])
    views = images(*size)
    found = backbone(views)
    for index in range(len(views)):
        for maps, wanted in zip(found, reference(backbone, views[index].numpy()), strict=True):
            assert maps.shape[2:] == (-(-size[0] // 4), -(-size[1] // 4))
            np.testing.assert_allclose(maps[index].detach().numpy(), wanted, rtol=0, atol=tolerance)


def test_positions_of_the_same_grid_stay_as_they_are() -> None:
    positions = torch.randn(1, 25, WIDTH)
    assert torch.equal(resampled_positions(positions, 5, (5, 5)), positions)


# --- against transformers ---------------------------------------------------------------------------------------------

RENAMED = (
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"attention\.o_proj", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm", "norm"),
)
"""transformers' keys in timm's words."""


def timm_state(theirs: torch.nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    separate: dict[str, dict[str, Tensor]] = {}
    for key, value in theirs.state_dict().items():
        for pattern, name in RENAMED:
            key = re.sub(pattern, name, key)
        found = re.fullmatch(r"(blocks\.\d+)\.attention\.([qkv])_proj\.(weight|bias)", key)
        if found:
            separate.setdefault(f"{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = value
        elif "mask_token" not in key:
            state[key] = value
    return state | {key: torch.cat([parts[name] for name in "qkv"]) for key, parts in separate.items()}


def their_model(form: str) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers", minversion="5", reason="pip install transformers")
    size: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    size |= {"image_size": NATIVE[0], "patch_size": 4, "layer_norm_eps": 1e-6, "initializer_range": 0.3}
    torch.manual_seed(2)
    if form == "plain":
        config = transformers.ViTConfig(intermediate_size=4 * WIDTH, **size)
        model = transformers.ViTModel(config, add_pooling_layer=False)
    else:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=2, layerscale_value=0.4, **size)
        model = transformers.Dinov2WithRegistersModel(config)
    with torch.no_grad():  # biases begin as 0, scales as one number
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


@pytest.mark.parametrize(
    ("form", "size"), [("plain", NATIVE), ("registers", NATIVE), ("registers", (12, 32)), ("registers", (48, 20))]
)
def test_maps_equal_those_of_transformers(form: str, size: tuple[int, int]) -> None:
    """Other sizes by DINOv2's model alone: ViTModel resamples positions without antialiasing, which timm does not."""
    theirs = their_model(form)
    state = timm_state(theirs)
    if form == "registers":  # theirs adds a position to the class token; timm's file holds the sum
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    backbone = VisionTransformer(architecture=FORMS[form]).double().eval()
    backbone.load_state_dict(state)
    views = images(*size)
    with torch.no_grad():
        mid, high, final = backbone(views)
        outputs = theirs(views * backbone.input_scale + backbone.input_shift, output_hidden_states=True)
    prefix = 1 + FORMS[form].registers
    stages = [torch.nn.functional.layer_norm(outputs.hidden_states[at], (WIDTH,), eps=1e-6) for at in (2, 3)]
    for found, wanted in zip((mid, high, final), (*stages, outputs.last_hidden_state), strict=True):
        wanted = wanted[:, prefix:].transpose(1, 2).reshape(found.shape)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("vit_small_patch16", "vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ("deit_small_patch16", "vit_small_patch16_224.dino"),
        ("vit_small_patch14_reg4_dinov2", "vit_small_patch14_reg4_dinov2.lvd142m"),
    ],
)
def test_weights_and_last_map_are_timm_s(name: str, theirs: str) -> None:
    """Its keys, how it normalises images, and its tokens where positions are resampled."""
    timm = pytest.importorskip("timm", reason="pip install timm")
    backbone = create_backbone(name).eval()
    model = timm.create_model(theirs, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    model.load_state_dict(backbone.state_dict(), strict=True)
    form, known = backbone.architecture, timm.get_pretrained_cfg(theirs)
    assert (form.mean, form.std, known.license) == (known.mean, known.std, "apache-2.0")
    views = images(6 * form.patch, 9 * form.patch, batch=1).float()
    with torch.no_grad():
        found = backbone(views)[2]
        tokens = model.forward_features(views * backbone.input_scale + backbone.input_shift)
    wanted = tokens[:, 1 + form.registers :].transpose(1, 2).reshape(found.shape)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


# --- as a backbone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_gets_a_gradient_and_embeddings_and_scales_do_not_decay(form: str) -> None:
    torch.manual_seed(0)  # heads without a single unit below 0 for all of these few positions
    net = CamNet(random_vit(FORMS[form]).float(), 3, "prcm", dropout=0.0)
    output = net(images(13, 30).float())
    refined = net.refine(output.cam, output.features, torch.ones(2, 3))
    (output.scores.square().sum() + refined.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters() if p is not net.f9.weight)
    groups = {group["name"]: group for group in parameter_groups(net, TrainConfig("demo:", output=None))}  # type: ignore[arg-type]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decaying = {names[id(parameter)].split(".")[-2] for parameter in groups["backbone"]["params"]}
    assert decaying == {"proj", "qkv", "fc1", "fc2"} and groups["backbone"]["weight_decay"] > 0
    left = {names[id(parameter)].split(".")[-1] for parameter in groups["backbone biases"]["params"]}
    embeddings = {"cls_token", "pos_embed"} | ({"reg_token", "gamma"} if form == "registers" else set())
    assert left == {"weight", "bias"} | embeddings and groups["backbone biases"]["weight_decay"] == 0
    assert groups["backbone biases"]["factor"] == 1.0


def test_maps_are_channels_last_and_run_in_bf16() -> None:
    backbone = random_vit(REGISTERS).float().to(memory_format=torch.channels_last).eval()
    views = images(13, 30).float().contiguous(memory_format=torch.channels_last)
    exact = backbone(views)
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in exact)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone(views)
    for maps, wanted in zip(rounded, exact, strict=True):
        assert (maps.float() - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.slow
def test_compiles_as_one_graph_for_every_size() -> None:
    backbone = random_vit(PLAIN).eval()
    compiled = torch.compile(
        partial(VisionTransformer.forward, backbone), fullgraph=True, dynamic=True, backend="eager"
    )
    for size in (NATIVE, (13, 30)):
        for found, wanted in zip(compiled(images(*size)), backbone(images(*size)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
