"""Where samples come from: sources, augmentation, the superpixel cache and the training batches."""
