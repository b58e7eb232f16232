"""`make gpu-check`: what a machine with a GPU is asked to do, in parts of less than eight minutes each."""
