"""The segmentation network: trained on pseudo masks, its predictions, and their scores."""
