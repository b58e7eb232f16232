"""Weights files of every kind, read into the networks."""
