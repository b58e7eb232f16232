"""AffinityNet: what it learns from, its training, and the walk that it is for."""
