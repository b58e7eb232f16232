"""Settings of a training run: frozen dataclasses from which the command line is built, and the presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from cpn_fast.config.device_options import DeviceOptions as DeviceOptions
from cpn_fast.config.groups import FLAT, flat_groups
from cpn_fast.config.reviewed import ReviewedOptions

MethodName = Literal["cam", "seam", "seam_prcm", "cpn"]
PresetName = Literal["default", "paper", "released"]

CERTAIN = (0.3, 0.55)
"""Scores of refined maps: below the first a pixel is taken for background, above the second for its class; in between
it teaches nothing."""


@dataclass(frozen=True)
class MethodOptions:
    """Every open reading of the method as a typed option.

    Attributes:
        map_norm: CAM normalisation, "minmax" (the ancestors') or "max" (eq. 16).
        pair_norm: a hidden view is normalised by its "own" maximum, or by at least that of the full image ("shared");
            with "image" all views are on the scale of the full image, a constant: no map is divided by its own peak,
            so that a loss between them cannot be lowered by shrinking to it. No Triton kernel has "image".
        tcp: use the triplet complementary-pair loss (eq. 14).
        tcp_target: what stands still in its first term: the map of the full "image", which the pair of hidden views
            has to reproduce, or the "pair". With max-normalised maps the latter rewards maps that shrink to a peak.
            "union": the image learns what either hidden view shows (the maximum of their maps, normalised once). No
            Triton kernel has it.
        cpcr: use the cross-regularisation loss (eq. 15).
        affinity: what PCM compares pixels by: "correlation" (embeddings centred per image, then cosine) or "cosine" of
            the embeddings as they are (the ancestors').
        prcm: form of the pixel-region correlation: "softmax", "released", or "none" (PCM alone, which gave the better
            RCAM in nearly every comparison). `seam_prcm` takes "softmax" where this says "none".
        pcm: use PCM; False leaves the CAM unrefined (then cpcr and the refined part of tcp are off).
        ohem: fraction of elements kept by OHEM in cpcr / ECR; 1 keeps all.
        ohem_pool: elements OHEM picks from: "present" (background and present classes) or "all".
        cpcr_target: "winner", "dense" or "released".
        refined_pair_gradient: let the gradient flow into the pair in the refined term of tcp.
        loss_resolution: where maps are compared: the "cam" grid, or the "input" (upsampled to it; SEAM's pair then
            meets at `seam_scale` of the input's size instead of on the small view's grid).
        score_resolution: image scores are means of the maps on the "cam" grid or enlarged to the "input".
        winner_classes: which classes compete for a pixel inside the refinement: those "present" in the image, or "all"
            of them, labels being applied to the result only.
        min_pool_weight: weight of the min-pooling loss (released: 1).
        pixel_weight: weight of the cross entropy of pixel labels (of `pixel_masks` or the teacher).
        pixel_classes: which classes compete for a pixel in it: background and those "present" in the image, as when the
            maps make masks, or "all".
        teacher: share in [0, 1) that a teacher keeps of itself in each step, e.g. 0.99: a copy of the network, averaged
            over time, whose maps after PCM label the pixels of each image from the end of the warm-up on. The pixel
            head learns them as it does those of `pixel_masks`. None = no teacher.
        teacher_band: the teacher's scores from which to which a pixel is void: below it is background, above an object.
        teacher_pairs: `cpn`'s teacher sees the image and its pair, and adds what each view of the pair shows; False =
            the image alone.
        p_hidden: probability with which a patch is hidden in I_h.
        seam_scale: scale of SEAM's second view.
        seam_background: background of SEAM's refined maps in ECR: "recomputed" as 1 - maximum, or the one that PCM
            "refined" with the classes.
        scale_resize: how inference brings images to its scales: "bilinear", or Pillow's antialiased "bicubic".
        dropout: channel dropout before the classifier.
        warm_up: share of all steps, at the beginning, in which a method of several views trains as plain `cam`.
        warm_up_epochs: the same in epochs, in whose place it counts where it is given. The learning rate falls to 0
            over them and begins anew after them.
    """

    map_norm: Literal["minmax", "max"] = "minmax"
    pair_norm: Literal["own", "shared", "image"] = "own"
    tcp: bool = True
    tcp_target: Literal["image", "pair", "union"] = "image"
    cpcr: bool = True
    pcm: bool = True
    affinity: Literal["correlation", "cosine"] = "correlation"
    prcm: Literal["softmax", "released", "none"] = "none"
    ohem: float = 0.2
    ohem_pool: Literal["present", "all"] = "present"
    cpcr_target: Literal["winner", "dense", "released"] = "winner"
    refined_pair_gradient: bool = False
    loss_resolution: Literal["cam", "input"] = "cam"
    score_resolution: Literal["cam", "input"] = "cam"
    winner_classes: Literal["present", "all"] = "present"
    min_pool_weight: float = 0.0
    pixel_weight: float = 1.0
    pixel_classes: Literal["present", "all"] = "present"
    teacher: float | None = None
    teacher_band: tuple[float, float] = CERTAIN
    teacher_pairs: bool = True
    p_hidden: float = 0.5
    seam_scale: float = 0.3
    seam_background: Literal["recomputed", "refined"] = "recomputed"
    scale_resize: Literal["bilinear", "bicubic"] = "bilinear"
    dropout: float = 0.5
    warm_up: float = 0.5
    warm_up_epochs: float | None = None


@dataclass(frozen=True)
class PatchOptions:
    """How an image falls into patches.

    Attributes:
        kind: "superpixel" (SLIC) or "grid".
        segments: S_N, the number of superpixels that one crop sees.
        compactness: SLIC compactness.
        backend: which SLIC: "native" (this package's C++), "skimage", "fast-slic" where installed, or "auto" (native
            where it was built, else skimage; the run's folder says which, and a resume takes the same).
        superpixels: "cached" (maps of the whole image at three densities, made once; on a GPU they are held in its
            memory, 11.9 GB for VOC's 10,582 images, those past a quarter of what is free in pinned host memory), or
            "online" (SLIC of every crop). Where native was built with nvcc, a GPU makes them, else the CPU.
        grid_sides: K_S in pixels of a 448 crop; a side is drawn per image and scaled with the crop.
        cache_dir: where superpixel maps are kept; None = `~/.cache/cpn_fast/superpixels`.
    """

    kind: Annotated[Literal["superpixel", "grid"], tyro.conf.arg(aliases=("--patch",))] = "superpixel"
    segments: int = 200
    compactness: float = 10.0
    backend: Literal["auto", "native", "skimage", "fast-slic"] = "auto"
    superpixels: Annotated[Literal["cached", "online"], tyro.conf.arg(aliases=("--superpixels",))] = "cached"
    grid_sides: tuple[int, ...] = (56, 112)
    cache_dir: Path | None = None


@dataclass(frozen=True)
class AugmentOptions:
    """Augmentation of the training crops, in this order: resize, flip, colour jitter, crop.

    Attributes:
        crop: side of the square crop in pixels.
        resize: range of the long side in pixels; None = crop * (448..768) / 448.
        flip: flip horizontally with probability 0.5.
        jitter: brightness, contrast, saturation, hue ranges.
    """

    crop: Annotated[int, tyro.conf.arg(aliases=("--crop",))] = 448
    resize: tuple[int, int] | None = None
    flip: bool = True
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)

    def resize_range(self) -> tuple[int, int]:
        """The range of the long side in pixels."""
        return self.resize or (self.crop, round(self.crop * 768 / 448))


@dataclass(frozen=True)
class SegmentAugment(AugmentOptions):
    """Augmentation of a segmentation network's crops, in this order: resize, flip, colour jitter, crop.

    Attributes:
        crop: side of the square crop in pixels.
        resize: range of the long side in pixels; None = crop * (250..750) / 448. That is 0.5 to 1.5 times 500 pixels,
            the long side of VOC's images, for a crop of 448; a smaller crop shows as much of them.
        flip: flip horizontally with probability 0.5.
        jitter: brightness, contrast, saturation, hue ranges.
    """

    def resize_range(self) -> tuple[int, int]:
        """The range of the long side in pixels."""
        return self.resize or (round(self.crop * 250 / 448), round(self.crop * 750 / 448))


@dataclass(frozen=True)
class OptimizerOptions:
    """SGD and its polynomial schedule.

    Attributes:
        lr: base learning rate; None = the backbone's recipe.
        momentum: SGD momentum; None = the backbone's recipe or the preset's.
        weight_decay: SGD weight decay.
        poly_power: power of the polynomial schedule.
        head_lr_factor: learning rate of the new layers (the classifier), times the base rate.
    """

    lr: float | None = None
    momentum: float | None = None
    weight_decay: float = 5e-4
    poly_power: float = 0.9
    head_lr_factor: float = 10.0


@dataclass(frozen=True)
class LoopOptions:
    """How long a training runs, and what it does on the way.

    Attributes:
        epochs: passes over the data; None = the backbone's recipe.
        max_steps: stop after this many steps (the schedule still spans the epochs).
        batch_size: images per step over all devices.
        micro_batch: images that pass through the network at once in each process, where its share of a step is larger:
            their gradients add up. With it a step does not depend on the number of processes; None = the whole share.
        seed: of everything random.
        checkpoint_every: steps between checkpoints.
        log_every: steps between progress lines and TensorBoard scalars (metrics.jsonl has every step).
        eval_every: epochs between mIoU points on val_images; 0 = never.
        val_images: images of the fixed validation subset for these points; AffinityNet's are of those trained on that
            have masks in `data`.
        resume: continue from the run folder's last checkpoint.
    """

    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = 8
    micro_batch: int | None = None
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 10
    eval_every: int = 1
    val_images: int = 64
    resume: bool = False


@dataclass(frozen=True)
class SegmentLoop(LoopOptions):
    """The loop of a segmentation network's training.

    Attributes:
        batch_size: images per step over all devices.
    """

    batch_size: int = 10


@dataclass(frozen=True)
class TrainingConfig:
    """What every kind of training has in common. Everything here is written to the run folder's config.json.

    Attributes:
        data: source, e.g. `voc:PATH`, `folder:PATH`, `classes:PATH`, `coco:PATH`, `demo:` or a bare path.
        output: run folder.
        split: split to train on.
        val_split: split with masks for the validation metrics; None = the source's `val` where it exists.
        backbone: resnet38, resnet50, mobilenet_v2, mobilenet_v2_stride8, efficientnet_lite2,
            efficientnet_lite2_stride8, vit_small_patch16, deit_small_patch16, vit_small_patch14_reg4_dinov2,
            resnet38_tiny; or timm:NAME, a network of timm; or package.module:function, which returns a network of
            one's own.
        weights: backbone weights (.params, .pth, .safetensors); None trains from scratch, a network of timm from the
            weights that timm fetches.
        loop: how long the training runs, and what it does on the way.
        augment: augmentation of the training crops.
        optimizer: how the weights follow the gradients.
        device: where the training runs.
    """

    data: str
    output: Path
    split: str = "train"
    val_split: str | None = None
    backbone: str = "resnet38"
    weights: Path | None = None
    loop: Annotated[LoopOptions, FLAT] = field(default_factory=LoopOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    optimizer: Annotated[OptimizerOptions, FLAT] = field(default_factory=OptimizerOptions)
    device: Annotated[DeviceOptions, FLAT] = field(default_factory=DeviceOptions)

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """Learning rate of each role of a parameter ("backbone", "head"), times the base rate."""
        return {"backbone": 1.0, "head": self.optimizer.head_lr_factor}


@dataclass(frozen=True)
class TrainConfig(TrainingConfig):
    """One training of a CAM network.

    Attributes:
        method: which method.
        preset: bundle of method options that the given options then override.
        refine_lr_factor: learning rate of the refinement heads, times the base rate.
        pixel_lr_factor: learning rate of the pixel head, times the base rate. A position's features are longer than
            their mean over the image, from which the classifier learns: at ten times the base rate the head diverged.
        hidden_colour: what a hidden pixel shows: ImageNet's mean, or the training set's.
        init: run of `cpn train` whose weights the training begins with, in place of `weights`; heads that it lacks
            begin anew.
        pixel_masks: folder of masks, e.g. of `cpn label --void-band`, from which a head on the backbone's last features
            learns pixel labels beside the method's losses, in every view the pixels that it shows; void (255) teaches
            nothing. Images without a mask there are taught by their image labels alone.
        options: readings of the method.
        patch: how an image falls into patches.
    """

    method: MethodName = "cpn"
    preset: PresetName = "default"
    refine_lr_factor: float = 1.0
    pixel_lr_factor: float = 1.0
    hidden_colour: Literal["imagenet", "dataset"] = "imagenet"
    init: Path | None = None
    pixel_masks: Path | None = None
    options: MethodOptions = field(default_factory=MethodOptions)
    patch: PatchOptions = field(default_factory=PatchOptions)

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """Learning rate of each role of a parameter, times the base rate."""
        return {**super().lr_factors, "refinement": self.refine_lr_factor, "pixels": self.pixel_lr_factor}

    @property
    def learns_pixels(self) -> bool:
        """Whether the network has a pixel head: it learns labels of masks or of its teacher."""
        return self.pixel_masks is not None or self.options.teacher is not None


@dataclass(frozen=True)
class SegmentConfig(ReviewedOptions, TrainingConfig):
    """One training of a segmentation network (method section 9; paper section 4.3).

    Attributes:
        masks: folder of masks to train on, `SegmentationClass/ID.png` or `ID.png`, with or without a `labelmap.txt`; or
            "truth", the source's own masks.
        allow_missing: train without the images that have no mask; otherwise they are an error.
        dropout: share of the head's activations that a step drops.
        norms: whether the backbone's batch norms "train" or stay "frozen" as the weights have them; "auto" = they
            train, unless the weights have none (folded into the convolutions), for these cannot.
        loop: how long the training runs, and what it does on the way.
        augment: augmentation of the training crops.
    """

    masks: str = field(kw_only=True)
    allow_missing: bool = False
    dropout: float = 0.5
    norms: Literal["auto", "train", "frozen"] = "auto"
    loop: Annotated[SegmentLoop, FLAT] = field(default_factory=SegmentLoop)
    augment: SegmentAugment = field(default_factory=SegmentAugment)


@dataclass(frozen=True, kw_only=True)
class AffinityConfig(TrainingConfig):
    """One training of AffinityNet, on what a labelling is sure of.

    Attributes:
        masks: folder that `cpn label --soft-maps` wrote; all its images are trained on.
        data: source in which the images are found by their ids, and their masks for the validation metrics; empty =
            images where they were when they were labelled, and no such metrics.
        split: not used.
        val_split: not used.
        beta: best background score of the labelled maps, between 0 and 1, which the two background exponents of the
            labels bracket; None = the labelling's.
        low_share: low background exponent, as a share of the one that decides as beta does, below 1: what foreground it
            leaves is certain.
        high_share: high background exponent, as a share of the same, above 1: what background it leaves is certain.
    """

    masks: Annotated[Path, tyro.conf.Positional]
    data: str = ""
    split: tyro.conf.Suppress[str] = ""
    val_split: tyro.conf.Suppress[str | None] = None
    beta: float | None = None
    low_share: float = 2 / 3
    high_share: float = 4.0


TRAINING_CONFIGS: dict[str, type[TrainingConfig]] = {
    "train": TrainConfig,
    "affinity": AffinityConfig,
    "segment": SegmentConfig,
}
"""Kind of training -> its settings; a run's config.json says which."""

C = TypeVar("C", bound=TrainingConfig)


def replace_dotted(config: C, values: Mapping[str, Any]) -> C:
    """Return `config` with settings (`options.map_norm`, `momentum`) replaced, by their names on the command line.

    Raises:
        ValueError: for a setting that does not exist.
    """
    for dotted, value in values.items():
        head, _, rest = place_of(type(config), dotted).partition(".")
        if rest:
            value = dataclasses.replace(getattr(config, head), **{rest: value})
        changes: dict[str, Any] = {head: value}
        config = dataclasses.replace(config, **changes)
    return config


def setting(config: TrainingConfig, dotted: str) -> Any:
    """The value of a setting by its name on the command line. Raises ValueError for one that does not exist."""
    value: Any = config
    for name in place_of(type(config), dotted).split("."):
        value = getattr(value, name)
    return value


def place_of(kind: Any, dotted: str) -> str:
    """Where a setting lies: `momentum` in `optimizer.momentum`. Raises ValueError for one that does not exist."""
    head = dotted.partition(".")[0]
    groups = flat_groups(kind)
    if head in {f.name for f in dataclasses.fields(kind)} - set(groups):
        return dotted
    for group, members in groups.items():
        if dotted in {f.name for f in dataclasses.fields(members)}:
            return f"{group}.{dotted}"
    raise ValueError(f"config has no field {dotted!r}")
