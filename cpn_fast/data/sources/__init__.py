"""Where images and labels come from: VOC, COCO, folders, generated scenes."""
