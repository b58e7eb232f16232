"""Operators on tensors: each a folder with a plain reference and, where it pays, a fast form."""
