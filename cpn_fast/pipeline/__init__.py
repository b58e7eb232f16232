"""`cpn run`: from images with labels to masks and a segmentation model, one stage after the other."""
