"""Networks: backbones, weights, CamNet with its refinement heads, and the labelling module."""

from cpn_fast.models.build import create_affinity_net, create_model
from cpn_fast.models.cam import CamNet

__all__ = ["CamNet", "create_affinity_net", "create_model"]
