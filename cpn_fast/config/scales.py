"""Scale factors of inference where none are given; here, so that command lines know them without torch."""

CAM_SCALES = (0.5, 1.0, 1.5, 2.0)
"""Of a CAM network: its maps are summed over the image at each of these scales."""

SEGMENT_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Of a segmentation network: its probabilities are averaged over them."""
