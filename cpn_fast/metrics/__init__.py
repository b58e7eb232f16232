"""Scores: mIoU over the background score, confusion, maps."""
