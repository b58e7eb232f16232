"""Settings as frozen dataclasses, and the presets and recipes that fill them."""
