"""From settings to a network."""

from __future__ import annotations

import logging

from cpn_fast.config.training import AffinityConfig, SegmentConfig, TrainConfig, TrainingConfig
from cpn_fast.models.affinity_net import AffinityNet
from cpn_fast.models.backbones import Backbone, create_backbone
from cpn_fast.models.cam import CamNet, Refinement
from cpn_fast.models.deeplab import DeepLab
from cpn_fast.models.weights.pretrained import load_backbone_weights

log = logging.getLogger(__name__)


def refinement_of(config: TrainConfig) -> Refinement:
    """The refinement heads that a method needs: none for `cam`, PCM for `seam`, PCM + PRCM for `seam_prcm`."""
    options = config.options
    if config.method == "cam" or not options.pcm:
        return "none"
    if config.method == "seam" or (options.prcm == "none" and config.method != "seam_prcm"):
        return "pcm"
    return "prcm_released" if options.prcm == "released" else "prcm"


def create_model(config: TrainConfig, num_classes: int, load_weights: bool = True) -> CamNet:
    """The untrained CamNet of a run, with backbone weights where `config.weights` names a file.

    Args:
        config: the run's settings.
        num_classes: K foreground classes.
        load_weights: False when a checkpoint replaces every weight anyway.

    Raises:
        DataError: if the weights do not fit the backbone.
    """
    return cam_net(_backbone(config, load_weights, frozen=True), config, num_classes)


def cam_net(backbone: Backbone, config: TrainConfig, num_classes: int) -> CamNet:
    """A CamNet on a given backbone; of the settings, method and options count."""
    options = config.options
    return CamNet(
        backbone,
        num_classes,
        refinement_of(config),
        options.dropout,
        options.affinity,
        options.score_resolution,
        options.winner_classes,
        pixel_head=config.learns_pixels,
    )


def create_deeplab(config: SegmentConfig, num_classes: int, load_weights: bool = True) -> DeepLab:
    """The untrained segmentation network of a run, with backbone weights where `config.weights` names a file.

    Args:
        config: the run's settings.
        num_classes: K foreground classes.
        load_weights: False when a checkpoint replaces every weight anyway.

    Raises:
        DataError: if the weights do not fit the backbone.
    """
    backbone = _backbone(config, load_weights, frozen=False)
    if load_weights and _norms_stay(config, backbone):
        backbone.freeze_norms()
    return DeepLab(backbone, num_classes, config.dropout)


def create_affinity_net(config: AffinityConfig, load_weights: bool = True) -> AffinityNet:
    """The untrained AffinityNet of a run, frozen and loaded as `create_model` does.

    Raises:
        DataError: if the weights do not fit the backbone.
    """
    return AffinityNet(_backbone(config, load_weights, frozen=True))


def _backbone(config: TrainingConfig, load_weights: bool, frozen: bool) -> Backbone:
    pretrained = load_weights and config.weights is None and not config.loop.resume
    backbone = create_backbone(config.backbone, frozen=frozen, pretrained=pretrained)
    if load_weights and config.weights is not None:
        load_backbone_weights(backbone, config.weights)
    return backbone


def _norms_stay(config: SegmentConfig, backbone: Backbone) -> bool:
    """Whether the backbone's batch norms stay as they are, by the settings and by what the weights hold."""
    if config.norms != "auto" or config.weights is None or backbone.has_statistics():
        return config.norms == "frozen"
    log.warning("%s: batch norms folded into the convolutions have no statistics; they stay frozen", config.weights)
    return True
