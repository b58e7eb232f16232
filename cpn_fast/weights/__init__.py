"""`cpn weights`: what files of weights are."""
