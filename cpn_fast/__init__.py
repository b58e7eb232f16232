"""cpn-fast: pixel masks and a segmentation model from image-level labels (CPN, ICCV 2021)."""

__version__ = "0.1.0"
