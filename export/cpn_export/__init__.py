"""ONNX export of a trained CPN, and a labelling runtime that needs no torch."""
