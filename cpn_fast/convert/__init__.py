"""Folders of masks in VOC layout, written as the files that other tools read. Needs no torch."""
