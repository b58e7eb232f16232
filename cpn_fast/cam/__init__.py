"""The CAM network's training, validation, inference and labelling."""
