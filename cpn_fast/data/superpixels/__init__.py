"""Superpixel maps: made, cached, on the device."""
