"""ONNX export, and a labelling runtime that needs no torch."""
