"""`cpn demo`: the whole pipeline on generated data."""
