"""Scale factors of inference where none are given; here, so that command lines know them without torch."""

CAM_SCALES = (0.5, 1.0, 1.5, 2.0)
"""The paper's, of a CAM network: its maps are summed over the image at each of these factors of its size."""

TRAINING_SCALES = (1.0, 1.5, 2.0)
"""Default of a CAM network, factors of the mean long side that it was trained at: it knows objects at that size."""

FEATURE_SCALE = 1.5
"""Of scales that are factors of the training size, the one whose features refine the sum of all is nearest to this."""

SEGMENT_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Of a segmentation network: its probabilities are averaged over them."""
