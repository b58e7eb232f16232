"""Files on disk, without torch: images, palette masks, the manifest, atomic writes, label tables."""
