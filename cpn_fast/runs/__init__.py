"""A run on disk: its folder, settings, checkpoint and weights."""
