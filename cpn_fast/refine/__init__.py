"""Masks made better: dense CRF and random walk over a folder of masks."""
