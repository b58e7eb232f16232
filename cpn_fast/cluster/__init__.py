"""Jobs over images on the workers of a Ray cluster: placement, restarts and transport are Ray's."""
