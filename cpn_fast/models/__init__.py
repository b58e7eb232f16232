"""Networks: backbones, weights, CamNet with its refinement heads, and the labelling module."""
